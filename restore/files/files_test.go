package files_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/backup/host"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/seal"
	"lifeboat/restore/files"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// capture archives a fixture's node.
func capture(t *testing.T, root string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := seal.NewArchiveWriter(&out)
	_, err := host.Capture(t.Context(), host.Options{
		Root: root, Node: "cp1", Now: func() time.Time { return now.Add(time.Hour) }, Resolver: noDNS{}, Wait: time.Millisecond,
		Addresses: func() ([]host.Address, error) { return nil, nil },
	}, w)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type noDNS struct{}

func (noDNS) LookupHost(context.Context, string) ([]string, error) { return nil, nil }

func node(t *testing.T, kind kubefixture.Kind) string {
	t.Helper()
	root := t.TempDir()
	if err := kubefixture.Build(root, kubefixture.Options{Kind: kind, Now: now}); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // owners that a restore must bring back
		for name, id := range map[string]int{"etc/kubernetes/pki/sa.key": 1234, "etc/kubernetes/pki": 77, "var/lib/kubelet/pki/kubelet-client-current.pem": 55} {
			must(t, os.Lchown(filepath.Join(root, name), id, id+1))
		}
	}
	return root
}

// look is what is compared of one name.
type look struct {
	Mode     fs.FileMode
	UID, GID uint32
	Time     time.Time
	Content  string
}

// tree returns everything below root that the archive holds, or everything.
func tree(t *testing.T, root string, only map[string]bool) map[string]look {
	t.Helper()
	out := map[string]look{}
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		if err != nil || name == "." || only != nil && !only[name] {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		l := look{Mode: info.Mode(), UID: st.Uid, GID: st.Gid, Time: info.ModTime().UTC()}
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			l.Content = string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			if l.Content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		out[name] = l
		return nil
	}))
	return out
}

