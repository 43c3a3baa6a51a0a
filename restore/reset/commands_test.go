package reset_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/restore/reset"
)

// stub stands for the programs that a plan calls and that change something: it notes
// how it was called and what it saw.
const stub = `#!/bin/sh
echo "$(basename "$0") $*" >> "$ROOT/calls"
case "$(basename "$0") $*" in
"lifeboat export"*)
	force=; for word; do test "$word" != --force || force=yes; done
	while [ "$1" != --out ]; do shift; done
	test -n "$force" -o ! -e "$2" || { echo "exists" >&2; exit 1; }
	umask 077; echo "db /bootstrap/b9f195c5cc7e db" > "$2" ;;
*--cluster-reset*)
	if grep -qsE '^server:|^K3S_URL=' "$ROOT/etc/rancher/$(basename "$0")/config.yaml" "$ROOT"/etc/systemd/system/k3s.service.env; then
		echo "cannot perform cluster-reset while server URL is set" >&2; exit 1
	fi
	echo "token $(cat "$ROOT/var/lib/rancher/$(basename "$0")/server/token")" >> "$ROOT/calls" ;;
"rke2-killall.sh "*) echo "data $RKE2_DATA_DIR" >> "$ROOT/calls" ;;
"pgrep "*) exit 1 ;;
"k0s restore"*)
	for last; do :; done
	test ! -e "$ROOT/var/lib/k0s/etcd" || { echo "not empty" >&2; exit 1; }
	cp "$last" "$ROOT/archive.tar.gz" ;;
"k0s token create"*) echo sealed ;;
"k0s install"*) echo "ExecStart=/usr/local/bin/k0s controller --token-file=x" > "$ROOT/etc/systemd/system/k0scontroller.service" ;;
esac
`

// absolute are paths of the host in a command: those that are not behind another path.
var absolute = regexp.MustCompile(`(^|[\s='";(])/(etc|var|usr|root|data)/`)

