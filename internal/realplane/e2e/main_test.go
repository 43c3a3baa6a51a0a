package e2e

import (
	"os"
	"testing"

	"lifeboat/internal/realplane"
)

func TestMain(m *testing.M) { os.Exit(realplane.Isolate(m)) }
