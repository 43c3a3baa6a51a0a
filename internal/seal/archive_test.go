package seal

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.UTC)

type entry struct {
	Header
	data string
}

func node() []entry {
	return []entry{
		{Header{Name: "lifeboat/facts.json", Type: TypeFile, Mode: 0o600, ModTime: noon, Size: 2}, "{}"},
		{Header{Name: "etc", Type: TypeDir, Mode: 0o755, ModTime: noon}, ""},
		{Header{Name: "etc/kubernetes", Type: TypeDir, Mode: 0o750 | fs.ModeSetgid, ModTime: noon}, ""},
		{Header{Name: "etc/kubernetes/pki/ca.key", Type: TypeFile, Mode: 0o600, UID: 1000, GID: 3000000000, ModTime: noon, Size: 6}, "secret"},
		{Header{Name: "etc/kubernetes/pki/" + strings.Repeat("long", 40) + ".crt", Type: TypeFile, Mode: 0o444, ModTime: noon.Add(-40 * 365 * 24 * time.Hour)}, ""},
		{Header{Name: "etc/kubernetes/pki/größe 1.crt", Type: TypeFile, Mode: 0o644, ModTime: noon, Size: 1000}, strings.Repeat("\x00", 1000)},
		{Header{Name: "var/lib/kubelet/pki/kubelet-client-current.pem", Type: TypeSymlink, Mode: 0o777, ModTime: noon,
			Linkname: "/var/lib/kubelet/pki/kubelet-client-2026-11-21-12-00-00.pem"}, ""},
		{Header{Name: "links/escape", Type: TypeSymlink, Mode: 0o777, ModTime: noon, Linkname: "../../../x\\y"}, ""},
		{Header{Name: "var", Type: TypeDir, Mode: 0o755, ModTime: noon}, ""}, // after what lies below it
	}
}

