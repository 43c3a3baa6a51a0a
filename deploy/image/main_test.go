// Package image tests the container image: it builds the Dockerfile with a
// daemon of its own, without a network, and runs what comes out.
package image

import (
	"os"
	"testing"

	"lifeboat/internal/realplane"
)

func TestMain(m *testing.M) { os.Exit(realplane.Isolate(m)) }
