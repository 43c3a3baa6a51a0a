//go:build deploy

package deploytest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/backup/host"
	"lifeboat/internal/config"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/seal"
)

// The pods and the unit run as root without capabilities. What that means for
// files of other owners is promised in the chart's values and in the unit.
func TestRootWithoutCapabilitiesReadsWhatRootOwnsAndSaysWhatItCouldNot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("only root can drop capabilities: run as root")
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "host")
	if err := kubefixture.Build(root, kubefixture.Options{}); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(root, "etc/kubernetes/pki/sa.key")
	if err := os.Chown(foreign, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	program, lifeboat := build(t)
	keys := filepath.Join(dir, "keys")
	lifeboat("", "init", "--cluster", "prod", "--store", "file://"+filepath.Join(dir, "store"), "--out", keys, "--host-root", root, "--node", "cp1", "--etcd", "http://127.0.0.1:1")
	config := filepath.Join(keys, "config.yaml")
	edit(t, config, "stateDir", filepath.Join(dir, "state"))
	as := func(set string, args ...string) string {
		out, err := exec.Command("setpriv", append([]string{"--no-new-privs", "--bounding-set=" + set, "--inh-caps=" + set}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("with %s: %v\n%s", set, err, out)
		}
		return string(out)
	}
	if status := as("-all", "cat", "/proc/self/status"); !strings.Contains(status, "CapEff:\t0000000000000000\n") || !strings.Contains(status, "Uid:\t0\t0\t0\t0\n") {
		t.Fatalf("not root without capabilities:\n%s", status)
	}
	// backup is what is told of a backup, and the reasons in its manifest.
	backup := func(set string) (told string, degraded []string) {
		told = as(set, program, "backup", "--config", config, "--only", "files")
		out, err := exec.Command(program, "list", "--config", config, "-o", "json").Output()
		var list []struct{ Degraded []string }
		if err == nil {
			err = json.Unmarshal(out, &list)
		}
		if err != nil || len(list) == 0 {
			t.Fatalf("list: %v\n%s", err, out)
		}
		return told, list[0].Degraded
	}
	const file = "etc/kubernetes/pki/sa.key"
	told, degraded := backup("-all")
	if !strings.Contains(told, file) || !strings.Contains(told, "degraded") {
		t.Errorf("without capabilities the missing file is not told:\n%s", told)
	}
	// For that file alone: what root owns is there, also what only its owner may read.
	other := func(why string) bool {
		return !strings.HasPrefix(why, file) || !strings.Contains(why, "permission denied")
	}
	if len(degraded) == 0 || slices.ContainsFunc(degraded, other) {
		t.Errorf("the manifest is degraded for %q", degraded)
	}
	if told, degraded := backup("-all,+dac_read_search"); strings.Contains(told, file) || len(degraded) > 0 {
		t.Errorf("with DAC_READ_SEARCH the file is missing: %q\n%s", degraded, told)
	}
}

// With host.mount: paths the pods see three folders of the host. On a kubeadm
// node these hold all that the whole root would give; what static pods name
// elsewhere is missed aloud, until its folder is mounted too.
func TestTheMountedFoldersHoldAllOfAKubeadmNodeAndTellWhatLiesElsewhere(t *testing.T) {
	var folders []string
	for _, v := range pod(t, rendered(t)).list("volumes") {
		if path, ok := v.at("hostPath.path").(string); ok && v["name"] != "state" {
			folders = append(folders, path)
		}
	}
	if len(folders) < 3 {
		t.Fatalf("the pods mount %v", folders)
	}
	for _, kind := range []kubefixture.Kind{kubefixture.Stacked, kubefixture.ExternalEtcd, kubefixture.ExtraFiles} {
		root, mounted := filepath.Join(t.TempDir(), "host"), filepath.Join(t.TempDir(), "host")
		if err := kubefixture.Build(root, kubefixture.Options{Kind: kind}); err != nil {
			t.Fatal(err)
		}
		whole, wholeFiles := captured(t, root)
		for _, folder := range folders {
			mount(t, root, mounted, folder)
		}
		if kind == kubefixture.ExtraFiles {
			some, _ := captured(t, mounted)
			told := strings.Join(some.Degraded, "\n")
			for _, want := range []string{"/opt/kube/audit/policy.yaml", "/srv/kube/encryption/config.yaml"} {
				if !strings.Contains(told, want) {
					t.Errorf("%v: nobody is told that %s is missing:\n%s", kind, want, told)
				}
			}
			mount(t, root, mounted, "/opt")
			mount(t, root, mounted, "/srv")
		}
		some, someFiles := captured(t, mounted)
		if diff := cmp.Diff(wholeFiles, someFiles); diff != "" {
			t.Errorf("%v: files differ (-root +folders):\n%s", kind, diff)
		}
		if diff := cmp.Diff(whole.Degraded, some.Degraded); diff != "" {
			t.Errorf("%v: degraded for other reasons (-root +folders):\n%s", kind, diff)
		}
	}
}

// mount moves a folder from one root to another, if it is there.
func mount(t *testing.T, from, to, folder string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(from, folder)); err != nil {
		return
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Join(to, folder)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(from, folder), filepath.Join(to, folder)); err != nil {
		t.Fatal(err)
	}
}

// captured is what a capture of a root stores.
func captured(t *testing.T, root string) (*host.Result, []string) {
	t.Helper()
	var b bytes.Buffer
	w := seal.NewArchiveWriter(&b)
	r, err := host.Capture(t.Context(), host.Options{Root: root, Node: "cp1", Resolver: deaf{}}, w)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var names []string
	archive := tar.NewReader(&b)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if len(names) < 20 {
		t.Fatalf("only %d files", len(names))
	}
	return r, names
}

// deaf resolves nothing.
type deaf struct{}

func (deaf) LookupHost(context.Context, string) ([]string, error) {
	return nil, errors.New("no resolver in this test")
}

// The documents' way from init's configuration to one that fits the pod and
// the unit.
func TestTheDocumentsEditsMakeAConfigurationThatFits(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "deploy.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, lifeboat := build(t)
	edits := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "sed -i ") {
			name := "unit"
			if strings.Contains(line, "/host") {
				name = "pod"
			}
			edits[name] = line
		}
	}
	for name, root := range map[string]string{"pod": "/host", "unit": "/"} {
		keys := filepath.Join(t.TempDir(), "kit")
		lifeboat("", "init", "--cluster", "prod", "--store", "s3://b/p", "--out", keys, "--node", "cp1")
		file := filepath.Join(keys, "config.yaml")
		edit(t, file, "stateDir", "/home/somebody/.local/state/lifeboat") // as init writes it for who is not root
		out, err := exec.Command("sh", "-c", strings.ReplaceAll(edits[name], "/etc/lifeboat/config.yaml", file)).CombinedOutput()
		if err != nil || edits[name] == "" {
			t.Fatalf("%s: %v\n%s", edits[name], err, out)
		}
		written, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		c, err := config.Parse(written)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, written)
		}
		if !c.Discover || c.Node != "" || c.Host.Root != root {
			t.Errorf("%s: discover %v, node %q, root %q", name, c.Discover, c.Node, c.Host.Root)
		}
		// What the pod mounts and the unit may write; and the nodes' role can't delete.
		if c.StateDir != "/var/lib/lifeboat" || c.Schedule.Prune != "" {
			t.Errorf("%s: stateDir %s, prune %q", name, c.StateDir, c.Schedule.Prune)
		}
	}
}