// run runs the commands of steps on a root that stands for a machine, with the shell
// and its tools as they are.
func run(t *testing.T, root string, steps []reset.Step) (calls string) {
	t.Helper()
	calls, err := try(t, root, steps)
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

// try is run up to the command that fails.
func try(t *testing.T, root string, steps []reset.Step) (calls string, failed error) {
	t.Helper()
	bin := filepath.Join(root, "usr/local/bin")
	var all []string
	for _, name := range []string{"k3s", "rke2", "k0s", "lifeboat", "systemctl", "rke2-killall.sh", "kubectl", "pgrep"} {
		all = append(all, filepath.Join(bin, name))
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if err := os.WriteFile(name, []byte(stub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
steps:
	for _, s := range steps {
		for _, command := range s.Commands {
			here := absolute.ReplaceAllString(command, "${1}"+root+"/${2}/")
			c := exec.CommandContext(t.Context(), "sh", "-e", "-c", here)
			c.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "ROOT=" + root}
			if out, err := c.CombinedOutput(); err != nil {
				failed = fmt.Errorf("%s: %s\n%w: %s", s.Title, command, err, out)
				break steps
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text), failed
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sorted takes a plan's steps apart: those of this server, and of each other one.
func sorted(p *reset.Plan) (here, others []reset.Step) {
	for _, s := range p.Steps {
		switch {
		case !slices.Contains(s.On, p.This):
			others = append(others, s)
		default:
			here = append(here, s)
		}
	}
	return here, others
}

func planned(t *testing.T, facts *hostfacts.Facts, others ...manifest.Member) *reset.Plan {
	t.Helper()
	plan, err := reset.New(inputs(facts, etcd(facts, others...)))
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// order finds words in a text, one after the other.
func order(text string, words ...string) error {
	for _, w := range words {
		_, after, found := strings.Cut(text, w)
		if !found {
			return errors.New("no " + w + " behind those before it")
		}
		text = after
	}
	return nil
}

func TestTheCommandsForK3sDoWhatTheySay(t *testing.T) {
	root, facts := server(t, of(second, kubefixture.K3s), nil)
	config := read(t, root, "etc/rancher/k3s/config.yaml")
	plan := planned(t, facts, member("cp1-306b6a7b", "10.0.0.11"))
	here, others := sorted(plan)
	calls := run(t, root, here)
	if err := order(calls, "systemctl stop k3s\n", "lifeboat restore files --node cp2", "lifeboat export ", "--bump 1000000000", "k3s server --cluster-reset", "--cluster-reset-restore-path="+root+"/var/lib/lifeboat/reset.db",
		"token K10", "systemctl start k3s", "lifeboat backup"); err != nil {
		t.Errorf("%v:\n%s", err, calls)
	}
	if !strings.Contains(config, "\nserver: https://") || read(t, root, "etc/rancher/k3s/config.yaml") != config {
		t.Error("the configuration is not as it was, with its server")
	}
	if _, err := os.Stat(filepath.Join(root, "var/lib/lifeboat/reset.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the snapshot stays: %v", err)
	}

	// The first server of all names no other one: left so, it would begin a cluster anew.
	first, _ := server(t, of(first, kubefixture.K3s), nil)
	run(t, first, others)
	after := read(t, first, "etc/rancher/k3s/config.yaml")
	if !strings.Contains(after, "\nserver: https://10.0.0.12:6443\n") || !strings.Contains(after, "\ntoken-file: /var/lib/rancher/k3s/server/token\n") && !strings.Contains(after, "\ntoken-file: "+first+"/var/lib/rancher/k3s/server/token\n") {
		t.Errorf("the first server joins nobody:\n%s", after)
	}
	if got := read(t, first, "var/lib/rancher/k3s/server/db.before-20261122T000000Z/etcd/member/snap/db"); got != "stands for a database" {
		t.Errorf("its database is not kept: %q", got)
	}
	if _, err := os.Stat(filepath.Join(first, "var/lib/rancher/k3s/server/db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its database is in place: %v", err)
	}

	// One that names a server and a token keeps what it has.
	third, _ := server(t, of(kubefixture.Options{Node: "cp3", Address: "10.0.0.13", Server: "https://k8s.example.test:6443"}, kubefixture.K3s), nil)
	before := read(t, third, "etc/rancher/k3s/config.yaml")
	run(t, third, others)
	if after := read(t, third, "etc/rancher/k3s/config.yaml"); after != before {
		t.Errorf("its configuration changed:\n%s", after)
	}
}

func TestTheCommandsForRKE2DoWhatTheySay(t *testing.T) {
	for _, dir := range []string{"/var/lib/rancher/rke2", "/data/rke2"} {
		t.Run(dir, func(t *testing.T) {
			change := func(root string) {
				if dir == "/data/rke2" {
					write(t, root, "etc/rancher/rke2/config.yaml.d/20-place.yaml", "data-dir: /data/rke2\n")
					must(t, errors.Join(os.MkdirAll(filepath.Join(root, "data"), 0o755), os.Rename(filepath.Join(root, "var/lib/rancher/rke2"), filepath.Join(root, "data/rke2"))))
				}
			}
			root, facts := server(t, of(second, kubefixture.RKE2), change)
			if dir == "/data/rke2" { // for the stub, which looks there
				must(t, os.Symlink(filepath.Join(root, dir), filepath.Join(root, "var/lib/rancher/rke2")))
			}
			must(t, os.MkdirAll(filepath.Join(root, dir, "bin"), 0o755))
			must(t, os.Symlink(filepath.Join(root, "usr/local/bin/kubectl"), filepath.Join(root, dir, "bin/kubectl")))
			config := read(t, root, "etc/rancher/rke2/config.yaml")
			here, others := sorted(planned(t, facts, member("cp1-306b6a7b", "10.0.0.11")))
			calls := run(t, root, here)
			fenced := "rke2-killall.sh \ndata \n"
			if dir == "/data/rke2" {
				fenced = "rke2-killall.sh \ndata " + root + dir + "\n"
			}
			if err := order(calls, "systemctl stop rke2-server\n", fenced, "pgrep -x etcd", "lifeboat restore files --node cp2", "--exclude "+strings.TrimPrefix(dir, "/")+"/agent/pod-manifests", "lifeboat export ",
				"rke2 server --cluster-reset", "token K10", "systemctl start rke2-server", "lifeboat backup"); err != nil {
				t.Errorf("%v:\n%s", err, calls)
			}
			if read(t, root, "etc/rancher/rke2/config.yaml") != config {
				t.Error("the configuration is not as it was, with its server")
			}
			first, _ := server(t, of(first, kubefixture.RKE2), change)
			run(t, first, others)
			if after := read(t, first, "etc/rancher/rke2/config.yaml"); !strings.Contains(after, "\nserver: https://10.0.0.12:9345\n") {
				t.Errorf("the first server joins nobody:\n%s", after)
			}
		})
	}
}

// A step that failed halfway is run again, as is one that a person is unsure of.
func TestTheStepsCanBeRunAgain(t *testing.T) {
	for _, kind := range []kubefixture.Kind{kubefixture.K3s, kubefixture.K0s} {
		root, facts := server(t, of(second, kind), nil)
		here, _ := sorted(planned(t, facts, member("cp1-306b6a7b", "10.0.0.11")))
		var config string
		for _, s := range here {
			run(t, root, []reset.Step{s})
			if s.Title == "Restore it" || s.Title == "Tidy up" || s.Title == "Take the token away" {
				continue // these refuse: there is something in place, or nothing to tidy up
			}
			run(t, root, []reset.Step{s})
			if strings.HasPrefix(s.Title, "Put the files") && kind == kubefixture.K3s {
				config = read(t, root, "etc/rancher/k3s/config.yaml")
			}
		}
		if kind == kubefixture.K3s && (read(t, root, "etc/rancher/k3s/config.yaml") != config || !strings.Contains(config, "\nserver: ")) {
			t.Errorf("the configuration is not as it was:\n%s", read(t, root, "etc/rancher/k3s/config.yaml"))
		}
	}
}

// On a machine with new disks nothing is there yet: not even what "restore files" of
// a backup without these brings.
func TestAnotherServerNeverBeginsAClusterOfItsOwn(t *testing.T) {
	for _, c := range []struct {
		name, config string
		token        bool
		starts       bool
	}{
		{name: "nothing", starts: false},
		{name: "a token", token: true, starts: true},
		{name: "a configuration that ends without a newline", token: true, config: "tls-san: [a]", starts: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, facts := server(t, of(second, kubefixture.K3s), nil)
			_, others := sorted(planned(t, facts, member("cp1-306b6a7b", "10.0.0.11")))
			join := others[len(others)-1]
			root := t.TempDir()
			if c.token {
				write(t, root, "var/lib/rancher/k3s/server/token", "K10aa::server:x\n")
			}
			if c.config != "" {
				write(t, root, "etc/rancher/k3s/config.yaml", c.config)
			}
			calls, err := try(t, root, []reset.Step{join})
			if starts := strings.Contains(calls, "systemctl start k3s"); starts != c.starts || (err == nil) != c.starts {
				t.Fatalf("%v\n%s", err, calls)
			}
			if !c.starts {
				return
			}
			if text := read(t, root, "etc/rancher/k3s/config.yaml"); !strings.HasPrefix(text, c.config+"\n") || !strings.Contains(text, "\nserver: https://10.0.0.12:6443\n") || !strings.Contains(text, "\ntoken-file: ") {
				t.Errorf("%s", text)
			}
		})
	}
}

func TestAServerByItsEnvironmentIsForgottenAndRemembered(t *testing.T) {
	const env = "K3S_URL='https://k8s.example.test:6443'\nK3S_TOKEN='swordfish'\n"
	root, facts := server(t, of(first, kubefixture.K3s), func(root string) { write(t, root, "etc/systemd/system/k3s.service.env", env) })
	here, _ := sorted(planned(t, facts))
	calls := run(t, root, here)
	if !strings.Contains(calls, "--cluster-reset") || read(t, root, "etc/systemd/system/k3s.service.env") != env {
		t.Errorf("%s", calls)
	}
}

func TestAWrongTokenStopsTheCommands(t *testing.T) {
	root, facts := server(t, of(first, kubefixture.K3s), func(root string) {
		write(t, root, "var/lib/rancher/k3s/server/token", "K10aa::server:another\n")
	})
	here, _ := sorted(planned(t, facts))
	i := slices.IndexFunc(here, func(s reset.Step) bool { return s.Title == "Make the snapshot" })
	run(t, root, here[:i])
	commands := here[i].Commands
	last := commands[len(commands)-1]
	run(t, root, []reset.Step{{Commands: commands[:len(commands)-1]}})
	c := exec.CommandContext(t.Context(), "sh", "-e", "-c", absolute.ReplaceAllString(last, "${1}"+root+"/${2}/"))
	if out, err := c.CombinedOutput(); err == nil || len(out) > 0 || !strings.Contains(last, "/bootstrap/") {
		t.Errorf("%q is content with another token: %s", last, out)
	}
}

func TestTheArchiveForK0sIsWhatItsRestoreTakes(t *testing.T) {
	root, facts := server(t, of(second, kubefixture.K0s), nil)
	plan := planned(t, facts, member("cp1", "10.0.0.11"))
	here, others := sorted(plan)
	calls := run(t, root, here)
	if err := order(calls, "systemctl stop k0scontroller", "lifeboat restore files", "lifeboat export", "k0s restore", "systemctl start k0scontroller", "k0s etcd member-list", "k0s token create --role=controller", "lifeboat backup"); err != nil {
		t.Errorf("%v:\n%s", err, calls)
	}
	if got := read(t, root, "var/lib/k0s/etcd.before-20261122T000000Z/member/snap/db"); got != "stands for a database" {
		t.Errorf("the old database is not kept: %q", got)
	}
	if _, err := os.Stat(filepath.Join(root, "var/lib/lifeboat/k0s-restore")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the archive stays: %v", err)
	}
	f, err := os.Open(filepath.Join(root, "archive.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		// k0s knows files and folders, by names below its own.
		if h.Typeflag != tar.TypeReg || h.Mode&0o077 != 0 || strings.Contains(h.Name, "/") {
			t.Errorf("%s: type %c, mode %o", h.Name, h.Typeflag, h.Mode)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = string(body)
	}
	if len(found) != 2 || !strings.HasPrefix(found["etcd-snapshot.db"], "db ") || found["k0s.yaml"] != read(t, root, "etc/k0s/k0s.yaml") {
		t.Errorf("%q", found)
	}

	other, _ := server(t, of(first, kubefixture.K0s), nil)
	if calls, err := try(t, other, others); err == nil || strings.Contains(calls, "systemctl start") {
		t.Errorf("it is started without a token: %v\n%s", err, calls)
	}
	write(t, other, "etc/k0s/k0stoken", "sealed")
	calls = run(t, other, others)
	if !strings.Contains(calls, "k0s install controller --force --token-file="+other+"/etc/k0s/k0stoken") {
		t.Errorf("the first controller gets no token:\n%s", calls)
	}
	for _, name := range []string{"etcd", "pki"} {
		if _, err := os.Stat(filepath.Join(other, "var/lib/k0s", name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is in place, and it would not join: %v", name, err)
		}
	}
	third, _ := server(t, of(kubefixture.Options{Node: "cp3", Address: "10.0.0.13", Server: "x"}, kubefixture.K0s), nil)
	if calls = run(t, third, others); strings.Contains(calls, "k0s install") {
		t.Errorf("one that has a token in its unit is installed anew:\n%s", calls)
	}
}
