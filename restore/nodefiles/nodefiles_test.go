package nodefiles_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/backup/host"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/seal"
	"lifeboat/restore/files"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/pki"
	"lifeboat/restore/readdress"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

type noDNS struct{}

func (noDNS) LookupHost(context.Context, string) ([]string, error) { return nil, nil }

// saved is a node and the archive of its files.
func saved(t *testing.T, kind kubefixture.Kind) (root string, archive []byte) {
	t.Helper()
	root = t.TempDir()
	check(t, kubefixture.Build(root, kubefixture.Options{Kind: kind, Now: now}))
	var out bytes.Buffer
	w := seal.NewArchiveWriter(&out)
	_, err := host.Capture(t.Context(), host.Options{
		Root: root, Node: "cp1", Now: func() time.Time { return now.Add(time.Hour) }, Resolver: noDNS{}, Wait: time.Millisecond,
		Addresses: func() ([]host.Address, error) { return nil, nil },
	}, w)
	check(t, err)
	check(t, w.Close())
	return root, out.Bytes()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stage(t *testing.T, archive []byte, change ...func(*nodefiles.Options)) (*nodefiles.Staged, error) {
	t.Helper()
	o := nodefiles.Options{Dir: t.TempDir(), Now: func() time.Time { return now.Add(2 * time.Hour) }, Rand: rand.Reader}
	for _, c := range change {
		c(&o)
	}
	return nodefiles.Stage(t.Context(), bytes.NewReader(archive), o)
}

// look is what is compared of one name.
type look struct {
	Mode    fs.FileMode
	Time    time.Time
	Content string
}

func tree(t *testing.T, root string) map[string]look {
	t.Helper()
	out := map[string]look{}
	check(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, p)
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		l := look{Mode: info.Mode()}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			l.Content, err = os.Readlink(p)
		case info.Mode().IsRegular():
			var text []byte
			text, err = os.ReadFile(p)
			l.Content, l.Time = string(text), info.ModTime()
		}
		out[name] = l
		return err
	}))
	return out
}

// put restores a plain archive below an empty root.
func put(t *testing.T, archive string) map[string]look {
	t.Helper()
	f, err := os.Open(archive)
	check(t, err)
	defer f.Close()
	root := t.TempDir()
	plan, err := files.Prepare(t.Context(), f, files.Options{Root: root, AsideDir: t.TempDir(), RestoreID: "x"})
	check(t, err)
	defer plan.Close()
	_, err = f.Seek(0, io.SeekStart)
	check(t, err)
	_, err = plan.Apply(t.Context(), f)
	check(t, err)
	return tree(t, root)
}

func TestWithoutNewNamesTheFilesComeBackAsTheyWere(t *testing.T) {
	_, archive := saved(t, kubefixture.Stacked)
	plain := filepath.Join(t.TempDir(), "plain.tar")
	check(t, os.WriteFile(plain, archive, 0o600))
	want := put(t, plain)

	s, err := stage(t, archive)
	check(t, err)
	got := put(t, s.Archive())
	for name, l := range tree(t, s.Manifests()) {
		got[filepath.Join("etc/kubernetes/manifests", name)] = l
	}
	delete(want, "etc/kubernetes/manifests") // the folder itself is kubelet's affair
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what comes back differs (-as saved +as staged):\n%s", diff)
	}
	if s.Home != "/etc/kubernetes/manifests" || len(s.Rewritten) > 0 || len(s.Issued) > 0 || s.Etcd.Name != "cp1" {
		t.Errorf("home %q, rewritten %v, etcd %+v", s.Home, s.Rewritten, s.Etcd)
	}
}

