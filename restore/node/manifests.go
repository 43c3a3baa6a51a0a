package node

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"lifeboat/internal/chroot"
	"lifeboat/internal/durable"
)

// Manifest is a file of the static pods' folder.
type Manifest struct {
	File string // its name in the folder
	Pod  string // metadata.name; empty: it is no pod that kubelet would run, such as one that is broken
}

// name is what its pod is called, or was before the file broke.
func (m Manifest) name() string {
	return cmp.Or(m.Pod, strings.TrimSuffix(m.File, filepath.Ext(m.File)))
}

// maxManifest is how much of a manifest kubelet reads (pkg/kubelet/config, maxConfigLength).
const maxManifest = 10 << 20

// ReadManifests returns the files of a folder that kubelet looks into, and the static
// pods in them: every regular file and link but those whose name begins with a dot, links
// followed. A folder that is not there has none. Relative links are looked up from the
// folder home.
func ReadManifests(folder, home string) ([]Manifest, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the static pods' folder: %w", err)
	}
	var out []Manifest
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || !e.Type().IsRegular() && e.Type() != fs.ModeSymlink {
			continue
		}
		data, err := readManifest(folder, home, e.Name())
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a link to nothing is a file that is there
			return nil, fmt.Errorf("read the static pod %s: %w", filepath.Join(folder, e.Name()), err)
		}
		var pod struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		m := Manifest{File: e.Name()}
		if err := yaml.Unmarshal(data, &pod); err == nil && pod.Kind == "Pod" {
			m.Pod = pod.Metadata.Name
		}
		out = append(out, m)
	}
	return out, nil
}

// readManifest returns nothing for what is no regular file.
func readManifest(folder, home, name string) ([]byte, error) {
	path := filepath.Join(folder, name)
	if target, err := os.Readlink(path); err == nil {
		if path = target; !filepath.IsAbs(target) {
			path = filepath.Join(home, target)
		}
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, err // a pipe would never end
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxManifest))
}

// inOrder sorts manifests as they should start: etcd, then the API server, then
// what talks to it.
func inOrder(manifests []Manifest) {
	rank := func(m Manifest) int {
		switch {
		case m.Pod == "etcd", strings.HasPrefix(m.Pod, "etcd-"):
			return 0
		case m.Pod == "kube-apiserver":
			return 1
		}
		return 2
	}
	slices.SortStableFunc(manifests, func(a, b Manifest) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.File, b.File))
	})
}

// apart refuses an aside folder in which kubelet would find the manifests again.
func apart(manifests, aside string) error {
	if manifests == "" || aside == "" {
		return errors.New("name the folder of manifests and one to move them to")
	}
	in, err := wholePath(manifests)
	if err != nil {
		return err
	}
	out, err := wholePath(aside)
	if err != nil {
		return err
	}
	if chroot.Within(out, in) {
		return fmt.Errorf("%s lies in kubelet's folder %s: choose one outside of it", aside, manifests)
	}
	return nil
}

// wholePath resolves the links of a path whose end need not exist.
func wholePath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	place, err := nearest(path)
	if err != nil {
		return "", err
	}
	for rest, head := "", path; ; head = filepath.Dir(head) {
		if _, err := os.Stat(head); err == nil {
			return filepath.Join(place, rest), nil
		}
		rest = filepath.Join(filepath.Base(head), rest)
	}
}

// move brings a file to a place where nothing is, and returns when that is
// durable. Between file systems the source is removed only after the copy is
// durable: a crash leaves the one or both, and with both the next move only
// removes the source.
func move(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return errors.Join(durable.SyncDir(filepath.Dir(to)), durable.SyncDir(filepath.Dir(from)))
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		if err := copyFile(from, to); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("copy %s to %s: %w", from, to, err)
		}
	case !errors.Is(err, unix.EEXIST):
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	same, err := equal(from, to)
	if err != nil {
		return fmt.Errorf("compare %s with %s: %w", from, to, err)
	}
	if !same {
		return fmt.Errorf("move %s to %s: another file is there: look at both, and remove or rename the one that is not wanted", from, to)
	}
	if err := finish(from, to); err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	// From here on the copy is durable.
	if err := os.Remove(from); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(from))
}

// copyFile makes a copy that is whole as soon as it is visible. fs.ErrExist if
// something is there.
func copyFile(from, to string) error {
	if target, err := os.Readlink(from); err == nil {
		return os.Symlink(target, to)
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = durable.WriteFile(to, f, durable.Options{Mode: 0o600, IfAbsent: true})
	return err
}

// equal says whether two names are of the same bytes or the same link.
func equal(a, b string) (bool, error) {
	one, err1 := os.Readlink(a)
	two, err2 := os.Readlink(b)
	if err1 == nil || err2 == nil {
		return err1 == nil && err2 == nil && one == two, nil
	}
	x, err := os.ReadFile(a)
	if err != nil {
		return false, err
	}
	y, err := os.ReadFile(b)
	return bytes.Equal(x, y), err
}

// finish gives a copy the owner, mode and times of its source and makes it
// durable.
func finish(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return err
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
			return err
		}
		f, err := os.Open(to)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return durable.SyncDir(filepath.Dir(to))
}
