package local_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/storetest"
)

func open(t testing.TB, dir string) *local.Store {
	t.Helper()
	s, err := local.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s storage.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, s storage.Store, name string) (string, error) {
	t.Helper()
	rc, _, err := s.Open(t.Context(), name, storage.Range{})
	if err != nil {
		return "", err
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	return string(data), err
}

func list(t testing.TB, s storage.Store, prefix string) []string {
	t.Helper()
	names := []string{}
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// files are all files below dir, hidden ones too.
func files(t testing.TB, dir string) []string {
	t.Helper()
	all := []string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storage.Store {
		dir := filepath.Join(t.TempDir(), "made", "by the first Put")
		t.Cleanup(func() {
			for _, name := range files(t, filepath.Dir(filepath.Dir(dir))) {
				if strings.Contains(name, durable.TempPrefix) {
					t.Errorf("the unfinished object %s is left over", name)
				}
			}
		})
		return open(t, dir)
	})
}

func TestReadingWritesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	s := open(t, dir)
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("an absent store lists %q", got)
	}
	if _, err := get(t, s, "a"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("open in an absent store: %v", err)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete in an absent store: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("reading made the folder (%v)", err)
	}
}

func TestObjectsAreOrdinaryPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	put(t, open(t, dir), "c-id/etcd/main/data/x/snapshot.db.zst.age", "sealed")
	path := filepath.Join(dir, "c-id/etcd/main/data/x/snapshot.db.zst.age")
	if data, err := os.ReadFile(path); err != nil || string(data) != "sealed" {
		t.Fatalf("%q, error %v", data, err)
	}
	for ; path != filepath.Dir(dir); path = filepath.Dir(path) {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v, error %v", path, info.Mode(), err)
		}
	}
}

func TestARootThatIsNoFolderIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.New(file); err == nil {
		t.Fatal("a file was taken for a store")
	}
}

func TestLinksThatLeadOutAreNotFollowed(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"folder":   outside,
		"file":     filepath.Join(outside, "secret"),
		"up":       "..",
		"dangling": "nowhere",
		"loop":     "loop",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir)
	put(t, s, "a", "a")
	if got := list(t, s, ""); len(got) != 1 {
		t.Errorf("list is %q", got)
	}
	for _, name := range []string{"folder/secret", "file", "up/" + filepath.Base(outside) + "/secret", "dangling", "loop", "loop/x"} {
		if got, err := get(t, s, name); err == nil {
			t.Errorf("%s gave %q", name, got)
		}
		_ = s.Delete(t.Context(), name) // refused or nothing there; what is outside is checked below
	}
	for _, name := range []string{"folder/new", "folder/secret", "up/new", "dangling/new", "loop/new"} {
		if err := s.Put(t.Context(), name, strings.NewReader("new"), storage.PutOptions{}); err == nil {
			t.Errorf("%s was written through a link", name)
		}
		for info, err := range s.List(t.Context(), name) {
			if err == nil {
				t.Errorf("list below a link: %q", info.Name)
			}
		}
	}
	if got := files(t, outside); len(got) != 1 || got[0] != "secret" {
		t.Errorf("outside there is now %q", got)
	}
	// A link in an object's place is replaced, not followed.
	put(t, s, "file", "own")
	if data, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(data) != "secret" {
		t.Fatalf("the file outside holds %q, error %v", data, err)
	}
}

func TestALinkInPlaceOfTheHiddenFolderIsNotFollowed(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	victim := filepath.Join(outside, durable.TempPrefix+"x")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, ".lifeboat-tmp")); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).Put(t.Context(), "a", strings.NewReader("x"), storage.PutOptions{}); err == nil {
		t.Error("an object was put by way of a folder outside")
	}
	if got := files(t, outside); len(got) != 1 {
		t.Errorf("outside there is now %q", got)
	}
}

func TestWhatIsNoObjectIsNotSeen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "a/b", "x")
	for _, name := range []string{"a/back\\slash", "a/new\nline", "a/\xff"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "lost+found", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".lifeboat-tmp", "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"", ".", ".lifeboat-tmp", ".lifeboat-tmp/", ".lifeboat-tmp/x", "pipe/", "a"} {
		for _, name := range list(t, s, prefix) {
			if name != "a/b" {
				t.Errorf("prefix %q lists %q", prefix, name)
			}
		}
	}
	for _, name := range []string{"pipe", "pipe/x"} { // and doesn't wait for a writer
		if _, err := get(t, s, name); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("open %s: %v", name, err)
		}
	}
	for _, name := range []string{".lifeboat-tmp", ".lifeboat-tmp/x", "lost+found/x"} {
		if err := s.Put(t.Context(), name, strings.NewReader("x"), storage.PutOptions{}); !errors.Is(err, storage.ErrInvalidName) {
			t.Errorf("put %s: %v", name, err)
		}
		if err := s.Delete(t.Context(), name); !errors.Is(err, storage.ErrInvalidName) {
			t.Errorf("delete %s: %v", name, err)
		}
	}
}

