package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
)

func entries(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, entry := range all {
		names = append(names, entry.Name())
	}
	return names
}

func wantEntries(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := entries(t, dir); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Fatalf("the folder holds %q, want %q", got, want)
	}
}

func TestWriteFile(t *testing.T) {
	for _, test := range []struct {
		about    string
		before   string // content; empty for no file
		opts     durable.Options
		wantErr  error
		wantMode fs.FileMode
	}{
		{"a new file is private by default", "", durable.Options{}, nil, 0o600},
		{"a mode is taken", "", durable.Options{Mode: 0o640}, nil, 0o640},
		{"a file is replaced", "old", durable.Options{}, nil, 0o600},
		{"an absent file is created exclusively", "", durable.Options{IfAbsent: true}, nil, 0o600},
		{"a present file is not replaced by an exclusive create", "old", durable.Options{IfAbsent: true}, fs.ErrExist, 0o600},
	} {
		t.Run(test.about, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			if test.before != "" {
				if err := os.WriteFile(path, []byte(test.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n, err := durable.WriteFile(path, strings.NewReader("new!"), test.opts)
			if !errors.Is(err, test.wantErr) {
				t.Fatalf("got error %v, want %v", err, test.wantErr)
			}
			want := "new!"
			if test.wantErr != nil {
				want = test.before
			} else if n != 4 {
				t.Errorf("says %d bytes", n)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != want {
				t.Errorf("the file holds %q (%v), want %q", got, err, want)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != test.wantMode {
				t.Errorf("mode %v (%v), want %v", info.Mode(), err, test.wantMode)
			}
			wantEntries(t, dir, "file")
		})
	}
}

func TestWriteFileMakesParentFolders(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "c", "file")
	if _, err := durable.WriteFile(path, strings.NewReader("x"), durable.Options{}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "a", "b"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("mode %v, error %v", info, err)
	}
}

func TestWriteFileInTheWorkingFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, err := durable.WriteFile("file", strings.NewReader("x"), durable.Options{}); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, ".", "file")
}

func TestWriteFileLeavesNothingWhenTheSourceFails(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("broken")
	for _, before := range []int{0, 1, 10 << 20} {
		src := io.MultiReader(bytes.NewReader(make([]byte, before)), iotest.ErrReader(broken))
		if _, err := durable.WriteFile(filepath.Join(dir, "file"), src, durable.Options{}); !errors.Is(err, broken) {
			t.Fatalf("after %d bytes: %v", before, err)
		}
		wantEntries(t, dir)
	}
}

func TestWriteFileRefusesAPathThroughAFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := durable.WriteFile(filepath.Join(dir, "file", "below"), strings.NewReader("x"), durable.Options{})
	if !errors.Is(err, unix.ENOTDIR) {
		t.Fatalf("got %v", err)
	}
}

func TestOfManyExclusiveCreatesOneWins(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var wg sync.WaitGroup
	wins := make(chan string, 16)
	for i := range 16 {
		wg.Go(func() {
			content := strings.Repeat(fmt.Sprintf("%x", i), 10_000)
			_, err := durable.WriteFile(path, strings.NewReader(content), durable.Options{IfAbsent: true})
			switch {
			case err == nil:
				wins <- content
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(wins) != 1 {
		t.Fatalf("%d writers won", len(wins))
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != <-wins {
		t.Fatalf("the file is not the winner's (error %v)", err)
	}
	wantEntries(t, dir, "file")
}

// startWriter runs this test binary again as a process that writes and is then
// killed. It returns when the process has begun.
func startWriter(t *testing.T, mode, dir string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperProcess$")
	cmd.Env = append(os.Environ(), "DURABLE_HELPER="+mode, "DURABLE_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal("helper:", err)
	}
	return kill
}

func TestHelperProcess(t *testing.T) {
	dir := os.Getenv("DURABLE_DIR")
	switch os.Getenv("DURABLE_HELPER") {
	case "write":
		_, err := durable.WriteFile(filepath.Join(dir, "file"), io.MultiReader(strings.NewReader("half"), forever{}), durable.Options{})
		t.Fatal("not reached:", err)
	case "scratch":
		s, err := durable.OpenScratch(dir)
		if err != nil {
			t.Fatal(err)
		}
		f, err := s.Create("snapshot.db")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("secret"); err != nil {
			t.Fatal(err)
		}
		_, _ = forever{}.Read(nil)
		_ = s.Close()
	default:
		t.Skip("only for the tests that kill it")
	}
}

// forever says that the helper is under way, and blocks.
type forever struct{}

func (forever) Read([]byte) (int, error) {
	fmt.Print("begun")
	time.Sleep(time.Minute) // select{} would be found to be a deadlock
	return 0, io.ErrUnexpectedEOF
}

func TestUnfinishedFilesOfTheDeadAreSweptAndThoseOfTheLivingKept(t *testing.T) {
	dir := t.TempDir()
	killDead := startWriter(t, "write", dir)
	killLiving := startWriter(t, "write", dir)
	if got := entries(t, dir); len(got) != 2 || !strings.HasPrefix(got[0], durable.TempPrefix) {
		t.Fatalf("two writers at work show %q", got)
	}
	killDead()
	for range 2 {
		if _, err := durable.WriteFile(filepath.Join(dir, "other"), strings.NewReader("x"), durable.Options{}); err != nil {
			t.Fatal(err)
		}
		if got := entries(t, dir); len(got) != 2 || !strings.HasPrefix(got[0], durable.TempPrefix) || got[1] != "other" {
			t.Fatalf("with one writer alive the folder holds %q", got)
		}
	}
	killLiving()
	if _, err := durable.WriteFile(filepath.Join(dir, "other"), strings.NewReader("x"), durable.Options{}); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, dir, "other")
}

func TestASweepTouchesNothingElse(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), durable.TempPrefix+"outside")
	for _, path := range []string{filepath.Join(dir, "file"), filepath.Join(dir, ".hidden"), outside} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, durable.TempPrefix+"link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, durable.TempPrefix+"folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := durable.SweepTemp(root, "."); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, dir, ".hidden", durable.TempPrefix+"folder", durable.TempPrefix+"link", "file")
	if _, err := os.Stat(outside); err != nil {
		t.Fatal(err)
	}
}

func TestASweepDuringWritesTakesNone(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := durable.SweepTemp(root, "."); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range 300 {
		temp, err := durable.CreateTemp(root, ".", 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if temp.Lost() {
			t.Fatalf("file %d was swept from under its writer", i)
		}
		if err := temp.Discard(); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
	wantEntries(t, dir)
}

func TestFreeSpace(t *testing.T) {
	n, err := durable.FreeSpace(t.TempDir())
	if err != nil || n <= 0 {
		t.Fatalf("%d bytes, error %v", n, err)
	}
	if _, err := durable.FreeSpace("/does/not/exist"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
}

func ExampleWriteFile() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "seen", "heads.json")
	n, err := durable.WriteFile(path, strings.NewReader("{}\n"), durable.Options{IfAbsent: true})
	fmt.Println(n, err)
	_, err = durable.WriteFile(path, strings.NewReader("{}\n"), durable.Options{IfAbsent: true})
	fmt.Println(errors.Is(err, fs.ErrExist))
	// Output:
	// 3 <nil>
	// true
}

func TestAFolderThatCanNotBeMadeIsAnErrorAndNotAnEndlessTry(t *testing.T) {
	if err := durable.MkdirAll("/proc/lifeboat-test/x", 0o700); err == nil {
		t.Error("a folder was made in /proc")
	}
}
