//go:build deploy

package deploytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/kubefixture"
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
	lifeboat := build(t, dir)
	keys := filepath.Join(dir, "keys")
	lifeboat("", "init", "--cluster", "prod", "--store", "file://"+filepath.Join(dir, "store"), "--out", keys, "--host-root", root, "--node", "cp1", "--etcd", "http://127.0.0.1:1")
	config := filepath.Join(keys, "config.yaml")
	edit(t, config, "stateDir", filepath.Join(dir, "state"))
	backup := func(set string) string {
		out, err := exec.Command("setpriv", "--no-new-privs", "--bounding-set="+set, "--inh-caps="+set,
			filepath.Join(dir, "lifeboat"), "backup", "--config", config, "--only", "files").CombinedOutput()
		if err != nil {
			t.Fatalf("with %s: %v\n%s", set, err, out)
		}
		return string(out)
	}
	if out := backup("-all"); !strings.Contains(out, "etc/kubernetes/pki/sa.key") || !strings.Contains(out, "degraded") {
		t.Errorf("without capabilities the missing file is not told:\n%s", out)
	}
	if out := backup("-all,+dac_read_search"); strings.Contains(out, "etc/kubernetes/pki/sa.key") {
		t.Errorf("with DAC_READ_SEARCH the file is missing:\n%s", out)
	}
}
