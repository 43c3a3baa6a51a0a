// Package e2e tests lifeboat on a real control plane: see package realplane.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
)

// minute is how long a scheduled backup may take to appear: the schedules below
// are each minute.
const minute = 2 * time.Minute

// TestTheChartsPodBacksUpItsNode installs the Helm chart on a kubeadm node and
// follows one agent through its life: the first backups, a restart, renewed
// credentials. All that is asserted is seen from outside of the cluster.
func TestTheChartsPodBacksUpItsNode(t *testing.T) {
	p := realplane.Start(t, 1)
	m := p.Machines[0]
	m.InitKubernetes()
	o := newOutside(t, p)

	// Something to find again.
	secret := fmt.Sprintf("marker-%d", time.Now().UnixNano())
	m.Kubectl("create", "configmap", "marker", "--from-literal=value="+secret)
	began := time.Now()
	install(t, m, o)
	p.Logf("chart applied")
	m.Kubectl("-n", "lifeboat", "rollout", "status", "daemonset/lifeboat", "--timeout=120s")
	p.Logf("the agent's pod is Ready")

	full := o.newer(p, "etcd/main", began, minute)
	files := o.newer(p, "hosts/cp1", began, minute)
	t.Run("the full is proved", func(t *testing.T) { checkFull(t, m, o, full) })
	t.Run("the files are whole", func(t *testing.T) {
		if len(files.Degraded) > 0 || !files.Proved {
			t.Errorf("the backup of the node's files is degraded: %q", files.Degraded)
		}
	})
	t.Run("verify from outside is clean", func(t *testing.T) {
		o.run(o.reading("verify", "--deep", "--identity", filepath.Join(o.kit, "recovery.key"))...)
	})
	t.Run("the files come back as they were", func(t *testing.T) { restoreFiles(t, m, o, files) })
	t.Run("the snapshot opens with etcdutl and holds the marker", func(t *testing.T) { exportSnapshot(t, o, full, secret) })
	t.Run("the agent has no rights but root's name", func(t *testing.T) { checkRights(t, m) })
	t.Run("the agent answers", func(t *testing.T) { askAgent(t, m) })

	t.Run("a new pod goes on", func(t *testing.T) {
		m.Kubectl("-n", "lifeboat", "delete", "pod", "--all", "--wait=true")
		ended := time.Now() // so the next full is the new pod's
		m.Kubectl("-n", "lifeboat", "rollout", "status", "daemonset/lifeboat", "--timeout=120s")
		next := o.newer(p, "etcd/main", ended, minute)
		if !next.Proved || len(next.Degraded) > 0 {
			t.Errorf("the first full after the restart is degraded: %q", next.Degraded)
		}
	})
	t.Run("renewed credentials need no restart", func(t *testing.T) { renewCredentials(t, p, m, o) })
	t.Run("the chain is whole to the end", func(t *testing.T) { o.run(o.reading("verify")...) })
}