func TestUnfinishedObjectsOfTheDeadAreSweptByTheFirstPut(t *testing.T) {
	dir := t.TempDir()
	temp := filepath.Join(dir, ".lifeboat-tmp")
	if err := os.Mkdir(temp, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(temp, durable.TempPrefix+"dead"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Another Store in the midst of a Put stands for a living process.
	started, finish := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		src := io.MultiReader(strings.NewReader("slow"), readFunc(func([]byte) (int, error) {
			close(started)
			<-finish
			return 0, io.EOF
		}))
		if err := open(t, dir).Put(t.Context(), "slow", src, storage.PutOptions{IfAbsent: true}); err != nil {
			t.Error(err)
		}
	})
	<-started
	s := open(t, dir)
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("an unfinished object is listed: %q", got)
	}
	put(t, s, "a", "x")
	if got := files(t, temp); len(got) != 1 {
		t.Errorf("with one writer at work there are %q", got)
	}
	close(finish)
	wg.Wait()
	if got := files(t, dir); fmt.Sprint(got) != "[a slow]" {
		t.Errorf("the folder holds %q", got)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestEmptyFoldersGoWithTheirLastObject(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "a/b/c/x", "x")
	put(t, s, "a/y", "y")
	if err := s.Delete(t.Context(), "a/b/c/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a", "b")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the empty folder is there (%v)", err)
	}
	if got := list(t, s, ""); fmt.Sprint(got) != "[a/y]" {
		t.Errorf("list is %q", got)
	}
	if err := s.Delete(t.Context(), "a/y"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		t.Fatalf("the root went too (%v)", err)
	}
}

func TestAnErrorOfTheSourceIsNotTheStores(t *testing.T) {
	s := open(t, t.TempDir())
	for _, inner := range []error{fs.ErrExist, fs.ErrNotExist, fs.ErrPermission, unix.ENOSPC} {
		src := readFunc(func([]byte) (int, error) { return 0, inner })
		err := s.Put(t.Context(), "a", src, storage.PutOptions{IfAbsent: true})
		if !errors.Is(err, inner) {
			t.Errorf("a source failing with %v gave %v", inner, err)
		}
		for _, ours := range []error{storage.ErrExist, storage.ErrNotExist, storage.ErrPermission, storage.ErrFull} {
			if errors.Is(err, ours) {
				t.Errorf("a source failing with %v passes for the store's %v", inner, err)
			}
		}
	}
}

func TestAnObjectThatShrinksWhileReadIsAnError(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "a", strings.Repeat("x", 100_000))
	rc, _, err := s.Open(t.Context(), "a", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if err := os.Truncate(filepath.Join(dir, "a"), 50_000); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, rc); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("read %d bytes, error %v", n, err)
	}
}

// fillFolder makes 10,000 objects, as links to one file since that is quicker.
func fillFolder(t testing.TB, folder string) {
	t.Helper()
	name := func(i int) string { return filepath.Join(folder, fmt.Sprintf("%020d", i)) }
	if err := os.WriteFile(name(0), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 9_999 {
		if err := os.Link(name(0), name(i+1)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTenThousandObjectsAreListed(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "c-id", "etcd", "main", "manifests")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	fillFolder(t, folder)
	s := open(t, dir)
	start := time.Now()
	if got := list(t, s, "c-id/"); len(got) != 10_000 {
		t.Fatalf("%d objects", len(got))
	}
	t.Log("listed in", time.Since(start))
	// A prefix in the folder looks only at what it selects, and a list that is
	// left early reads no other folder.
	if got := list(t, s, "c-id/etcd/main/manifests/0000000000000000012"); len(got) != 10 {
		t.Fatalf("%d objects", len(got))
	}
}

func BenchmarkList10000(b *testing.B) {
	dir := b.TempDir()
	fillFolder(b, dir)
	s := open(b, dir)
	for b.Loop() {
		if got := list(b, s, ""); len(got) != 10_000 {
			b.Fatal(len(got))
		}
	}
}

func ExampleStore() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	s, err := local.New(dir)
	if err != nil {
		panic(err)
	}
	create := storage.PutOptions{IfAbsent: true}
	fmt.Println(s.Put(ctx, "manifests/1", bytes.NewReader([]byte("signed")), create))
	err = s.Put(ctx, "manifests/1", bytes.NewReader([]byte("another")), create)
	fmt.Println(errors.Is(err, storage.ErrExist))
	// Output:
	// <nil>
	// true
}
