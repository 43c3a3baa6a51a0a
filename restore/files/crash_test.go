package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/seal"
)

// small is an archive that takes every kind of step.
func small(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := seal.NewArchiveWriter(&out)
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for _, e := range []struct{ name, body, link string }{
		{name: hostfacts.Name, body: `{"folders":["etc/kubernetes"]}`},
		{name: "etc/"}, {name: "etc/kubernetes/"}, {name: "etc/kubernetes/pki/"},
		{name: "etc/kubernetes/admin.conf", body: "admin"},
		{name: "etc/kubernetes/pki/ca.key", body: "key"},
		{name: "etc/kubernetes/pki/same", body: "same"},
		{name: "etc/kubernetes/pki/current", link: "/etc/kubernetes/pki/ca.key"},
		{name: "etc/kubernetes/was-file/"}, {name: "etc/kubernetes/was-file/new", body: "new"},
	} {
		h := seal.Header{Name: strings.TrimSuffix(e.name, "/"), Mode: 0o640, ModTime: at, Size: int64(len(e.body)), Linkname: e.link}
		var err error
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Mode = 0o750
			err = w.AddDir(h)
		case e.link != "":
			h.Mode = 0o777
			err = w.AddSymlink(h)
		default:
			err = w.AddFile(h, strings.NewReader(e.body))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// old is what is on disk before, and must be somewhere ever after.
var old = map[string]string{
	"etc/kubernetes/admin.conf": "old admin", "etc/kubernetes/pki/ca.key": "old key", "etc/kubernetes/was-file": "a file",
}

func prepareOld(t *testing.T, root string) {
	t.Helper()
	for name, body := range old {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/kubernetes/pki/same"), []byte("same"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// nothingLost looks for every old file in its place or aside.
func nothingLost(t *testing.T, root, aside, when string) {
	t.Helper()
	for name, body := range old {
		in, err1 := os.ReadFile(filepath.Join(root, name))
		kept, err2 := os.ReadFile(filepath.Join(aside, "r1", name))
		if string(in) != body && string(kept) != body {
			t.Errorf("%s: %s is lost: %q %v, aside %q %v", when, name, in, err1, kept, err2)
		}
	}
}

func looks(t *testing.T, root string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		body, _ := os.ReadFile(path)
		to, _ := os.Readlink(path)
		if info.Mode()&fs.ModeSymlink != 0 {
			body = nil
		}
		fmt.Fprintf(&out, "%s %v %v %q %s\n", path[len(root):], info.Mode(), info.ModTime().UTC(), body, to)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestARestoreCanBeKilledBeforeEveryChange stops before the n-th change for
// every n, as a kill would, and runs the restore again.
func TestARestoreCanBeKilledBeforeEveryChange(t *testing.T) {
	archive := small(t)
	killed := errors.New("killed")
	run := func(root, aside string, stopAt int) (steps int, err error) {
		p, err := Prepare(t.Context(), bytes.NewReader(archive), Options{Root: root, AsideDir: aside, RestoreID: "r1"})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		p.step = func(op, name string) error {
			if steps++; steps == stopAt {
				return fmt.Errorf("%s %s: %w", op, name, killed)
			}
			return nil
		}
		_, err = p.Apply(t.Context(), bytes.NewReader(archive))
		return steps, err
	}
	whole := t.TempDir()
	prepareOld(t, whole)
	total, err := run(whole, filepath.Join(t.TempDir(), "aside"), 0)
	if err != nil || total < 15 {
		t.Fatalf("%d steps, %v", total, err)
	}
	want := looks(t, whole)
	for n := 1; n <= total; n++ {
		root, aside := t.TempDir(), filepath.Join(t.TempDir(), "aside")
		prepareOld(t, root)
		if _, err := run(root, aside, n); !errors.Is(err, killed) {
			t.Fatalf("stop %d: %v", n, err)
		} else {
			nothingLost(t, root, aside, err.Error())
		}
		if _, err := run(root, aside, 0); err != nil {
			t.Fatalf("the run after stop %d: %v", n, err)
		}
		nothingLost(t, root, aside, "finished")
		if got := looks(t, root); got != want {
			t.Errorf("stop %d, then finished:\n%s\nwant\n%s", n, got, want)
		}
		steps, err := run(root, aside, 0)
		if err != nil || steps != 0 {
			t.Errorf("after stop %d a third run takes %d steps, %v", n, steps, err)
		}
	}
}

func TestAHalfWrittenFileOfAKilledRestoreIsSweptAndNotListed(t *testing.T) {
	root := t.TempDir()
	prepareOld(t, root)
	stale := temp("etc/kubernetes/admin.conf")
	if err := os.WriteFile(filepath.Join(root, stale), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Prepare(t.Context(), bytes.NewReader(small(t)), Options{Root: root, AsideDir: filepath.Join(t.TempDir(), "aside"), RestoreID: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if len(p.Left) != 0 {
		t.Errorf("left: %q", p.Left)
	}
	if _, err := p.Apply(t.Context(), bytes.NewReader(small(t))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(root, stale)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stale file: %v", err)
	}
}

// TestAsideWorksAcrossFileSystems needs a second file system. /dev/shm is one
// on Linux; elsewhere the copy is tried on the same.
func TestAsideWorksAcrossFileSystems(t *testing.T) {
	root := t.TempDir()
	d, err := openDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.root.Close()
	prepareOld(t, root)
	if err := os.Symlink("/elsewhere", filepath.Join(root, "etc/link")); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)
	file := filepath.Join(root, "etc/kubernetes/pki/ca.key")
	if err := errors.Join(os.Chmod(file, 0o440), os.Chtimes(file, at, at)); err != nil {
		t.Fatal(err)
	}
	other, err := os.MkdirTemp("/dev/shm", "lifeboat-test-")
	if err != nil {
		other = t.TempDir()
	}
	defer os.RemoveAll(other)
	for range 2 { // the second finds the first's
		for _, name := range []string{"etc/kubernetes/pki/ca.key", "etc/link"} {
			if err := d.aside(name, filepath.Join(other, "aside")); err != nil {
				t.Fatal(err)
			}
		}
	}
	info, err := os.Lstat(filepath.Join(other, "aside/etc/kubernetes/pki/ca.key"))
	if err != nil || info.Mode() != 0o440 || !info.ModTime().Equal(at) {
		t.Errorf("the copy: %v, %v", info, err)
	}
	if to, err := os.Readlink(filepath.Join(other, "aside/etc/link")); to != "/elsewhere" {
		t.Errorf("the link: %q, %v", to, err)
	}
	entries, err := os.ReadDir(filepath.Join(other, "aside/etc/kubernetes/pki"))
	if err != nil || len(entries) != 1 {
		t.Errorf("aside holds %v, %v", entries, err)
	}
}

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if text := os.Getenv("LIFEBOAT_TEST_UNDO"); text != "" {
		if err := undoingChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if root := os.Getenv("LIFEBOAT_TEST_RESTORE_ROOT"); root != "" {
		if err := child(root, os.Getenv("LIFEBOAT_TEST_RESTORE_ARCHIVE"), os.Getenv("LIFEBOAT_TEST_RESTORE_ASIDE")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child restores slowly enough to be hit.
func child(root, archive, aside string) error {
	data, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	p, err := Prepare(context.Background(), bytes.NewReader(data), Options{Root: root, AsideDir: aside, RestoreID: "r1"})
	if err != nil {
		return err
	}
	fmt.Println("prepared")
	p.step = func(string, string) error {
		time.Sleep(time.Millisecond)
		return nil
	}
	_, err = p.Apply(context.Background(), bytes.NewReader(data))
	return err
}

// TestARestoreSurvivesKill9 kills the real process at random moments.
func TestARestoreSurvivesKill9(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(archive, small(t), 0o600); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		root, aside := t.TempDir(), filepath.Join(t.TempDir(), "aside")
		prepareOld(t, root)
		run := func(after time.Duration) error {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "LIFEBOAT_TEST_RESTORE_ROOT="+root, "LIFEBOAT_TEST_RESTORE_ARCHIVE="+archive, "LIFEBOAT_TEST_RESTORE_ASIDE="+aside)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if after > 0 {
				io.ReadFull(out, make([]byte, len("prepared"))) // an early end shows below
				time.Sleep(after)
				if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Fatal(err)
				}
			}
			io.Copy(io.Discard, out)
			return cmd.Wait()
		}
		run(time.Duration(1+random.IntN(25)) * time.Millisecond)
		nothingLost(t, root, aside, "killed")
		if err := run(0); err != nil {
			t.Fatal(err)
		}
		nothingLost(t, root, aside, "finished")
		p, err := Prepare(t.Context(), bytes.NewReader(small(t)), Options{Root: root, AsideDir: aside, RestoreID: "r1"})
		if err != nil {
			t.Fatal(err)
		}
		if n := p.Count(Identical); n != len(p.Steps) || len(p.Left) != 0 {
			t.Errorf("%d of %d entries are as they should be; left over: %q", n, len(p.Steps), p.Left)
		}
		p.Close()
	}
}

func TestNothingIsTouchedWhenWhatIsReplacedCanNotBeKept(t *testing.T) {
	archive, root := small(t), t.TempDir()
	prepareOld(t, root)
	before := looks(t, root)
	aside := filepath.Join(t.TempDir(), "aside")
	if err := os.WriteFile(aside, nil, 0o600); err != nil { // a file, where a folder is needed
		t.Fatal(err)
	}
	p, err := Prepare(t.Context(), bytes.NewReader(archive), Options{Root: root, AsideDir: aside, RestoreID: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Apply(t.Context(), bytes.NewReader(archive)); err == nil || !strings.Contains(err.Error(), aside) {
		t.Errorf("error %v, want one that names %s", err, aside)
	}
	if after := looks(t, root); after != before {
		t.Errorf("the root was changed:\n%s\nbefore:\n%s", after, before)
	}
}

func TestTwoRestoresDoNotMeetBelowOneRoot(t *testing.T) {
	archive, root, aside := small(t), t.TempDir(), t.TempDir()
	prepare := func(id string) *Plan {
		p, err := Prepare(t.Context(), bytes.NewReader(archive), Options{Root: root, AsideDir: aside, RestoreID: id})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	first, second := prepare("r1"), prepare("r2")
	steps := 0
	first.step = func(string, string) error {
		steps++
		if _, err := second.Apply(t.Context(), bytes.NewReader(archive)); !errors.Is(err, ErrInUse) {
			t.Errorf("at step %d: error %v", steps, err)
		}
		return nil
	}
	if _, err := first.Apply(t.Context(), bytes.NewReader(archive)); err != nil || steps == 0 {
		t.Fatalf("the first restore: %d steps, %v", steps, err)
	}
	if _, err := second.Apply(t.Context(), bytes.NewReader(archive)); err != nil {
		t.Errorf("the second restore, after the first: %v", err)
	}
}
