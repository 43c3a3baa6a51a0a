package demo

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"lifeboat/internal/seal"
)

func (s *story) aside() string { return filepath.Join(s.kit.Config.StateDir, "aside") }

func (s *story) identities() ([]age.Identity, error) {
	f, err := os.Open(s.kit.IdentityPath)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return seal.ParseIdentities(f, nil)
}

// entry is what has to be the same of a file after a restore.
type entry struct {
	mode    fs.FileMode
	sum     [sha256.Size]byte // of a file's content
	target  string            // of a link
	changed time.Time         // of a file
}

// readTree looks at everything below root but the folder except.
func readTree(root, except string) (map[string]entry, error) {
	tree := map[string]entry{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == except {
			return fs.SkipDir
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := entry{mode: info.Mode()}
		switch {
		case e.mode.IsRegular():
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			e.sum, e.changed = sha256.Sum256(text), info.ModTime()
		case e.mode&fs.ModeSymlink != 0:
			if e.target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		tree[name] = e
		return nil
	})
	return tree, err
}

// count counts the regular files.
func count(tree map[string]entry) int {
	n := 0
	for _, e := range tree {
		if e.mode.IsRegular() {
			n++
		}
	}
	return n
}

// compare reports every difference between the trees.
func compare(before, after map[string]entry) error {
	var differences []string
	for name, was := range before {
		is, there := after[name]
		switch {
		case !there:
			differences = append(differences, name+" is missing")
		case is.mode != was.mode:
			differences = append(differences, fmt.Sprintf("%s has mode %v, had %v", name, is.mode, was.mode))
		case is.sum != was.sum || is.target != was.target:
			differences = append(differences, name+" has another content")
		case !is.changed.Equal(was.changed):
			differences = append(differences, fmt.Sprintf("%s was changed at %v, had %v", name, is.changed, was.changed))
		}
	}
	for name := range after {
		if _, there := before[name]; !there {
			differences = append(differences, name+" is new")
		}
	}
	if len(differences) == 0 {
		return nil
	}
	slices.Sort(differences)
	return errors.New("the files are not what they were: " + strings.Join(differences, "; "))
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
