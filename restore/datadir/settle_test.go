package datadir

import (
	"testing"

	"golang.org/x/sys/unix"
)

// settle lets the disk finish what an earlier run left to it.
func settle(tb testing.TB) {
	tb.Helper()
	unix.Sync()
}
