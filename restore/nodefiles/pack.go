package nodefiles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/seal"
)

// pack writes the tree as an archive like the one that it came from, facts first.
func (s *Staged) pack(now time.Time) error {
	out, err := os.OpenFile(s.Archive(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := seal.NewArchiveWriter(out)
	err = s.packInto(w, now)
	if err == nil {
		err = w.Close()
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("pack the node's files: %w", err)
	}
	return nil
}

func (s *Staged) packInto(w *seal.ArchiveWriter, now time.Time) error {
	facts, err := json.Marshal(s.Facts)
	if err != nil {
		return err
	}
	if err := w.AddFile(seal.Header{Name: hostfacts.Name, Mode: 0o600, ModTime: now, Size: int64(len(facts))}, bytes.NewReader(facts)); err != nil {
		return err
	}
	root, err := os.OpenRoot(s.Tree())
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		h := seal.Header{Name: name, Mode: info.Mode() & (fs.ModePerm | fs.ModeSetgid | fs.ModeSticky), ModTime: info.ModTime(), Size: info.Size()}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			h.UID, h.GID = int(stat.Uid), int(stat.Gid)
		}
		switch {
		case e.IsDir():
			h.Size = 0
			return w.AddDir(h)
		case e.Type()&fs.ModeSymlink != 0:
			h.Size = 0
			if h.Linkname, err = root.Readlink(name); err != nil {
				return err
			}
			return w.AddSymlink(h)
		case e.Type().IsRegular():
			f, err := root.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			return w.AddFile(h, f)
		}
		return fmt.Errorf("%s is neither a file nor a folder nor a link", name)
	})
}