// install applies what helm makes of the chart, after the three objects that
// its values ask for.
func install(t *testing.T, m *realplane.Machine, o *outside) {
	t.Helper()
	m.Kubectl("create", "namespace", "lifeboat")
	m.Kubectl("label", "namespace", "lifeboat", "pod-security.kubernetes.io/enforce=privileged")
	files := t.TempDir()
	for name, text := range map[string]string{"signing.key": o.read("signing.key"), "trust": o.read("trust"), "credentials": o.credentials()} {
		if err := os.WriteFile(filepath.Join(files, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	applySecret(m, "lifeboat-signing", "signing.key", o.read("signing.key"))
	applySecret(m, "lifeboat-s3", "credentials", o.credentials())
	m.Apply(object("ConfigMap", "lifeboat-trust", "data", "trust", o.read("trust")))

	values := filepath.Join(files, "values.yaml")
	text := fmt.Sprintf(`
image: {repository: %s, tag: %s, pullPolicy: Never}
config:
  cluster: %s
  stores:
    - url: %s
      s3: {endpoint: %q, region: us-east-1}
  recipients: [%s]
  schedule: {full: "* * * * *", files: "* * * * *", verify: "@every 5m", prune: "@every 5m"}
`, strings.Split(realplane.LifeboatImage, ":")[0], strings.Split(realplane.LifeboatImage, ":")[1], cluster, o.store, o.endpoint, o.recipient)
	if err := os.WriteFile(values, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(realplane.Tool("helm"), "template", "lifeboat", realplane.Source("deploy/helm/lifeboat"), "--namespace", "lifeboat", "--values", values)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	objects, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v: %s", err, stderr.String())
	}
	m.Apply(string(objects))
}

// object is a Secret or ConfigMap with one entry.
func object(kind, name, field, key, value string) string {
	text, _ := json.Marshal(map[string]any{ // of strings: can't fail
		"apiVersion": "v1", "kind": kind, "metadata": map[string]string{"name": name, "namespace": "lifeboat"}, field: map[string]string{key: value},
	})
	return string(text)
}

func applySecret(m *realplane.Machine, name, key, value string) {
	m.Apply(object("Secret", name, "stringData", key, value))
}

// checkFull holds the full against what etcd itself says.
func checkFull(t *testing.T, m *realplane.Machine, o *outside, full backup) {
	if !full.Proved || len(full.Degraded) > 0 {
		t.Errorf("proved %v, degraded %q", full.Proved, full.Degraded)
	}
	var shown struct {
		Etcd struct {
			Revision, CompactRevision int64
			HashKV                    uint32
			ComparedWith              []string
			Members                   []struct{ Name string }
		}
		Unproved []string
	}
	if err := json.Unmarshal([]byte(o.run(o.reading("show", full.ID, "-o", "json")...)), &shown); err != nil {
		t.Fatal(err)
	}
	if len(shown.Unproved) > 0 || len(shown.Etcd.ComparedWith) != 1 {
		t.Errorf("unproved %q, compared with %v, want the one member", shown.Unproved, shown.Etcd.ComparedWith)
	}
	if len(shown.Etcd.Members) != 1 || shown.Etcd.Members[0].Name != "cp1" {
		t.Errorf("members %v, want cp1", shown.Etcd.Members)
	}
	hash, compacted := m.EtcdHash(shown.Etcd.Revision)
	if compacted != shown.Etcd.CompactRevision {
		t.Logf("etcd was compacted at %d meanwhile, the snapshot at %d: their hashes can't be compared", compacted, shown.Etcd.CompactRevision)
	} else if hash != shown.Etcd.HashKV {
		t.Errorf("HashKV at revision %d: etcd says %d, the backup %d", shown.Etcd.Revision, hash, shown.Etcd.HashKV)
	}
}

// restoreFiles restores the node's files into an empty folder and compares them
// with the node's own.
func restoreFiles(t *testing.T, m *realplane.Machine, o *outside, files backup) {
	root := t.TempDir()
	o.run(o.reading("restore", "files", "--backup", files.ID, "--node", "cp1", "--identity", filepath.Join(o.kit, "recovery.key"),
		"--root", root, "--yes")...)
	compared := 0
	for _, folder := range []string{"/etc/kubernetes", "/var/lib/kubelet/pki"} {
		err := filepath.WalkDir(filepath.Join(m.Root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(path, m.Root)
			compared++
			return sameFile(path, filepath.Join(root, name))
		})
		if err != nil {
			t.Error(err)
		}
	}
	if compared < 25 {
		t.Errorf("compared only %d files and folders", compared)
	}
}

// sameFile compares kind, mode and content.
func sameFile(a, b string) error {
	infoA, err := os.Lstat(a)
	if err != nil {
		return err
	}
	infoB, err := os.Lstat(b)
	if err != nil {
		return err
	}
	if infoA.Mode() != infoB.Mode() {
		return fmt.Errorf("%s has mode %v, restored %v", a, infoA.Mode(), infoB.Mode())
	}
	read := func(path string, mode fs.FileMode) (string, error) {
		switch mode.Type() {
		case 0:
			text, err := os.ReadFile(path)
			return string(text), err
		case fs.ModeSymlink:
			return os.Readlink(path)
		}
		return "", nil
	}
	contentA, errA := read(a, infoA.Mode())
	contentB, errB := read(b, infoB.Mode())
	if errA != nil || errB != nil || contentA != contentB {
		return fmt.Errorf("%s was not restored as it is (%v, %v)", a, errA, errB)
	}
	return nil
}

// exportSnapshot makes an ordinary snapshot, which etcd's own tool accepts.
func exportSnapshot(t *testing.T, o *outside, full backup, marker string) {
	out := filepath.Join(t.TempDir(), "snapshot.db")
	o.run(o.reading("export", "--backup", full.ID, "--identity", filepath.Join(o.kit, "recovery.key"), "--out", out)...)
	status, err := exec.Command(realplane.Tool("etcd-3.6/etcdutl"), "snapshot", "status", out, "-w", "json").Output()
	if err != nil {
		t.Fatalf("etcdutl snapshot status: %v", err)
	}
	var s struct{ Revision int64 }
	if err := json.Unmarshal(status, &s); err != nil || s.Revision != full.Revision {
		t.Errorf("etcdutl sees revision %d (%v), the backup has %d", s.Revision, err, full.Revision)
	}
	db, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(db, []byte(marker)) {
		t.Error("the snapshot does not hold the object that was made before it")
	}
}

// askAgent asks the agent's server for all that it has.
func askAgent(t *testing.T, m *realplane.Machine) {
	for path, want := range map[string]string{
		"/healthz": "", "/readyz": "", "/": "etcd/main", "/status.json": `"hosts/cp1"`,
		"/metrics": `lifeboat_backup_last_success_timestamp_seconds{chain="etcd/main"`,
	} {
		resp, err := http.Get("http://" + m.Address + ":9478" + path)
		if err != nil {
			t.Error(err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: status %d, %v, without %q:\n%.500s", path, resp.StatusCode, err, want, body)
		}
	}
}

// checkRights looks at the agent's process as the kernel sees it.
func checkRights(t *testing.T, m *realplane.Machine) {
	pid := m.Run("pgrep", "--exact", "lifeboat")
	status := m.Run("cat", "/proc/"+pid+"/status")
	values := map[string]string{}
	for _, line := range strings.Split(status, "\n") {
		name, value, _ := strings.Cut(line, ":")
		values[name] = strings.Join(strings.Fields(value), " ")
	}
	for name, want := range map[string]string{
		"Uid": "0 0 0 0", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if values[name] != want {
			t.Errorf("%s is %q, want %q", name, values[name], want)
		}
	}
	for _, line := range strings.Split(m.Run("cat", "/proc/"+pid+"/mountinfo"), "\n") {
		fields := strings.Fields(line)
		at, options := fields[4], fields[5]
		// Pods' volumes come and go with kubelet's own mounts: Kubernetes can't let a
		// mount follow the host's and make what comes in read-only. They lie below an
		// empty folder: see below.
		if strings.HasPrefix(at, "/host/var/lib/kubelet/pods/") {
			continue
		}
		if (at == "/" || at == "/host" || strings.HasPrefix(at, "/host/")) && !strings.HasPrefix(options, "ro") {
			t.Errorf("the agent may write to %s (%s)", at, options)
		}
	}
	hidden := 0
	for _, folder := range []string{"pods", "plugins"} {
		inside := "/host/var/lib/kubelet/" + folder
		if seen := m.Run("ls", "-A", "/proc/"+pid+"/root"+inside); seen != "" {
			t.Errorf("the agent sees in %s:\n%s", inside, seen)
		}
		hidden += len(strings.Fields(m.Run("ls", "-A", strings.TrimPrefix(inside, "/host"))))
	}
	if hidden == 0 {
		t.Error("there is nothing that could have been seen")
	}
	t.Logf("memory of the agent: %s now, %s at most", values["VmRSS"], values["VmHWM"])
}

// renewCredentials makes the S3 server take others, as the Secret then has
// them.
func renewCredentials(t *testing.T, p *realplane.Plane, m *realplane.Machine, o *outside) {
	pod := func() string {
		return m.Kubectl("-n", "lifeboat", "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{end}`)
	}
	before, old := pod(), o.server.AccessKey
	o.server.AccessKey, o.server.SecretKey = "RENEWED"+old[:8], "renewed-"+o.server.SecretKey
	o.server.Restart()
	renewed := time.Now()
	applySecret(m, "lifeboat-s3", "credentials", o.credentials())
	next := o.newer(p, "etcd/main", renewed, 2*minute)
	if !next.Proved || len(next.Degraded) > 0 {
		t.Errorf("the first full with renewed credentials is degraded: %q", next.Degraded)
	}
	if after := pod(); after != before {
		t.Errorf("the pod was restarted: %s, before %s", after, before)
	}
}