func namesIn(t *testing.T, archive []byte) map[string]bool {
	t.Helper()
	list, err := files.List(t.Context(), bytes.NewReader(archive), seal.Limits{})
	must(t, err)
	out := map[string]bool{}
	for _, h := range list {
		if !strings.HasPrefix(h.Name, "lifeboat") {
			out[h.Name] = true
		}
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func options(t *testing.T, root string, include ...string) files.Options {
	t.Helper()
	return files.Options{Root: root, AsideDir: filepath.Join(t.TempDir(), "aside"), RestoreID: "r1", Include: include}
}

// restore prepares and applies.
func restore(t *testing.T, archive []byte, o files.Options) (*files.Plan, *files.Result) {
	t.Helper()
	p, err := files.Prepare(t.Context(), bytes.NewReader(archive), o)
	must(t, err)
	defer p.Close()
	r, err := p.Apply(t.Context(), bytes.NewReader(archive))
	must(t, err)
	return p, r
}

func TestACapturedNodeIsRestoredAsItWas(t *testing.T) {
	for _, kind := range []kubefixture.Kind{kubefixture.Stacked, kubefixture.ExternalEtcd, kubefixture.ExtraFiles} {
		t.Run(kind.String(), func(t *testing.T) {
			from, to := node(t, kind), t.TempDir()
			archive := capture(t, from)
			names := namesIn(t, archive)
			if len(names) < 60 {
				t.Fatalf("only %d names were captured", len(names))
			}
			o := options(t, to)
			p, r := restore(t, archive, o)
			if p.Count(files.Create) != len(names) || r.Created != len(names) || r.Replaced+r.Adjusted+r.Identical != 0 || len(p.Warnings) != 0 || len(p.Left) != 0 {
				t.Errorf("%d names, result %+v, warnings %q, left %q", len(names), r, p.Warnings, p.Left)
			}
			want := tree(t, from, names)
			if diff := cmp.Diff(want, tree(t, to, nil)); diff != "" {
				t.Errorf("the restored tree differs (-host +restored):\n%s", diff)
			}
			if _, err := os.Lstat(o.AsideDir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("an aside folder without anything aside: %v", err)
			}

			p, r = restore(t, archive, o)
			if p.Count(files.Identical) != len(names) || r.Identical != len(names) || r.Created+r.Replaced+r.Adjusted != 0 {
				t.Errorf("a second run: %+v", r)
			}
			if diff := cmp.Diff(want, tree(t, to, nil)); diff != "" {
				t.Errorf("a second run changed the tree:\n%s", diff)
			}
		})
	}
}

func TestWhatDiffersGoesAsideAndOthersStay(t *testing.T) {
	from := node(t, kubefixture.Stacked)
	archive := capture(t, from)
	names := namesIn(t, archive)
	to := t.TempDir()
	restore(t, archive, options(t, to))
	at := func(name string) string { return filepath.Join(to, name) }

	must(t, os.WriteFile(at("etc/kubernetes/pki/ca.crt"), []byte("another"), 0o640))
	must(t, os.Remove(at("etc/kubernetes/admin.conf")))
	must(t, os.Symlink("/somewhere", at("etc/kubernetes/admin.conf")))
	must(t, os.Remove(at("var/lib/kubelet/pki/kubelet-client-current.pem")))
	must(t, os.Symlink("/var/lib/kubelet/pki/old.pem", at("var/lib/kubelet/pki/kubelet-client-current.pem")))
	must(t, os.RemoveAll(at("etc/cni/net.d")))
	must(t, os.WriteFile(at("etc/cni/net.d"), []byte("a file where a folder was"), 0o600))
	must(t, os.Chmod(at("etc/kubernetes/pki/sa.key"), 0o644))
	must(t, os.WriteFile(at("etc/kubernetes/manifests/intruder.yaml"), []byte("kind: Pod"), 0o600))
	must(t, os.WriteFile(at("etc/passwd"), []byte("root"), 0o644)) // not a restored folder's

	o := options(t, to)
	p, r := restore(t, archive, o)
	if diff := cmp.Diff([]string{"etc/kubernetes/manifests/intruder.yaml"}, p.Left); diff != "" {
		t.Errorf("left:\n%s", diff)
	}
	if r.Replaced != 4 || r.Created != 1 {
		t.Errorf("result %+v", r)
	}
	got := tree(t, filepath.Join(o.AsideDir, "r1"), nil)
	var aside []string
	for name, l := range got {
		if !l.Mode.IsDir() {
			aside = append(aside, name+" "+l.Mode.String()+" "+l.Content)
		} else if l.Mode.Perm() != 0o700 {
			t.Errorf("the aside folder %s has mode %v", name, l.Mode)
		}
	}
	slices.Sort(aside)
	if diff := cmp.Diff([]string{
		"etc/cni/net.d -rw------- a file where a folder was",
		"etc/kubernetes/admin.conf Lrwxrwxrwx /somewhere",
		"etc/kubernetes/pki/ca.crt -rw-r--r-- another",
		"var/lib/kubelet/pki/kubelet-client-current.pem Lrwxrwxrwx /var/lib/kubelet/pki/old.pem",
	}, aside); diff != "" {
		t.Errorf("aside:\n%s", diff)
	}
	restored := tree(t, to, names)
	delete(restored, "etc") // holds passwd: its time is the machine's
	want := tree(t, from, names)
	delete(want, "etc")
	if diff := cmp.Diff(want, restored); diff != "" {
		t.Errorf("the restored tree differs:\n%s", diff)
	}
	for _, stray := range []string{"etc/kubernetes/manifests/intruder.yaml", "etc/passwd"} {
		if _, err := os.Stat(at(stray)); err != nil {
			t.Error(err)
		}
	}
	must(t, os.WriteFile(at("etc/kubernetes/pki/ca.crt"), []byte("a third"), 0o640))
	restore(t, archive, o)
	if data, err := os.ReadFile(filepath.Join(o.AsideDir, "r1/etc/kubernetes/pki/ca.crt.1")); string(data) != "a third" {
		t.Errorf("the second file aside: %q, %v", data, err)
	}
}

func TestInclude(t *testing.T) {
	from := node(t, kubefixture.Stacked)
	archive := capture(t, from)
	for _, c := range []struct {
		name    string
		include []string
		want    []string
		warn    bool
		err     error
	}{
		{name: "one file with the folders above it", include: []string{"/etc/kubernetes/pki/sa.key"}, want: []string{"etc", "etc/kubernetes", "etc/kubernetes/pki", "etc/kubernetes/pki/sa.key"}},
		{name: "a folder with all in it", include: []string{"etc/cni"}, want: []string{"etc", "etc/cni", "etc/cni/net.d", "etc/cni/net.d/10-flannel.conflist"}},
		{name: "a pattern", include: []string{"etc/kubernetes/*admin.conf"}, want: []string{"etc", "etc/kubernetes", "etc/kubernetes/admin.conf", "etc/kubernetes/super-admin.conf"}},
		{name: "a link without its target is told", include: []string{"var/lib/kubelet/pki/kubelet-client-current.pem"}, warn: true,
			want: []string{"var", "var/lib", "var/lib/kubelet", "var/lib/kubelet/pki", "var/lib/kubelet/pki/kubelet-client-current.pem"}},
		{name: "nothing that matches", include: []string{"etc/cni", "etc/none"}, err: files.ErrNoMatch},
		{name: "the facts are no file of the host", include: []string{"lifeboat/facts.json"}, err: files.ErrNoMatch},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := t.TempDir()
			p, err := files.Prepare(t.Context(), bytes.NewReader(archive), options(t, to, c.include...))
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			defer p.Close()
			_, err = p.Apply(t.Context(), bytes.NewReader(archive))
			must(t, err)
			var got []string
			for name := range tree(t, to, nil) {
				got = append(got, name)
			}
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if (len(p.Warnings) > 0) != c.warn {
				t.Errorf("warnings %q", p.Warnings)
			}
			if diff := cmp.Diff(tree(t, from, setOf(c.want)), tree(t, to, nil)); diff != "" {
				t.Errorf("modes, owners or times differ:\n%s", diff)
			}
		})
	}
}