func archive(t testing.TB, entries []entry) []byte {
	t.Helper()
	var out bytes.Buffer
	a := NewArchiveWriter(&out)
	for _, e := range entries {
		var err error
		switch e.Type {
		case TypeFile:
			err = a.AddFile(e.Header, strings.NewReader(e.data))
		case TypeDir:
			err = a.AddDir(e.Header)
		case TypeSymlink:
			err = a.AddSymlink(e.Header)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func readArchive(r io.Reader, limits Limits) ([]entry, error) {
	a := NewArchiveReader(r, limits)
	var entries []entry
	for {
		h, err := a.Next()
		if err == io.EOF {
			return entries, nil
		}
		if err != nil {
			if _, again := a.Next(); again != err {
				return nil, errors.New("Next goes on after an error")
			}
			return entries, err
		}
		data, err := io.ReadAll(a)
		if err != nil {
			return entries, err
		}
		entries = append(entries, entry{*h, string(data)})
	}
}

func TestAnArchiveReadsAsItWasWritten(t *testing.T) {
	text := archive(t, node())
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(text), "byte by byte": iotest.OneByteReader(bytes.NewReader(text)),
		"padded as tar pads": io.MultiReader(bytes.NewReader(text), bytes.NewReader(make([]byte, 10240))),
	} {
		got, err := readArchive(r, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(node(), got, cmp.AllowUnexported(entry{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if _, err := readArchive(bytes.NewReader(archive(t, nil)), Limits{}); err != nil {
		t.Errorf("an empty archive: %v", err)
	}
	// Skipping the files' bytes comes to the same end.
	a := NewArchiveReader(bytes.NewReader(text), Limits{})
	for {
		if _, err := a.Next(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestStockTarExtractsAnArchive(t *testing.T) {
	need(t, "tar")
	dir := t.TempDir()
	entries := node()
	if os.Geteuid() != 0 {
		t.Log("not root: owners are not compared")
	}
	run(t, archive(t, entries), "tar", "x", "-p", "-C", dir)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name)
		info, err := os.Lstat(name)
		if err != nil {
			t.Error(err)
			continue
		}
		sys := info.Sys().(*syscall.Stat_t)
		if os.Geteuid() == 0 && (int(sys.Uid) != e.UID || int(sys.Gid) != e.GID) {
			t.Errorf("%s: owner %d:%d", e.Name, sys.Uid, sys.Gid)
		}
		if !info.ModTime().Equal(e.ModTime) {
			t.Errorf("%s: modified %s", e.Name, info.ModTime())
		}
		if got := info.Mode() &^ fs.ModeType; e.Type != TypeSymlink && got != e.Mode {
			t.Errorf("%s: mode %v, want %v", e.Name, got, e.Mode)
		}
		switch e.Type {
		case TypeFile:
			if data, err := os.ReadFile(name); err != nil || string(data) != e.data {
				t.Errorf("%s: %q, %v", e.Name, data, err)
			}
		case TypeDir:
			if !info.IsDir() {
				t.Errorf("%s is no directory", e.Name)
			}
		case TypeSymlink:
			if target, err := os.Readlink(name); err != nil || target != e.Linkname {
				t.Errorf("%s -> %q, %v", e.Name, target, err)
			}
		}
	}
}

func TestWhatStockTarWritesReads(t *testing.T) {
	need(t, "tar")
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "a/b"), 0o755)
	os.WriteFile(filepath.Join(dir, "a/b/c"), []byte("data"), 0o600)
	os.Symlink("b/c", filepath.Join(dir, "a/l"))
	for _, format := range []string{"posix", "ustar"} {
		got, err := readArchive(bytes.NewReader(run(t, nil, "tar", "c", "--format="+format, "-C", dir, "a")), Limits{})
		if err != nil || len(got) != 4 {
			t.Errorf("%s: %d entries, %v", format, len(got), err)
		}
	}
}

// raw writes what only a hostile program would.
func raw(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write(make([]byte, h.Size))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func hostile(t testing.TB) map[string][]byte {
	file := func(name string) tar.Header { return tar.Header{Name: name, Mode: 0o644} }
	dir := func(name string) tar.Header { return tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Mode: 0o777, Typeflag: tar.TypeSymlink}
	}
	with := func(h tar.Header, edit func(*tar.Header)) tar.Header {
		edit(&h)
		return h
	}
	special := func(flag byte) []byte {
		return raw(t, file("before"), tar.Header{Name: "hostile", Mode: 0o644, Typeflag: flag, Linkname: map[bool]string{true: "before"}[flag == tar.TypeLink]})
	}
	return map[string][]byte{
		"traversal":                          raw(t, file("before"), file("../hostile")),
		"traversal inside":                   raw(t, file("a/../../hostile")),
		"a name that is not clean":           raw(t, file("a/./hostile")),
		"two slashes":                        raw(t, file("a//hostile")),
		"a current folder's prefix":          raw(t, file("./hostile")),
		"absolute":                           raw(t, file("/hostile")),
		"a backslash":                        raw(t, file(`..\hostile`)),
		"a newline":                          raw(t, file("hostile\nname")),
		"an escape":                          raw(t, file("hostile\x1b[2J")),
		"a control sequence of one sign":     raw(t, file("hostile\u009b2J")),
		"a next line":                        raw(t, file("hostile\u0085")),
		"a turn of direction":                raw(t, file("hostile\u202etxt")),
		"a space of no width":                raw(t, file("hostile\u200b")),
		"a line separator":                   raw(t, file("hostile\u2028")),
		"a link to a turn of direction":      raw(t, link("hostile", "a\u202eb")),
		"a link to a control sequence":       raw(t, link("hostile", "a\u009b2Jb")),
		"a name too deep":                    raw(t, file(strings.Repeat("d/", maxDepth)+"hostile")),
		"implied folders past a limit":       raw(t, file("a/b/c/d/e/hostile")),
		"folders implied one by one":         raw(t, file("a/b/c"), file("a/d/e/hostile")),
		"not UTF-8":                          raw(t, file("hostile\xff")),
		"the root itself":                    raw(t, dir("./")),
		"a folder with two slashes":          raw(t, dir("hostile//")),
		"an element too long":                raw(t, file("hostile"+strings.Repeat("x", 300))),
		"a name too long":                    raw(t, file(strings.Repeat("hostile/", 600)+"x")),
		"a file twice":                       raw(t, file("hostile"), file("hostile")),
		"a folder twice":                     raw(t, dir("hostile/"), dir("hostile/")),
		"a file, then a folder":              raw(t, file("hostile"), dir("hostile/")),
		"a folder, then a file":              raw(t, dir("hostile/"), file("hostile")),
		"a folder, then a link":              raw(t, dir("hostile/"), link("hostile", "/etc")),
		"an implied folder, then a link":     raw(t, file("hostile/a"), link("hostile", "/etc")),
		"a link twice":                       raw(t, link("hostile", "a"), link("hostile", "b")),
		"written through a link":             raw(t, link("a", "/etc"), file("a/hostile")),
		"written deep through a link":        raw(t, dir("a/"), link("a/b", "/etc"), file("a/b/c/d/hostile")),
		"a folder through a link":            raw(t, link("a", "/etc"), dir("a/hostile/")),
		"below a file":                       raw(t, file("a"), file("a/hostile")),
		"a hard link":                        special(tar.TypeLink),
		"a character device":                 special(tar.TypeChar),
		"a block device":                     special(tar.TypeBlock),
		"a fifo":                             special(tar.TypeFifo),
		"a contiguous file":                  special(tar.TypeCont),
		"an unknown type":                    special('Z'),
		"setuid":                             raw(t, with(file("hostile"), func(h *tar.Header) { h.Mode = 0o4755 })),
		"setgid":                             raw(t, with(file("hostile"), func(h *tar.Header) { h.Mode = 0o2755 })),
		"sticky":                             raw(t, with(file("hostile"), func(h *tar.Header) { h.Mode = 0o1755 })),
		"a setuid folder":                    raw(t, with(dir("hostile/"), func(h *tar.Header) { h.Mode = 0o4755 })),
		"a mode beyond the bits":             raw(t, with(file("hostile"), func(h *tar.Header) { h.Mode = 0o100644 })),
		"a link with no target":              raw(t, link("hostile", "")),
		"a link to control characters":       raw(t, link("hostile", "a\x1bb")),
		"a negative owner":                   raw(t, with(file("hostile"), func(h *tar.Header) { h.Uid = -1; h.Format = tar.FormatGNU })),
		"an owner that chown takes for none": raw(t, with(file("hostile"), func(h *tar.Header) { h.Uid = 1<<32 - 1 })),
		"an extended attribute": raw(t, with(file("hostile"), func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "x"}
		})),
		"a character set":     raw(t, with(file("hostile"), func(h *tar.Header) { h.PAXRecords = map[string]string{"hdrcharset": "BINARY"} })),
		"a vendor's record":   raw(t, with(file("hostile"), func(h *tar.Header) { h.PAXRecords = map[string]string{"VENDOR.key": "x"} })),
		"a global header":     raw(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "hostile", PAXRecords: map[string]string{"path": "/hostile"}}, file("a")),
		"GNU's format":        raw(t, with(file("hostile"), func(h *tar.Header) { h.Format = tar.FormatGNU })),
		"a file past a limit": raw(t, with(file("hostile"), func(h *tar.Header) { h.Size = 5001 })),
		"files past a limit": raw(t, with(file("a"), func(h *tar.Header) { h.Size = 4000 }),
			with(file("hostile"), func(h *tar.Header) { h.Size = 1001 })),
		"entries past a limit": raw(t, file("a"), file("b"), file("c"), file("d"), file("e"), file("hostile")),
	}
}

func TestHostileArchivesAreRefusedAtNext(t *testing.T) {
	for name, text := range hostile(t) {
		_, err := readArchive(bytes.NewReader(text), Limits{Files: 5, Bytes: 5000})
		var refused *RefusedError
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if name != "the root itself" && !strings.Contains(refused.Name, "hostile") {
			t.Errorf("%s: names entry %q", name, refused.Name)
		}
	}
}

// A folder that a name implied before its own entry came counts once.
func TestNamesUpToTheLimitsAreTaken(t *testing.T) {
	text := raw(t, tar.Header{Name: "a/b/c", Mode: 0o644}, tar.Header{Name: "a/b/", Mode: 0o755, Typeflag: tar.TypeDir},
		tar.Header{Name: "a/", Mode: 0o755, Typeflag: tar.TypeDir}, tar.Header{Name: "a/b/d", Mode: 0o644})
	if got, err := readArchive(bytes.NewReader(text), Limits{Files: 4}); err != nil || len(got) != 4 {
		t.Errorf("%d entries, %v", len(got), err)
	}
	deep := strings.Repeat("d/", maxDepth-1) + "x"
	if got, err := readArchive(bytes.NewReader(raw(t, tar.Header{Name: deep, Mode: 0o644})), Limits{Files: maxDepth}); err != nil || len(got) != 1 {
		t.Errorf("%d entries, %v", len(got), err)
	}
	for _, name := range []string{"grüße/日本/u\u0308", "a\u00a0b c"} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
}

// patched has one header's bytes changed and its checksum made good again.
func patched(text []byte, at int, value string) []byte {
	text = bytes.Clone(text)
	copy(text[at:], value)
	copy(text[148:156], "        ")
	sum := 0
	for _, b := range text[:512] {
		sum += int(b)
	}
	copy(text[148:156], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
	return text
}

func TestBrokenArchivesAreDamage(t *testing.T) {
	good := archive(t, []entry{{Header{Name: "a", Mode: 0o600, Type: TypeFile, ModTime: noon.Truncate(time.Second), Size: 2048}, strings.Repeat("\x00", 2048)}})
	for name, text := range map[string][]byte{
		"nothing":                       nil,
		"junk":                          bytes.Repeat([]byte("junk"), 1000),
		"a wrong checksum":              append([]byte("b"), good[1:]...),
		"no end":                        good[:512+2048],
		"half an end":                   good[:512+2048+512],
		"a cut file":                    good[:512+1000],
		"a cut header":                  good[:100],
		"something after the end":       append(bytes.Clone(good), "x"...),
		"an archive after the end":      append(bytes.Clone(good), good...),
		"a size that is negative":       patched(good, 124, "-0000004000\x00"),
		"a size past the end":           patched(good, 124, "00000100000\x00"),
		"a sparse map that is not one":  patched(good, 156, "S"),
		"an extended header that isn't": patched(good, 156, "x"),
	} {
		if _, err := readArchive(bytes.NewReader(text), Limits{}); err == nil {
			t.Errorf("%s: no error", name)
		} else if refused := (*RefusedError)(nil); !errors.Is(err, ErrDamaged) && !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range good {
		if _, err := readArchive(bytes.NewReader(good[:n]), Limits{}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	cause := errors.New("connection reset")
	if _, err := readArchive(io.MultiReader(bytes.NewReader(good[:700]), iotest.ErrReader(cause)), Limits{}); !errors.Is(err, cause) || errors.Is(err, ErrDamaged) {
		t.Errorf("a failing source: %v", err)
	}
}

func TestTheEndOfAnArchiveIsTheEndOfItsSeal(t *testing.T) {
	id := identity(t)
	stored, sums := sealed(t, archive(t, node()), id.Recipient())
	sums.StoredSHA256[0] ^= 1
	r, err := NewReader(bytes.NewReader(stored), sums, id)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readArchive(r, Limits{}); !errors.Is(err, ErrDamaged) || len(got) != len(node()) {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

func TestTheWriterRefusesWhatTheReaderWould(t *testing.T) {
	var out bytes.Buffer
	a := NewArchiveWriter(&out)
	ok := Header{Name: "a/link", Linkname: "/etc", Mode: 0o777, ModTime: noon}
	if err := a.AddSymlink(ok); err != nil {
		t.Fatal(err)
	}
	if err := a.AddFile(Header{Name: "file", Size: 1, ModTime: noon}, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	written := out.Len()
	for name, h := range map[string]Header{
		"absolute":               {Name: "/a"},
		"traversal":              {Name: "../a"},
		"a turn of direction":    {Name: "a\u202eb"},
		"too deep":               {Name: strings.Repeat("d/", maxDepth) + "x"},
		"a backslash":            {Name: `dev-disk\x2dby.mount`},
		"empty":                  {},
		"the root":               {Name: "."},
		"taken":                  {Name: "file"},
		"through a link":         {Name: "a/link/b/c"},
		"through a link, again":  {Name: "a/link/b/d"},
		"below a file":           {Name: "file/b"},
		"setuid":                 {Name: "b", Mode: 0o755 | fs.ModeSetuid},
		"a device":               {Name: "b", Mode: fs.ModeDevice},
		"a negative size":        {Name: "b", Size: -1},
		"a negative owner":       {Name: "b", UID: -1},
		"a target without link":  {Name: "b", Linkname: "c"},
		"a year that is too far": {Name: "b", ModTime: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		var refused *RefusedError
		if err := a.AddFile(h, strings.NewReader("")); !errors.As(err, &refused) || refused.Name != h.Name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if out.Len() != written {
		t.Error("a refused entry wrote something")
	}
	if err := a.AddDir(Header{Name: "later", Mode: 0o755, ModTime: noon}); err != nil {
		t.Errorf("a refusal ends the archive: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if got, err := readArchive(&out, Limits{}); err != nil || len(got) != 3 {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

func TestAFileThatChangesItsSizeSpoilsTheArchive(t *testing.T) {
	for name, data := range map[string]string{"shorter": "1234", "longer": "123456"} {
		a := NewArchiveWriter(io.Discard)
		if err := a.AddFile(Header{Name: "a", Size: 5, ModTime: noon}, strings.NewReader(data)); err == nil {
			t.Errorf("%s: no error", name)
		}
		if a.AddDir(Header{Name: "b", ModTime: noon}) == nil || a.Close() == nil {
			t.Errorf("%s: the archive goes on", name)
		}
	}
}

func FuzzArchiveReader(f *testing.F) {
	f.Add(archive(f, node()))
	for _, text := range hostile(f) {
		if len(text) < 32<<10 {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := readArchive(bytes.NewReader(text), Limits{Files: 100, Bytes: 1 << 20})
		if err != nil {
			var refused *RefusedError
			if !errors.Is(err, ErrDamaged) && !errors.As(err, &refused) {
				t.Fatalf("an unknown refusal: %v", err)
			}
			return
		}
		// Whatever is accepted can be written again, and says the same.
		for i := range entries {
			if entries[i].ModTime.Before(time.Unix(0, 0)) {
				return // tar keeps these only roughly
			}
		}
		again, err := readArchive(bytes.NewReader(archive(t, entries)), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(entries, again, cmp.AllowUnexported(entry{})); diff != "" {
			t.Fatal(diff)
		}
	})
}
