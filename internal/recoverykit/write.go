package recoverykit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"lifeboat/internal/durable"
)

// ErrExists says that a file is there already. Nothing was written.
var ErrExists = errors.New("exists already")

// ErrChanged says that the file to copy is not the one whose sum the kit tells.
var ErrChanged = errors.New("was changed while the kit was made")

// Write puts a kit's files into a folder, made if missing. Each file is whole or
// as it was; the sums are written last, and an older kit's removed first, so
// that a folder with sums that are right is one kit. Without replace, nothing
// may be there that it would overwrite, and after an error it leaves nothing. It
// returns what else the folder holds.
func Write(dir string, files []File, replace bool) (others []string, err error) {
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		if _, err := os.Lstat(path); err == nil && !replace {
			return nil, fmt.Errorf("%s %w", path, ErrExists)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for an earlier kit: %w", err)
		}
	}
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the kit's folder: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, SumsFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace the earlier kit: %w", err)
	}
	if err := durable.SyncDir(dir); err != nil {
		return nil, err
	}
	var made []string
	defer func() {
		if err == nil || replace {
			return
		}
		for _, path := range made {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		if err := f.write(path, replace); err != nil {
			return nil, err
		}
		made = append(made, path)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look at the kit: %w", err)
	}
	for _, entry := range entries {
		if !slices.ContainsFunc(files, func(f File) bool { return f.Name == entry.Name() }) {
			others = append(others, entry.Name())
		}
	}
	return others, nil
}

// WriteOne puts one of the files alone at a path.
func WriteOne(path string, f File, replace bool) error { return f.write(path, replace) }

func (f File) write(path string, replace bool) error {
	var from io.Reader = bytes.NewReader(f.Text)
	if f.Path != "" {
		file, err := os.Open(f.Path)
		if err != nil {
			return fmt.Errorf("copy into the kit: %w", err)
		}
		defer file.Close()
		from = &summed{r: file, path: f.Path, want: f.Sum, hash: sha256.New()}
	}
	_, err := durable.WriteFile(path, from, durable.Options{Mode: f.Mode, IfAbsent: !replace})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s %w", path, ErrExists)
	}
	return err
}

// summed reads a file and fails at its end if its sum is another.
type summed struct {
	r          io.Reader
	path, want string
	hash       hash.Hash
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.hash.Write(p[:n])
	if err == io.EOF {
		if got := hex.EncodeToString(s.hash.Sum(nil)); got != s.want {
			return n, fmt.Errorf("%s %w", s.path, ErrChanged)
		}
	}
	return n, err
}