func setOf(names []string) map[string]bool {
	out := map[string]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
}

func TestPreparingTouchesNothing(t *testing.T) {
	archive := capture(t, node(t, kubefixture.Stacked))
	to := t.TempDir()
	p, err := files.Prepare(t.Context(), bytes.NewReader(archive), options(t, to))
	must(t, err)
	defer p.Close()
	if got := tree(t, to, nil); len(got) != 0 {
		t.Errorf("prepared, and there is %v", got)
	}
}

func TestListAndCat(t *testing.T) {
	from := node(t, kubefixture.Stacked)
	archive := capture(t, from)
	want, err := os.ReadFile(filepath.Join(from, "etc/kubernetes/pki/ca.crt"))
	must(t, err)
	var out bytes.Buffer
	must(t, files.Cat(t.Context(), bytes.NewReader(archive), "/etc/kubernetes/pki/ca.crt", &out, seal.Limits{}))
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("cat yields %q", out.Bytes())
	}
	var link *files.LinkError
	err = files.Cat(t.Context(), bytes.NewReader(archive), "var/lib/kubelet/pki/kubelet-client-current.pem", &out, seal.Limits{})
	if !errors.As(err, &link) || link.Target != "var/lib/kubelet/pki/kubelet-client-2026-11-20-12-00-00.pem" {
		t.Errorf("cat of a link: %v", err)
	}
	if err := files.Cat(t.Context(), bytes.NewReader(archive), "etc/none", &out, seal.Limits{}); !errors.Is(err, files.ErrNotFound) {
		t.Errorf("cat of nothing: %v", err)
	}
	if err := files.Cat(t.Context(), bytes.NewReader(archive), "etc", &out, seal.Limits{}); err == nil {
		t.Error("cat of a folder succeeded")
	}
	if err := files.Cat(t.Context(), bytes.NewReader(archive[:len(archive)-2000]), "etc/kubernetes/pki/ca.crt", &out, seal.Limits{}); err == nil {
		t.Error("cat from a truncated archive succeeded")
	}
}
