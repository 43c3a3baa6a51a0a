//go:build deploy

package deploytest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/node"
	"lifeboat/restore/nodefiles"
	controlplane "lifeboat/restore/plane"
	"lifeboat/storage/local"
)

// encryptionKey is one key of an EncryptionConfiguration.
type encryptionKey struct{ provider, name, secret string }

func newEncryptionKey(provider, name string) encryptionKey {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	return encryptionKey{provider, name, base64.StdEncoding.EncodeToString(secret)}
}

// encryptionConfiguration encrypts Secrets with the first key, and reads with all.
func encryptionConfiguration(keys ...encryptionKey) string {
	var b strings.Builder
	b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n")
	for _, k := range keys {
		fmt.Fprintf(&b, "  - %s: {keys: [{name: %s, secret: %s}]}\n", k.provider, k.name, k.secret)
	}
	b.WriteString("  - identity: {}\n")
	return b.String()
}

// encryptedNode is a node's files, whose API server names an encryption
// configuration, with lifeboat set up for it.
type encryptedNode struct {
	t                  *testing.T
	dir, root, program string
	kit                string
}

const encryptionFile = "srv/kube/encryption/config.yaml"

func newEncryptedNode(t *testing.T, etcd string) *encryptedNode {
	t.Helper()
	dir := t.TempDir()
	n := &encryptedNode{t: t, dir: dir, root: filepath.Join(dir, "node"), kit: filepath.Join(dir, "kit")}
	n.program, _ = build(t)
	if err := kubefixture.Build(n.root, kubefixture.Options{Kind: kubefixture.ExtraFiles}); err != nil {
		t.Fatal(err)
	}
	n.run(0, "init", "--cluster", "prod", "--store", "file://"+filepath.Join(dir, "store"), "--out", n.kit, "--host-root", n.root, "--node", "cp1",
		"--etcd", etcd)
	config := filepath.Join(n.kit, "config.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^stateDir: .*$`).ReplaceAll(text, []byte("stateDir: "+filepath.Join(dir, "state")))
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// encrypt writes the encryption configuration and returns its path.
func (n *encryptedNode) encrypt(keys ...encryptionKey) string {
	n.t.Helper()
	file := filepath.Join(n.root, encryptionFile)
	if err := os.WriteFile(file, []byte(encryptionConfiguration(keys...)), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return file
}

// run runs lifeboat, which must end with the exit code, and returns its standard
// output.
func (n *encryptedNode) run(code int, args ...string) string {
	n.t.Helper()
	if args[0] != "init" {
		args = append(args, "--config", filepath.Join(n.kit, "config.yaml"))
	}
	cmd := exec.Command(n.program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || cmd.ProcessState.ExitCode() != code {
		n.t.Fatalf("lifeboat %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), code, out, stderr.String())
	}
	return string(out)
}

// backup takes one, and returns why the node's files are degraded.
func (n *encryptedNode) backup() (degraded []string) {
	n.t.Helper()
	var answer struct {
		Backups []struct {
			Chain    string
			Degraded []string
		}
	}
	if err := json.Unmarshal([]byte(n.run(0, "backup", "-o", "json")), &answer); err != nil || len(answer.Backups) != 2 {
		n.t.Fatalf("%+v, %v", answer, err)
	}
	if b := answer.Backups[0]; b.Chain != "etcd/main" || len(b.Degraded) > 0 {
		n.t.Errorf("%+v", b)
	}
	return answer.Backups[1].Degraded
}

// encryptionLevel is what doctor says of the keys.
func (n *encryptedNode) encryptionLevel(code int) (level, message string) {
	n.t.Helper()
	var findings []struct{ Check, Level, Message string }
	if err := json.Unmarshal([]byte(n.run(code, "doctor", "-o", "json")), &findings); err != nil {
		n.t.Fatal(err)
	}
	for _, f := range findings {
		if strings.HasSuffix(f.Check, "encryption keys") {
			return f.Level, f.Message
		}
	}
	n.t.Fatalf("doctor says nothing of encryption keys: %+v", findings)
	return "", ""
}

// writeSecrets makes Secrets with content of their own.
func (p *plane) writeSecrets(prefix string, count int) {
	p.t.Helper()
	for i := range count {
		body, err := json.Marshal(object{"metadata": map[string]any{"name": fmt.Sprintf("%s-%d", prefix, i)}, "stringData": map[string]any{"password": rand.Text()}})
		if err != nil {
			p.t.Fatal(err)
		}
		if code, answer := p.ask("POST", "/api/v1/namespaces/team/secrets", "application/json", body); code != http.StatusCreated {
			p.t.Fatalf("write a Secret: %d %s", code, answer)
		}
	}
}

// readSecrets are all Secrets by name, with UID and content.
func (p *plane) readSecrets() map[string]string {
	p.t.Helper()
	code, text := p.ask("GET", "/api/v1/namespaces/team/secrets", "", nil)
	var list struct {
		Items []struct {
			Metadata struct{ Name, UID, ResourceVersion string }
			Data     map[string]string
		}
	}
	if err := json.Unmarshal([]byte(text), &list); code != http.StatusOK || err != nil {
		p.t.Fatalf("list Secrets: %d %v %s", code, err, text)
	}
	all := map[string]string{}
	for _, i := range list.Items {
		all[i.Metadata.Name] = i.Metadata.UID + " " + fmt.Sprint(i.Data)
	}
	return all
}

// TestEncryptedSecretsComeBackWithTheirKeys lets a real API server write Secrets
// with an aescbc key, and after a rotation with a secretbox key. They come back
// with the configuration that is in the backup, and without it nothing is restored.
func TestEncryptedSecretsComeBackWithTheirKeys(t *testing.T) {
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{}).Members[0]
	n := newEncryptedNode(t, etcd.Endpoint)
	cbc, box := newEncryptionKey("aescbc", "key-2025"), newEncryptionKey("secretbox", "key-2026")

	const flag = "--encryption-provider-config="
	api := startAPIServer(t, etcd.Endpoint, flag+n.encrypt(cbc))
	api.namespace("team", "privileged")
	api.writeSecrets("old", 10)
	api.stop()
	configuration := n.encrypt(box, cbc)
	api = startAPIServer(t, etcd.Endpoint, flag+configuration)
	api.writeSecrets("new", 10)
	want := api.readSecrets()
	api.stop()
	if len(want) != 20 {
		t.Fatalf("%d Secrets", len(want))
	}

	if degraded := n.backup(); len(degraded) > 0 {
		t.Errorf("all keys are in the backup, and it is degraded: %q", degraded)
	}
	if level, message := n.encryptionLevel(0); level != "ok" {
		t.Errorf("doctor: %s: %s", level, message)
	}
	full := n.uses(t)
	if diff := cmp.Diff([]manifest.KeyUse{
		{Provider: "aescbc", Key: cbc.name, Objects: 10, Example: "/registry/secrets/team/old-0"},
		{Provider: "secretbox", Key: box.name, Objects: 10, Example: "/registry/secrets/team/new-0"},
	}, full); diff != "" {
		t.Errorf("keys in use (-want +got):\n%s", diff)
	}

	// To a new etcd, with the configuration as it comes out of the backup.
	restored, data, peer := filepath.Join(n.dir, "restored"), filepath.Join(n.dir, "etcd"), "http://127.0.0.1:1"
	identity := []string{"--identity", filepath.Join(n.kit, "recovery.key"), "--yes"}
	if err := os.Mkdir(restored, 0o755); err != nil {
		t.Fatal(err)
	}
	n.run(0, append([]string{"restore", "files", "--node", "cp1", "--root", restored}, identity...)...)
	n.run(0, append([]string{"restore", "etcd", "--data-dir", data, "--name", "m0", "--peer-url", peer, "--token", "again"}, identity...)...)
	again := cluster.StartBinary(t, "3.6", cluster.Options{DataDir: data, PeerURL: peer, Token: "again"}).Members[0]
	api = startAPIServer(t, again.Endpoint, flag+filepath.Join(restored, encryptionFile))
	if diff := cmp.Diff(want, api.readSecrets()); diff != "" {
		t.Errorf("Secrets (-before +restored):\n%s", diff)
	}
	api.stop()

	// The old key leaves the configuration too early.
	n.encrypt(box)
	degraded := n.backup()
	for _, words := range []string{`aescbc key "key-2025"`, "10 objects", "/registry/secrets/team/old-0"} {
		if len(degraded) != 1 || !strings.Contains(degraded[0], words) {
			t.Errorf("degraded %q; want %s", degraded, words)
		}
	}
	if level, message := n.encryptionLevel(1); level != "problem" || !strings.Contains(message, cbc.name) {
		t.Errorf("doctor: %s: %s", level, message)
	}
	if out := n.run(0, "verify"); !strings.Contains(out, "warning  10 objects") || !strings.Contains(out, cbc.name) {
		t.Errorf("verify: %s", out)
	}
	n.refused(t, cbc)
}

// uses are the encryption keys in use, by the newest full.
func (n *encryptedNode) uses(t *testing.T) []manifest.KeyUse {
	t.Helper()
	full, err := n.repository(t).NewestFull(t.Context(), restore.DefaultChain)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(full.Etcd.Encryption, func(a, b manifest.KeyUse) int { return strings.Compare(a.Provider, b.Provider) })
	return full.Etcd.Encryption
}

func (n *encryptedNode) repository(t *testing.T) *repository.Repository {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.kit, "trust"))
	if err != nil {
		t.Fatal(err)
	}
	trust, err := manifest.ParseTrust(text)
	if err != nil {
		t.Fatal(err)
	}
	store, err := local.New(filepath.Join(n.dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := repository.Open(store, repository.Options{Trust: trust, Name: "store", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// refused lets a control plane be rebuilt on a machine that has something of its
// own, which must stay as it is.
func (n *encryptedNode) refused(t *testing.T, missing encryptionKey) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.kit, "recovery.key"))
	if err != nil {
		t.Fatal(err)
	}
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(n.dir, "machine")
	if err := kubefixture.Build(root, kubefixture.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "var/lib/etcd/member"), 0o700); err != nil {
		t.Fatal(err)
	}
	before := everyFile(t, root)
	plan, err := controlplane.Prepare(t.Context(), controlplane.Options{
		Repo: n.repository(t), Chain: restore.DefaultChain, Files: "hosts/cp1", Identities: identities,
		Order: controlplane.Order{Node: "cp1", Members: controlplane.One}, Root: root, StateDir: filepath.Join(n.dir, "machine-state"),
		Machine: untouched{}, Now: time.Now, Rand: rand.Reader,
		Health: func(*nodefiles.Staged) (controlplane.Health, error) { return nil, errors.New("nothing was started") },
	})
	if err == nil {
		_ = plan.Close()
		t.Fatal("a control plane that can't read its Secrets was going to be restored")
	}
	for _, words := range []string{missing.provider, missing.name, "/registry/secrets/team/old-0", "--files-backup"} {
		if !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), words) {
			t.Errorf("refused with %v; want %s", err, words)
		}
	}
	if diff := cmp.Diff(before, everyFile(t, root)); diff != "" {
		t.Errorf("the machine was changed (-before +after):\n%s", diff)
	}
}

// untouched is a machine of which only the name may be asked.
type untouched struct{ node.Machine }

func (untouched) Identity() (node.Identity, error) { return node.Identity{Hostname: "cp1"}, nil }

// everyFile is what lies below a folder, with modes and contents.
func everyFile(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[path] = info.Mode().String()
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			all[path] += " " + string(text)
			return err
		}
		return nil
	})
	if err != nil || len(all) < 10 {
		t.Fatalf("%v: %v", slices.Sorted(maps.Keys(all)), err)
	}
	return all
}
