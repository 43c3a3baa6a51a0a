package pki

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"

	"lifeboat/internal/durable"
)

// recordName is what an aside folder holds beside the files: where they belong.
const recordName = ".lifeboat-reissue.json"

// record says what the places held before the first run that used the folder.
type record struct {
	Places []kept `json:"places"`
}

// kept is what one place held.
type kept struct {
	Place string `json:"place"`           // relative to the root
	Aside string `json:"aside,omitempty"` // relative to the aside folder; "": nothing was there
}

// aside keeps what is in the places below the folder, and says so in its record.
func (t *tree) aside(folder string, contents []content) error {
	if err := durable.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("make the aside folder %s: %w", folder, err)
	}
	r, err := readRecord(folder)
	if errors.Is(err, fs.ErrNotExist) {
		r, err = new(record), nil
	}
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, k := range r.Places {
		known[k.Place] = true
	}
	for _, c := range contents {
		name, err := t.keep(folder, c.place)
		if err != nil {
			return fmt.Errorf("keep /%s in %s; nothing was changed: %w", c.place, folder, err)
		}
		if !known[c.place] {
			r.Places = append(r.Places, kept{Place: c.place, Aside: name})
		}
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(folder, recordName)
	if err := t.before("record", file); err != nil {
		return err
	}
	if _, err := durable.WriteFile(file, bytes.NewReader(data), durable.Options{}); err != nil {
		return fmt.Errorf("record what is kept aside; nothing was changed: %w", err)
	}
	return nil
}

// keep copies what is at a place to its own path below the folder, or to that
// path with a number where something else is kept already. It returns the path
// relative to the folder, "" if nothing is at the place.
func (t *tree) keep(folder, place string) (string, error) {
	info, err := t.lstat(place)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	link := ""
	var data []byte
	if info.Mode()&fs.ModeSymlink != 0 {
		link, err = t.root.Readlink(place)
	} else {
		info, data, err = t.readPlace(place, fileLimit)
	}
	if err != nil {
		return "", err
	}
	if err := t.before("aside", place); err != nil {
		return "", err
	}
	for n := 0; ; n++ {
		name := place
		if n > 0 {
			name += "." + strconv.Itoa(n)
		}
		file := filepath.Join(folder, filepath.FromSlash(name))
		if err := durable.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return "", err
		}
		if link != "" {
			err = keepLink(file, link)
		} else {
			err = keepFile(file, data)
		}
		if errors.Is(err, fs.ErrExist) {
			continue // something else of that name
		}
		if err == nil && link == "" {
			err = keepMeta(file, info, secret(data))
		}
		return name, err
	}
}

// keepLink makes a link that is not there. Another one in its place is fs.ErrExist.
func keepLink(file, target string) error {
	err := os.Symlink(target, file)
	if !errors.Is(err, fs.ErrExist) {
		return errors.Join(err, durable.SyncDir(filepath.Dir(file)))
	}
	if there, readErr := os.Readlink(file); readErr == nil && there == target {
		return nil
	}
	return err
}

// keepFile makes a file that is not there. One with other bytes is fs.ErrExist.
func keepFile(file string, data []byte) error {
	_, err := durable.WriteFile(file, bytes.NewReader(data), durable.Options{IfAbsent: true})
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, statErr := os.Lstat(file)
	if statErr != nil || !info.Mode().IsRegular() || info.Size() != int64(len(data)) {
		return err
	}
	if there, readErr := os.ReadFile(file); readErr == nil && bytes.Equal(there, data) {
		return nil
	}
	return err
}

// secret says that a file holds a private key.
func secret(data []byte) bool {
	return bytes.Contains(data, []byte("PRIVATE KEY-----")) || bytes.Contains(data, []byte("client-key-data"))
}

// keepMeta gives a kept file the owner and mode that it had; one with a key is
// for nobody but its owner and group.
func keepMeta(file string, info fs.FileInfo, secret bool) error {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if os.Geteuid() == 0 {
		uid, gid := ownerOf(info)
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	mode := info.Mode().Perm()
	if secret {
		mode &^= 0o007
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

// readRecord is fs.ErrNotExist if the folder holds none.
func readRecord(folder string) (*record, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	_, data, err := (&tree{root: root}).readPlace(recordName, journalLimit)
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read the record %s: %w: %w", filepath.Join(folder, recordName), ErrUnreadable, err)
	}
	for _, k := range r.Places {
		if !fs.ValidPath(k.Place) || k.Place == "." || k.Aside != "" && !fs.ValidPath(k.Aside) {
			return nil, fmt.Errorf("read the record %s: %w: it names %q, which no run does", filepath.Join(folder, recordName), ErrUnreadable, k.Place)
		}
	}
	return r, nil
}

// Undo puts back below root what the aside folder holds of all the runs that
// used it, and removes what they made where nothing was. An interrupted run is
// finished first, so that Undo itself can be killed and done again. It returns the
// names of the files, as the host sees them. What is kept stays in the folder.
//
// A folder that no run used is ErrNothingToUndo.
func Undo(ctx context.Context, root, aside string) ([]string, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	names, err := t.undo(ctx, aside)
	if err != nil {
		return nil, fmt.Errorf("put back what %s holds: %w", aside, err)
	}
	return names, nil
}

func (t *tree) undo(ctx context.Context, aside string) ([]string, error) {
	unlock, err := t.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if j, err := t.journal(); err != nil {
		return nil, err
	} else if j != nil {
		// What is lost of an interrupted run is no reason against taking it back.
		if err := t.finish(j); err != nil && !errors.Is(err, errLost) {
			return nil, err
		}
	}
	r, err := readRecord(aside)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNothingToUndo
	}
	if err != nil {
		return nil, err
	}
	contents, err := r.contents(ctx, aside)
	if err != nil {
		return nil, err
	}
	if len(contents) == 0 {
		return nil, ErrNothingToUndo
	}
	nothing := func([]content) error { return nil }
	if err := t.put(rand.Text(), contents, os.Geteuid() != 0, nothing); err != nil {
		return nil, err
	}
	names := []string{}
	for _, c := range contents {
		names = append(names, "/"+c.place)
	}
	if err := os.Remove(filepath.Join(aside, recordName)); err != nil {
		return nil, fmt.Errorf("all is back, but the record stays: %w", err)
	}
	return names, durable.SyncDir(aside)
}

// contents reads what is to be put back.
func (r *record) contents(ctx context.Context, folder string) ([]content, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	in := &tree{root: root}
	var out []content
	for _, k := range r.Places {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		c := content{place: k.Place, gone: k.Aside == ""}
		if !c.gone {
			if err := in.load(&c, path.Clean(k.Aside)); err != nil {
				return nil, fmt.Errorf("read what was kept of /%s; nothing was changed: %w", k.Place, err)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

func (t *tree) load(c *content, name string) error {
	info, err := t.lstat(name)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		c.link, err = t.root.Readlink(name)
	} else {
		info, c.data, err = t.readPlace(name, fileLimit)
	}
	if err != nil {
		return err
	}
	c.mode = info.Mode().Perm()
	c.uid, c.gid = ownerOf(info)
	return nil
}
