package files_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/kubefixture"
	"lifeboat/internal/seal"
	"lifeboat/restore/files"
)

// raw writes an archive without the writer's checks.
func raw(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		body := strings.Repeat("x", int(h.Size))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o600
		}
		h.ModTime = now
		h.Format = tar.FormatPAX
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(body))
			must(t, err)
		}
	}
	must(t, w.Close())
	return out.Bytes()
}

func file(name string) tar.Header { return tar.Header{Name: name, Size: 3} }
func dir(name string) tar.Header {
	return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}
}
func link(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}
}

func TestHostileArchivesAreRefusedBeforeAnythingIsWritten(t *testing.T) {
	big := file("big")
	big.Size = 2000
	setuid := file("bin")
	setuid.Mode = 0o4755
	for _, c := range []struct {
		name    string
		entries []tar.Header
	}{
		{"traversal", []tar.Header{file("etc/ok"), file("../evil")}},
		{"traversal inside the name", []tar.Header{file("etc/ok"), file("etc/../../evil")}},
		{"an absolute name", []tar.Header{file("etc/ok"), file("/evil")}},
		{"a file written through a link", []tar.Header{file("etc/ok"), link("out", "/tmp"), file("out/evil")}},
		{"a file written through a link that comes later", []tar.Header{file("out/evil"), link("out", "/tmp")}},
		{"a link that climbs past the root", []tar.Header{file("etc/ok"), link("etc/evil", "../../evil")}},
		{"a link that climbs past the root by another", []tar.Header{file("etc/ok"), dir("d"), link("d/self", "../d"), link("d/evil", "self/../../evil")}},
		{"an absolute link that climbs past the root", []tar.Header{file("etc/ok"), link("etc/evil", "/../evil")}},
		{"a device", []tar.Header{file("etc/ok"), {Name: "dev", Typeflag: tar.TypeBlock}}},
		{"a character device", []tar.Header{file("etc/ok"), {Name: "null", Typeflag: tar.TypeChar}}},
		{"a fifo", []tar.Header{file("etc/ok"), {Name: "fifo", Typeflag: tar.TypeFifo}}},
		{"a hard link", []tar.Header{file("etc/ok"), {Name: "hard", Typeflag: tar.TypeLink, Linkname: "etc/ok"}}},
		{"a set-uid file", []tar.Header{file("etc/ok"), setuid}},
		{"a duplicate", []tar.Header{file("etc/ok"), file("etc/ok")}},
		{"a file that is also a folder", []tar.Header{file("etc/ok"), file("etc/ok/inside")}},
		{"more bytes than were signed", []tar.Header{file("etc/ok"), big}},
		{"more entries than were signed", []tar.Header{file("1"), file("2"), file("3"), file("4"), file("5"), file("6")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			outside := t.TempDir()
			root := filepath.Join(outside, "root")
			must(t, os.Mkdir(root, 0o755))
			o := options(t, root)
			o.Limits = seal.Limits{Files: 5, Bytes: 1000}
			_, err := files.Prepare(t.Context(), bytes.NewReader(raw(t, c.entries...)), o)
			var refused *seal.RefusedError
			if !errors.As(err, &refused) {
				t.Errorf("error %v, want a refusal", err)
			}
			if got := tree(t, outside, nil); len(got) != 1 {
				t.Errorf("written: %v", got)
			}
		})
	}
}

func TestDamagedArchivesAreRefusedBeforeAnythingIsWritten(t *testing.T) {
	archive := capture(t, node(t, kubefixture.Stacked))
	for _, cut := range []int{1, 511, 512, 1024, len(archive) / 2, len(archive) - 512} {
		root := t.TempDir()
		if _, err := files.Prepare(t.Context(), bytes.NewReader(archive[:len(archive)-cut]), options(t, root)); err == nil {
			t.Errorf("an archive without its last %d bytes was accepted", cut)
		}
		if got := tree(t, root, nil); len(got) != 0 {
			t.Errorf("written: %v", got)
		}
	}
}

func TestASecondReadingThatDiffersIsRefused(t *testing.T) {
	good := []tar.Header{dir("etc"), file("etc/a"), file("etc/b"), link("etc/l", "a")}
	longer := append(good[:4:4], file("etc/c"))
	renamed := append(good[:2:2], file("etc/evil"), good[3])
	relinked := append(good[:3:3], link("etc/l", "b"))
	content := raw(t, good...)
	i := bytes.Index(content, []byte("xxx"))
	content[i] = 'y' // the same headers
	for _, c := range []struct {
		name   string
		second []byte
		not    string // must not come to be
	}{
		{"more entries", raw(t, longer...), "etc/c"},
		{"fewer entries", raw(t, good[:3]...), "etc/l"},
		{"another name", raw(t, renamed...), "etc/evil"},
		{"another link target", raw(t, relinked...), "etc/l"},
		{"another content", content, "etc/a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			p, err := files.Prepare(t.Context(), bytes.NewReader(raw(t, good...)), options(t, root))
			must(t, err)
			defer p.Close()
			if _, err := p.Apply(t.Context(), bytes.NewReader(c.second)); !errors.Is(err, files.ErrChanged) {
				t.Errorf("error %v, want ErrChanged", err)
			}
			if _, err := os.Lstat(filepath.Join(root, c.not)); err == nil {
				t.Errorf("%s was written", c.not)
			}
			for name := range tree(t, root, nil) {
				if strings.Contains(name, ".lifeboat") {
					t.Errorf("%s is left over", name)
				}
			}
		})
	}
}