func TestANodeThatMovesGetsItsNewNameAndAddressEverywhere(t *testing.T) {
	root, archive := saved(t, kubefixture.Stacked)
	old := addressOf(t, root)
	mapping, err := readdress.New(readdress.Options{Names: []string{"cp1=cp4"}, Addresses: []string{old + "=10.9.8.7"}})
	check(t, err)
	s, err := stage(t, archive, func(o *nodefiles.Options) {
		o.Mapping, o.Names = mapping, map[string]string{"cp1": "cp4"}
		o.Addresses = map[netip.Addr]netip.Addr{netip.MustParseAddr(old): netip.MustParseAddr("10.9.8.7")}
	})
	check(t, err)
	if s.Etcd.Name != "cp4" || s.Etcd.PeerURLs != "https://10.9.8.7:2380" {
		t.Errorf("etcd is %q at %s", s.Etcd.Name, s.Etcd.PeerURLs)
	}
	if s.Facts.Etcd.Name != "cp1" {
		t.Errorf("the facts of the old machine name %q", s.Facts.Etcd.Name)
	}
	manifest, err := os.ReadFile(filepath.Join(s.Manifests(), "etcd.yaml"))
	check(t, err)
	if strings.Contains(string(manifest), old) || !strings.Contains(string(manifest), "--name=cp4") {
		t.Errorf("etcd's manifest:\n%s", manifest)
	}
	text, err := s.Read("/etc/kubernetes/pki/etcd/peer.crt")
	check(t, err)
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	check(t, err)
	if !slices.Contains(cert.DNSNames, "cp4") || slices.Contains(cert.DNSNames, "cp1") || cert.VerifyHostname("10.9.8.7") != nil {
		t.Errorf("etcd's peer certificate is for %v %v", cert.DNSNames, cert.IPAddresses)
	}
	if len(s.Rewritten) == 0 {
		t.Error("nothing is told of what was rewritten")
	}
}

func addressOf(t *testing.T, root string) string {
	t.Helper()
	d, err := host.Discover(root)
	check(t, err)
	return strings.TrimSuffix(strings.TrimPrefix(d.PeerURLs, "https://"), ":2380")
}

func TestWhatIsStagedIsFoundAgainAndCanBeMoved(t *testing.T) {
	_, archive := saved(t, kubefixture.Stacked)
	parent := t.TempDir()
	dir, to := filepath.Join(parent, "first"), filepath.Join(parent, "second")
	check(t, os.Mkdir(dir, 0o700))
	if _, err := nodefiles.Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing is staged: %v", err)
	}
	s, err := stage(t, archive, func(o *nodefiles.Options) { o.Dir = dir })
	check(t, err)
	check(t, s.Move(to))
	again, err := nodefiles.Load(to)
	check(t, err)
	if diff := cmp.Diff(put(t, s.Archive()), put(t, again.Archive())); diff != "" || again.Etcd.Name != "cp1" || again.Home != s.Home || again.Manifests() != filepath.Join(to, "manifests") {
		t.Errorf("loaded: %+v\n%s", again, diff)
	}
	check(t, os.WriteFile(filepath.Join(to, "staged.json"), []byte("{}"), 0o600))
	if _, err := nodefiles.Load(to); !errors.Is(err, nodefiles.ErrNoFacts) {
		t.Errorf("a record of nothing: %v", err)
	}
}

func TestWhatIsNoArchiveOfANodeIsRefused(t *testing.T) {
	var other bytes.Buffer
	w := seal.NewArchiveWriter(&other)
	check(t, w.AddFile(seal.Header{Name: "etc/passwd", Mode: 0o644, Size: 0, ModTime: now}, strings.NewReader("")))
	check(t, w.Close())
	if _, err := stage(t, other.Bytes()); !errors.Is(err, nodefiles.ErrNoFacts) {
		t.Errorf("without facts: %v", err)
	}
	_, archive := saved(t, kubefixture.Stacked)
	if _, err := stage(t, archive[:len(archive)/2]); err == nil {
		t.Error("half an archive was taken for one")
	}
	_, err := stage(t, archive, func(o *nodefiles.Options) { o.Now = func() time.Time { return now.AddDate(30, 0, 0) } })
	var authority *pki.AuthorityError
	if !errors.As(err, &authority) {
		t.Errorf("with an expired CA: %v", err)
	}
}

func TestWhatIsStagedIsForItsOwnerAlone(t *testing.T) {
	_, archive := saved(t, kubefixture.Stacked)
	dir := filepath.Join(t.TempDir(), "staged")
	check(t, os.Mkdir(dir, 0o700))
	s, err := stage(t, archive, func(o *nodefiles.Options) { o.Dir = dir })
	check(t, err)
	for _, path := range []string{s.Archive(), s.Tree()} {
		info, err := os.Stat(path)
		check(t, err)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
	for _, gone := range []string{"saved.tar", "replaced"} {
		if _, err := os.Stat(filepath.Join(dir, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", gone, err)
		}
	}
}
