package plane

import (
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/events"
)

func ownerOfFile(info fs.FileInfo) (uid, gid uint32) {
	st := info.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}

// lockDB locks a database as etcd does, until it is released.
func lockDB(t *testing.T, path string) (release func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	check(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	return func() { check(t, f.Close()) }
}

// warnings keeps what a person was told.
type warnings struct{ texts []string }

func (w *warnings) listen(e events.Event) {
	if warning, ok := e.(events.Warning); ok {
		w.texts = append(w.texts, warning.Message)
	}
}

func (w *warnings) all() string { return strings.Join(w.texts, "\n") }