func TestLinksOnDiskStayInsideTheRoot(t *testing.T) {
	outside := t.TempDir()
	root := filepath.Join(outside, "root")
	for _, dir := range []string{"usr/lib", "data", "etc"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(t, os.Symlink("usr/lib", filepath.Join(root, "lib")))
	must(t, os.Symlink("/data", filepath.Join(root, "etc/kubernetes"))) // as in a chroot: the root's data
	must(t, os.Symlink("../../..", filepath.Join(root, "etc/up")))      // as in a chroot: the root
	must(t, os.Symlink("/nowhere", filepath.Join(root, "etc/dangling")))
	archive := raw(t, dir("lib"), file("lib/unit"), dir("etc"), dir("etc/kubernetes"), file("etc/kubernetes/admin.conf"),
		dir("etc/up"), file("etc/up/file"), dir("etc/dangling"), file("etc/dangling/file"))
	o := options(t, root)
	restore(t, archive, o)
	var got []string
	for name, l := range tree(t, outside, nil) {
		if !l.Mode.IsDir() {
			got = append(got, name)
		}
	}
	want := []string{"root/data/admin.conf", "root/etc/dangling/file", "root/etc/kubernetes", "root/etc/up", "root/file", "root/lib", "root/usr/lib/unit"}
	if diff := cmp.Diff(setOf(want), setOf(got)); diff != "" {
		t.Error(diff)
	}
	if to, err := os.Readlink(filepath.Join(o.AsideDir, "r1/etc/dangling")); to != "/nowhere" {
		t.Errorf("the dangling link aside: %q, %v", to, err)
	}
	p, r := restore(t, archive, o)
	if r.Created+r.Replaced != 0 {
		t.Errorf("a second run: %+v %+v", r, p.Steps)
	}
}

func TestWhatIsNotMovedAsideIsAConflict(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(root string) error
		archive []byte
	}{
		{"a folder where a file belongs", func(root string) error { return os.MkdirAll(filepath.Join(root, "etc/a/b"), 0o755) }, raw(t, file("etc/a"))},
		{"a folder where a link belongs", func(root string) error { return os.MkdirAll(filepath.Join(root, "lib"), 0o755) }, raw(t, link("lib", "usr/lib"))},
		{"two entries that are one place on this disk", func(root string) error {
			return errors.Join(os.MkdirAll(filepath.Join(root, "usr/lib"), 0o755), os.Symlink("usr/lib", filepath.Join(root, "lib")))
		}, raw(t, file("lib/a"), file("usr/lib/a"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			must(t, c.prepare(root))
			before := tree(t, root, nil)
			_, err := files.Prepare(t.Context(), bytes.NewReader(c.archive), options(t, root))
			if !errors.Is(err, files.ErrConflict) {
				t.Errorf("error %v, want a conflict", err)
			}
			if diff := cmp.Diff(before, tree(t, root, nil)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheAsideFolderMayNotBeAmongTheRestored(t *testing.T) {
	archive := capture(t, node(t, kubefixture.Stacked))
	o := options(t, t.TempDir())
	o.AsideDir = filepath.Join(o.Root, "etc/kubernetes/manifests/aside")
	if _, err := files.Prepare(t.Context(), bytes.NewReader(archive), o); !errors.Is(err, files.ErrConflict) {
		t.Errorf("error %v, want a conflict", err)
	}
}

func FuzzPrepareNeverWrites(f *testing.F) {
	var t testing.T
	f.Add(raw(&t, dir("etc"), file("etc/a"), link("etc/l", "a")))
	f.Add(raw(&t, link("l", "../x"), file("a/b/c")))
	f.Fuzz(func(t *testing.T, archive []byte) {
		root := t.TempDir()
		p, err := files.Prepare(t.Context(), bytes.NewReader(archive), options(t, root))
		if err == nil {
			if _, err := p.Apply(t.Context(), bytes.NewReader(archive)); err != nil {
				t.Logf("apply: %v", err)
			}
			p.Close()
			return
		}
		if got := tree(t, root, nil); len(got) != 0 {
			t.Errorf("refused, and written: %v", got)
		}
	})
}
