package image

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/realplane"
	"lifeboat/internal/s3test"
)

// node is what a container is given: folders of this machine, owned by the
// user it runs as.
type node struct {
	d       *docker
	uid     int
	conf    string // with config.yaml, keys and credentials
	state   string
	host    string // a node's files, owned by root
	store   string
	address string // of the agent's server
}

// runUnprivileged runs the image as both users that it is meant for, against
// real servers on loopback: root without capabilities with S3, and a user
// without rights with a directory.
func runUnprivileged(t *testing.T, d *docker) {
	etcd := cluster.StartBinary(t, "3.6", cluster.Options{})
	if _, err := etcd.Client().Put(context.Background(), "/registry/marker", "x"); err != nil {
		t.Fatal(err)
	}
	server := s3test.Start(t, s3test.Options{})
	for _, test := range []struct {
		name  string
		uid   int
		url   string
		whole bool // may it read the node's private keys
	}{
		{"as root without capabilities, with S3", 0, "s3://" + server.Bucket + "/lifeboat", true},
		{"as a user without rights, with a directory", 65532, "file:///store", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t, d, test.uid, test.url, etcd.Endpoints()[0], server)
			if out := n.run(t, "version"); !strings.Contains(out, version) {
				t.Errorf("version says %q", out)
			}
			n.run(t, "doctor")
			n.run(t, "backup", "--only", "etcd")
			full := n.newest(t, "etcd/main")
			if !full.Proved || len(full.Degraded) > 0 {
				t.Errorf("the full: proved %v, degraded %q", full.Proved, full.Degraded)
			}
			n.run(t, "agent", "--once")
			files := n.newest(t, "hosts/n1")
			if whole := len(files.Degraded) == 0; whole != test.whole {
				t.Errorf("the files are whole: %v, want %v: %q", whole, test.whole, files.Degraded)
			}
			n.daemon(t)
			n.run(t, "verify")
		})
	}
}

func newNode(t *testing.T, d *docker, uid int, url, etcd string, server *s3test.Server) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{d: d, uid: uid, address: fmt.Sprintf("127.0.0.1:%d", 9500+uid%100)}
	for name, field := range map[string]*string{"conf": &n.conf, "state": &n.state, "host": &n.host, "store": &n.store} {
		*field = filepath.Join(dir, name)
	}
	out, err := exec.Command(realplane.Lifeboat(), "init", "--cluster", "image", "--node", "n1", "--store", url, "--etcd", etcd, "--out", n.conf).CombinedOutput()
	if err != nil {
		t.Fatalf("lifeboat init: %v: %s", err, out)
	}
	if err := kubefixture.Build(n.host, kubefixture.Options{Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(n.conf, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(config)
	for key, value := range map[string]string{"endpoint": server.Endpoint, "region": s3test.Region, "listen": n.address, "root": "/host", "stateDir": "/var/lib/lifeboat"} {
		line := regexp.MustCompile(`(?m)^( *)` + key + `: .*$`)
		if !line.MatchString(text) {
			t.Fatalf("config.yaml has no key %s", key)
		}
		text = line.ReplaceAllString(text, "${1}"+key+": "+value)
	}
	credentials := "[default]\naws_access_key_id = " + server.AccessKey + "\naws_secret_access_key = " + server.SecretKey + "\n"
	for name, content := range map[string]string{"config.yaml": text, "credentials": credentials} {
		if err := os.WriteFile(filepath.Join(n.conf, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The identity stays away from nodes.
	if err := os.Remove(filepath.Join(n.conf, "recovery.key")); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{n.state, n.store} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, tree := range []string{n.conf, n.state, n.store} {
		err := filepath.WalkDir(tree, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, uid, uid)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// command is docker run with every right taken away.
func (n *node) command(options []string, args ...string) *exec.Cmd {
	all := append([]string{
		"run", "--read-only", "--cap-drop=ALL", "--security-opt", "no-new-privileges", "--network", "host",
		"--user", fmt.Sprintf("%d:%d", n.uid, n.uid), "--env", "AWS_SHARED_CREDENTIALS_FILE=/etc/lifeboat/credentials",
		"--volume", n.conf + ":/etc/lifeboat:ro", "--volume", n.host + ":/host:ro",
		"--volume", n.state + ":/var/lib/lifeboat", "--volume", n.store + ":/store",
	}, options...)
	return n.d.command(append(append(all, "lifeboat:test"), args...)...)
}

// run runs lifeboat in a container of its own; it must succeed.
func (n *node) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.command([]string{"--rm"}, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("lifeboat %s as user %d: %v\n%s", strings.Join(args, " "), n.uid, err, out)
	}
	return string(out)
}

type backup struct {
	Chain    string
	Proved   bool
	Degraded []string
}

// newest is the newest backup of a chain.
func (n *node) newest(t *testing.T, chain string) backup {
	t.Helper()
	var list []backup
	out := n.run(t, "list", "--quiet", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("list: %v: %s", err, out)
	}
	for _, b := range list {
		if b.Chain == chain {
			return b
		}
	}
	t.Fatalf("no backup of %s: %s", chain, out)
	return backup{}
}

// daemon runs the agent, asks it, and ends it as Kubernetes would.
func (n *node) daemon(t *testing.T) {
	t.Helper()
	name := fmt.Sprintf("agent-%d", n.uid)
	if out, err := n.command([]string{"--detach", "--name", name}, "agent").CombinedOutput(); err != nil {
		t.Fatalf("start the agent: %v: %s", err, out)
	}
	defer n.d.run("rm", "--force", name)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		resp, err := http.Get("http://" + n.address + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			logs, _ := n.d.command("logs", name).CombinedOutput()
			t.Fatalf("the agent does not become ready: %v\n%s", err, logs)
		}
	}
	began := time.Now()
	n.d.run("stop", "--time", "20", name)
	if code := n.d.run("inspect", "--format", "{{.State.ExitCode}}", name); code != "0" {
		t.Errorf("the agent ended with exit code %s after %v", code, time.Since(began))
	}
	if conn, err := net.DialTimeout("tcp", n.address, time.Second); err == nil {
		_ = conn.Close()
		t.Error("the agent's port is still open")
	}
}
