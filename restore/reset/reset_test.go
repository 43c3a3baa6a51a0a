package reset_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/backup/host"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
	"lifeboat/restore/reset"
)

var update = flag.Bool("update", false, "write testdata anew")

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

type noDNS struct{}

func (noDNS) LookupHost(context.Context, string) ([]string, error) { return nil, nil }

// server builds a fixture's files and returns the facts that a backup of them has.
func server(t *testing.T, o kubefixture.Options, change func(root string)) (root string, facts *hostfacts.Facts) {
	t.Helper()
	root = t.TempDir()
	o.Now, o.Token = now, "swordfish"
	if err := kubefixture.Build(root, o); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(root)
	}
	r, err := host.Capture(t.Context(), host.Options{
		Root: root, Node: o.Node, Now: func() time.Time { return now.Add(time.Hour) }, Resolver: noDNS{}, Wait: time.Millisecond,
		Addresses: func() ([]host.Address, error) {
			return []host.Address{{Interface: "eth0", Address: o.Address + "/24"}}, nil
		},
	}, seal.NewArchiveWriter(&bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	return root, &r.Facts
}

// etcd is that of a backup: names are as the distribution gives them.
func etcd(facts *hostfacts.Facts, others ...manifest.Member) *manifest.Etcd {
	address, _, _ := strings.Cut(facts.Addresses[0].Address, "/")
	own := manifest.Member{Name: facts.Etcd.Name, PeerURLs: []string{"https://" + address + ":2380"}, ClientURLs: []string{"https://127.0.0.1:2379"}}
	return &manifest.Etcd{Version: "3.6.4", Revision: 48210337, Members: append([]manifest.Member{own}, others...)}
}

func member(name, address string) manifest.Member {
	return manifest.Member{Name: name, PeerURLs: []string{"https://" + address + ":2380"}, ClientURLs: []string{"https://" + address + ":2379"}}
}

var (
	first  = kubefixture.Options{Node: "cp1", Address: "10.0.0.11"}
	second = kubefixture.Options{Node: "cp2", Address: "10.0.0.12", Server: "https://k8s.example.test:6443"}
)

func of(o kubefixture.Options, kind kubefixture.Kind) kubefixture.Options {
	o.Kind = kind
	if kind == kubefixture.RKE2 && o.Server != "" {
		o.Server = "https://k8s.example.test:9345"
	}
	return o
}

// inputs are those of a restore on the same machine.
func inputs(facts *hostfacts.Facts, e *manifest.Etcd) reset.Inputs {
	address, _, _ := strings.Cut(facts.Addresses[0].Address, "/")
	return reset.Inputs{
		Distribution: facts.Distribution, Node: facts.Node, Facts: facts, Etcd: e, Hostname: facts.Hostname, Addresses: []string{address},
		Point: "--backup 20261120T130000Z-4f2a", Files: "--backup 20261120T130001Z-77c1", Reading: "--store s3://bucket/lifeboat --cluster prod", Identity: "/root/recovery.key",
		Bump: 1_000_000_000, Now: now.Add(36 * time.Hour),
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestPlans compares what is printed with what a person has checked line by line.
func TestPlans(t *testing.T) {
	k3s, rke2, k0s := kubefixture.K3s, kubefixture.RKE2, kubefixture.K0s
	for _, c := range []struct {
		name    string
		options kubefixture.Options
		change  func(t *testing.T, root string)
		others  []manifest.Member
		inputs  func(*reset.Inputs)
	}{
		{name: "k3s-one", options: of(first, k3s)},
		{name: "k3s-three", options: of(second, k3s), others: []manifest.Member{member("cp1-306b6a7b", "10.0.0.11"), member("cp3-9e107d9d", "10.0.0.13")}},
		{name: "k3s-new-machine", options: of(first, k3s), inputs: func(in *reset.Inputs) { in.Hostname, in.Addresses = "cp4", []string{"10.0.0.44", "fd00::44"} }},
		{name: "k3s-set-up-by-hand", options: of(second, k3s), change: func(t *testing.T, root string) {
			write(t, root, "etc/rancher/k3s/config.yaml", "data-dir: /data/k3s\netcd-s3: true\n")
			write(t, root, "etc/systemd/system/k3s.service.env", "K3S_URL='https://k8s.example.test:6443'\nK3S_TOKEN='swordfish'\nK3S_DEBUG=true\n")
			if err := errors.Join(os.Mkdir(filepath.Join(root, "data"), 0o755), os.Rename(filepath.Join(root, "var/lib/rancher/k3s"), filepath.Join(root, "data/k3s"))); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "k3s-without-token", options: of(first, k3s), change: func(t *testing.T, root string) {
			for _, name := range []string{"token", "node-token", "agent-token"} {
				if err := os.Remove(filepath.Join(root, "var/lib/rancher/k3s/server", name)); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{name: "k3s-without-files", options: of(first, k3s), inputs: func(in *reset.Inputs) { in.Facts, in.Etcd, in.Addresses = nil, nil, nil }},
		{name: "rke2-one", options: of(first, rke2)},
		{name: "rke2-three", options: of(second, rke2), others: []manifest.Member{member("cp1-306b6a7b", "10.0.0.11"), member("cp3-9e107d9d", "10.0.0.13")}},
		{name: "rke2-elsewhere", options: of(first, rke2), change: func(t *testing.T, root string) {
			write(t, root, "etc/rancher/rke2/config.yaml", "data-dir: /data/rke2\n")
			must(t, errors.Join(os.Mkdir(filepath.Join(root, "data"), 0o755), os.Rename(filepath.Join(root, "var/lib/rancher/rke2"), filepath.Join(root, "data/rke2"))))
		}},
		{name: "k0s-one", options: of(first, k0s)},
		{name: "k0s-three", options: of(second, k0s), others: []manifest.Member{member("cp1", "10.0.0.11"), member("cp3", "10.0.0.13")}},
		{name: "k0s-set-up-by-hand", options: of(first, k0s), change: func(t *testing.T, root string) {
			write(t, root, "etc/systemd/system/k0scontroller.service", "[Service]\nExecStart=/opt/k0s/k0s controller --config=/srv/k0s.yaml --data-dir=/data/k0s --enable-worker --no-taints\n")
			if err := errors.Join(os.Mkdir(filepath.Join(root, "srv"), 0o755), os.Rename(filepath.Join(root, "etc/k0s/k0s.yaml"), filepath.Join(root, "srv/k0s.yaml")),
				os.Mkdir(filepath.Join(root, "data"), 0o755), os.Rename(filepath.Join(root, "var/lib/k0s"), filepath.Join(root, "data/k0s"))); err != nil {
				t.Fatal(err)
			}
		}, inputs: func(in *reset.Inputs) { in.Addresses = []string{"10.0.0.44"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, facts := server(t, c.options, func(root string) {
				if c.change != nil {
					c.change(t, root)
				}
			})
			in := inputs(facts, etcd(facts, c.others...))
			if c.inputs != nil {
				c.inputs(&in)
			}
			plan, err := reset.New(in)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := plan.Print(&out); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", c.name+".txt")
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Errorf("%s differs (-golden +got; run with -update if meant):\n%s", golden, diff)
			}
			if strings.Contains(out.String(), "swordfish") {
				t.Error("the token is printed")
			}
			for _, s := range plan.Steps {
				for _, command := range s.Commands {
					if text, err := exec.CommandContext(t.Context(), "sh", "-n", "-c", command).CombinedOutput(); err != nil {
						t.Errorf("no shell takes %q: %s", command, text)
					}
				}
			}
			text, err := json.Marshal(plan)
			if err != nil || strings.Contains(string(text), "null") {
				t.Errorf("%s, %v", text, err)
			}
			var back reset.Plan
			if err := json.Unmarshal(text, &back); err != nil || len(back.Steps) != len(plan.Steps) || !slices.Equal(back.Steps[0].Commands, plan.Steps[0].Commands) {
				t.Errorf("%+v, %v", back, err)
			}
		})
	}
}

func TestWhatNoResetGivesBackIsRefused(t *testing.T) {
	for datastore, text := range map[string]string{"sqlite": "of which lifeboat has no backup", "external": "of which lifeboat has no backup", "external-etcd": "lifeboat restore etcd"} {
		_, err := reset.New(reset.Inputs{Distribution: &hostfacts.Distribution{Kind: "k3s", DataDir: "/var/lib/rancher/k3s", Datastore: datastore, Unit: "k3s"}, Now: now})
		if !errors.Is(err, reset.ErrDatastore) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", datastore, err)
		}
	}
	for _, d := range []*hostfacts.Distribution{nil, {Kind: "kubeadm"}} {
		if _, err := reset.New(reset.Inputs{Distribution: d}); err == nil {
			t.Errorf("%+v was planned", d)
		}
	}
}
