package plane

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/snapdb"
	"lifeboat/restore"
	"lifeboat/restore/journal"
	"lifeboat/restore/node"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/topology"
)

// outside is a world whose node has an etcd outside of Kubernetes.
type outside struct {
	*world
	units   map[string]bool // that run, by name
	started func(unit string) error
	release func()         // what etcd's unit holds as it runs; may be nil
	process []node.Process // that run without a unit
	data    string         // the data directory, below the root
	found   topology.Host  // by an inspection
}

const etcdProgram = "usr/local/bin/etcd"

// newOutside backs up a node of the fixture with an external etcd, which change
// may have made something else.
func newOutside(t *testing.T, change func(root string)) *outside {
	t.Helper()
	o := &outside{world: emptyWorld(t), units: map[string]bool{"kubelet": true, "etcd": true}, data: "data/etcd"}
	from := folder(t)
	check(t, kubefixture.Build(from, kubefixture.Options{Kind: kubefixture.ExternalEtcd, Now: now}))
	if change != nil {
		change(from)
	}
	o.backUp(from)
	o.put(etcdProgram, "#!/bin/sh\n", 0o755)
	return o
}

// bareHost leaves only etcd of a master.
func bareHost(root string) {
	for _, name := range []string{"etc/kubernetes", "var/lib/kubelet", "etc/default/kubelet", "usr/lib/systemd/system"} {
		_ = os.RemoveAll(filepath.Join(root, name))
	}
}

func (o *outside) put(name, text string, mode os.FileMode) {
	o.t.Helper()
	file := filepath.Join(o.root, name)
	check(o.t, os.MkdirAll(filepath.Dir(file), 0o755))
	check(o.t, os.WriteFile(file, []byte(text), mode))
}

// outsideMachine is its machine, and its health.
type outsideMachine struct {
	*machine
	o *outside
}

func (m outsideMachine) Service(_ context.Context, name string) (node.Service, error) {
	s := node.Service{Name: name, Unit: name + ".service", Active: "inactive"}
	if m.o.units[name] {
		s.Active, s.PID = "active", 77
	}
	return s, nil
}

func (m outsideMachine) Stop(_ context.Context, name string) error {
	m.tell("stop " + name)
	m.o.units[name] = false
	if name == "etcd" && m.o.release != nil {
		m.o.release()
		m.o.release = nil
	}
	return nil
}

func (m outsideMachine) Start(_ context.Context, name string) error {
	m.tell("start " + name)
	m.o.units[name] = true
	if m.o.started != nil {
		return m.o.started(name)
	}
	return nil
}

func (m outsideMachine) Processes(context.Context, ...string) ([]node.Process, error) {
	return m.o.process, nil
}

func (m outsideMachine) say(what string, needs ...string) error {
	for _, unit := range needs {
		if !m.o.units[unit] {
			return errors.New(what + ": " + unit + " does not run")
		}
	}
	m.tell(what)
	return nil
}

func (m outsideMachine) Etcd(context.Context) error   { return m.say("etcd serves", "etcd") }
func (m outsideMachine) Events(context.Context) error { return m.say("events serve", "etcd-events") }
func (m outsideMachine) API(context.Context) error    { return m.say("API with "+m.present(), "kubelet") }
func (m outsideMachine) Node(context.Context, time.Time) error {
	return m.say("node", "kubelet")
}
func (m outsideMachine) Tidy(context.Context) ([]string, []string, error) {
	return nil, nil, m.say("tidy")
}
func (m outsideMachine) Backup(context.Context) (manifest.ID, error) {
	return "new", m.say("backup")
}

func (o *outside) opts() Options {
	out := o.options()
	m := outsideMachine{o.machine, o}
	out.Machine, out.Health = m, func(*nodefiles.Staged) (Health, error) { return m, nil }
	out.Inspect = func(context.Context, topology.Inputs) (*topology.Host, error) {
		h := o.found
		return &h, nil
	}
	return out
}

func (o *outside) restore(killAt string) error {
	o.t.Helper()
	opts := o.opts()
	opts.at = func(point string) error {
		if point == killAt {
			return errKilled
		}
		return nil
	}
	p, err := Prepare(o.t.Context(), opts)
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Execute(o.t.Context(), nil)
}

func (o *outside) giveUp() error {
	folder, err := journal.Open(filepath.Join(o.state, "restores"), time.Now)
	check(o.t, err)
	defer folder.Close()
	j, err := Unfinished(folder)
	check(o.t, err)
	return Abort(o.t.Context(), j, outsideMachine{o.machine, o}, nil)
}

// lost leaves an older etcd and its settings on the machine.
func (o *outside) lost() map[string]string {
	o.put(o.data+"/member/snap/db", "the old database", 0o600)
	o.put("etc/etcd/etcd.env", "ETCD_NAME=of-before\n", 0o644)
	o.put("etc/systemd/system/etcd.service", "[Service]\nExecStart=/of/before\n", 0o644)
	return o.tree()
}

func (o *outside) wantBack() {
	o.t.Helper()
	tree := o.tree()
	for name, words := range map[string]string{"etc/etcd/etcd.env": "ETCD_NAME=cp1", "etc/systemd/system/etcd.service": "EnvironmentFile", "etc/etcd/pki/peer.key": "PRIVATE KEY"} {
		if !strings.Contains(tree[name], words) {
			o.t.Errorf("%s is not back: %.60q", name, tree[name])
		}
	}
	facts, err := snapdb.Inspect(o.t.Context(), filepath.Join(o.root, o.data, "member/snap/db"), snapdb.Options{})
	check(o.t, err)
	if facts.Revision < 1_000_000_000 || len(facts.Members) != 1 || facts.Members[0].Name != "cp1" {
		o.t.Errorf("the database is at revision %d, of %+v", facts.Revision, facts.Members)
	}
	if !o.units["etcd"] {
		o.t.Error("etcd does not run")
	}
}

func TestAMasterWithAnEtcdUnitOfItsOwnComesBackInOrder(t *testing.T) {
	o := newOutside(t, nil)
	o.units["kubelet"] = false
	check(t, o.restore(""))
	o.wantBack()
	all := "kube-apiserver kube-controller-manager kube-scheduler"
	want := []string{"stop kubelet", "stop etcd", "start etcd", "etcd serves", "start kubelet", "API with kube-apiserver", "API with " + all, "etcd serves", "node", "tidy", "backup"}
	if diff := cmp.Diff(want, o.machine.story); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

func TestAHostOfEtcdAloneComesBack(t *testing.T) {
	o := newOutside(t, bareHost)
	o.lost()
	check(t, o.restore(""))
	o.wantBack()
	if diff := cmp.Diff([]string{"stop etcd", "start etcd", "etcd serves", "tidy", "backup"}, o.machine.story); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

var hostSteps = []string{stepStopEtcd, stepFiles, stepEtcd, stepStartEtcd, stepTidy, stepBackup}

func TestARestoreOfAHostThatIsKilledAnywhereGoesOnOrBack(t *testing.T) {
	for _, s := range hostSteps {
		for _, point := range []string{"begun " + s, "did " + s} {
			t.Run(point, func(t *testing.T) {
				o := newOutside(t, bareHost)
				before := o.lost()
				if err := o.restore(point); !errors.Is(err, errKilled) {
					t.Fatalf("not killed: %v", err)
				}
				check(t, o.giveUp())
				after := o.tree()
				for name := range after {
					if strings.Contains(name, ".lifeboat") {
						delete(after, name)
					}
				}
				if diff := cmp.Diff(before, after); diff != "" || !o.units["etcd"] {
					t.Errorf("after the abort etcd runs %v (-before +after):\n%.2000s", o.units["etcd"], diff)
				}
				if err := o.restore(point); !errors.Is(err, errKilled) {
					t.Fatalf("not killed again: %v", err)
				}
				check(t, o.restore(""))
				o.wantBack()
			})
		}
	}
}

func TestWhatAHostOfEtcdNeedsIsSaidFirst(t *testing.T) {
	for name, c := range map[string]struct {
		change func(root string) // of what is backed up
		here   func(*outside)
		say    string
	}{
		"no program":                  {nil, func(o *outside) { check(t, os.Remove(filepath.Join(o.root, etcdProgram))) }, "install etcd there first"},
		"a user that nobody knows":    {func(root string) { addToUnit(t, root, "User=etcd") }, nil, "useradd --system --no-create-home etcd"},
		"a group that nobody knows":   {func(root string) { addToUnit(t, root, "User=0\nUser=kv\nGroup=staff") }, func(o *outside) { o.put("etc/passwd", "kv:x:998:997::/:/bin/false\n", 0o644) }, "groupadd --system staff"},
		"a write-ahead log elsewhere": {func(root string) { addToEnv(t, root, "ETCD_WAL_DIR=/fast/wal") }, nil, "--wal-dir"},
		"a majority that lives": {nil, func(o *outside) {
			o.found.Verdict = topology.Verdict{Refuse: true, Outcome: topology.QuorumLives, Why: []string{"etcd lives"}}
		}, "etcd lives"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOutside(t, func(root string) {
				bareHost(root)
				if c.change != nil {
					c.change(root)
				}
			})
			if c.here != nil {
				c.here(o)
			}
			before := o.tree()
			if err := o.restore(""); !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%v", err)
			}
			if diff := cmp.Diff(before, o.tree()); diff != "" || len(o.machine.story) > 0 {
				t.Errorf("something changed: %v\n%s", o.machine.story, diff)
			}
		})
	}
}

func addToUnit(t *testing.T, root, line string) {
	file := filepath.Join(root, "etc/systemd/system/etcd.service")
	text, err := os.ReadFile(file)
	check(t, err)
	check(t, os.WriteFile(file, []byte(strings.Replace(string(text), "[Service]\n", "[Service]\n"+line+"\n", 1)), 0o644))
}

func addToEnv(t *testing.T, root, line string) {
	file := filepath.Join(root, "etc/etcd/etcd.env")
	text, err := os.ReadFile(file)
	check(t, err)
	check(t, os.WriteFile(file, append(text, (line+"\n")...), 0o600))
}

func TestTheNewMemberBelongsToTheUnitsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	o := newOutside(t, func(root string) {
		bareHost(root)
		addToUnit(t, root, "User=kv")
	})
	o.put("etc/passwd", "root:x:0:0::/root:/bin/sh\nkv:x:998:997::/:/bin/false\n", 0o644)
	check(t, o.restore(""))
	for _, name := range []string{"", "member", "member/snap/db", "member/wal"} {
		info, err := os.Stat(filepath.Join(o.root, o.data, name))
		check(t, err)
		if uid, gid := ownerOfFile(info); uid != 998 || gid != 997 {
			t.Errorf("%s belongs to %d:%d", name, uid, gid)
		}
	}
}

func TestAProcessWithoutAUnitIsStoppedAndStartedByAPerson(t *testing.T) {
	args := []string{"/usr/local/bin/etcd", "--name=cp1", "--data-dir=/data/etcd", "--listen-client-urls=http://127.0.0.1:4379", "--initial-advertise-peer-urls=https://10.0.0.11:2380"}
	o := newOutside(t, func(root string) {
		bareHost(root)
		check(t, os.RemoveAll(filepath.Join(root, "etc/systemd")))
		check(t, os.RemoveAll(filepath.Join(root, "etc/etcd/etcd.env")))
		check(t, os.MkdirAll(filepath.Join(root, "proc/9"), 0o755))
		check(t, os.WriteFile(filepath.Join(root, "proc/9/cmdline"), []byte(strings.Join(args, "\x00")+"\x00"), 0o600))
		check(t, os.WriteFile(filepath.Join(root, "proc/9/environ"), []byte("ETCD_LOG_LEVEL=warn\x00"), 0o600))
		check(t, os.Symlink("/srv/kv", filepath.Join(root, "proc/9/cwd")))
	})
	start := "cd /srv/kv && env ETCD_LOG_LEVEL=warn " + strings.Join(args, " ")
	o.put(o.data+"/member/snap/db", "the old database", 0o600)
	release := lockDB(t, filepath.Join(o.root, o.data, "member/snap/db"))
	o.process = []node.Process{{PID: 4711, Program: "etcd", Args: args}}
	err := o.restore("")
	if !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "kill 4711    # /usr/local/bin/etcd") || !strings.Contains(err.Error(), start) {
		t.Fatalf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(o.root, "etc/etcd/pki")); err == nil {
		t.Error("something changed")
	}
	release()
	o.process = nil

	// The restore waits for it, and says what to type.
	o.units["etcd"] = false
	opts := o.opts()
	opts.Limit = 300 * time.Millisecond
	p, err := Prepare(t.Context(), opts)
	check(t, err)
	if i := slices.IndexFunc(p.Steps, func(s restore.Step) bool { return s.Stage == stepStartEtcd }); i < 0 || !strings.Contains(p.Steps[i].Detail, start) {
		t.Errorf("the plan does not say how to start it: %+v", p.Steps)
	}
	var told warnings
	err = p.Execute(t.Context(), told.listen)
	check(t, p.Close())
	if err == nil || !strings.Contains(err.Error(), "start it with:\n  "+start) || !strings.Contains(told.all(), "start it now, in another terminal:\n  "+start) {
		t.Fatalf("%v; told %s", err, told.all())
	}
	o.units["etcd"] = true // a person has
	check(t, o.restore(""))
	facts, err := snapdb.Inspect(t.Context(), filepath.Join(o.root, o.data, "member/snap/db"), snapdb.Options{})
	check(t, err)
	if facts.Revision < 1_000_000_000 || slices.Contains(o.machine.story, "start etcd") {
		t.Errorf("at revision %d, after %v", facts.Revision, o.machine.story)
	}
}

func TestAMasterWhoseEtcdIsElsewhereWaitsForThat(t *testing.T) {
	o := newOutside(t, func(root string) {
		check(t, os.RemoveAll(filepath.Join(root, "etc/systemd/system/etcd.service")))
		check(t, os.RemoveAll(filepath.Join(root, "etc/etcd/etcd.env")))
	})
	dead := topology.Living{Voters: 1, Members: []topology.Member{{ID: 2, Name: "cp1", State: topology.Silent, How: "no connection"}}}
	o.found.Living = dead
	before := o.tree()
	err := o.restore("")
	want := "  on cp1 (https://10.0.0.11:2380): lifeboat restore control-plane --identity FILE --node cp1"
	if !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "Restore it first") || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "no connection") {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff(before, o.tree()); diff != "" || len(o.machine.story) > 0 {
		t.Errorf("something changed: %v\n%s", o.machine.story, diff)
	}
	o.found.Living.Members[0].State = topology.Accepts
	if err := o.restore(""); !errors.Is(err, restore.ErrRefused) || strings.Contains(err.Error(), "Restore it first") || !strings.Contains(err.Error(), "these certificates") {
		t.Errorf("one that is there: %v", err)
	}

	o.found.Living = topology.Living{Voters: 1, Answering: 1, Quorum: true, ClusterID: 9, Same: new(bool)} // another id, as after its restore
	p, err := Prepare(t.Context(), o.opts())
	check(t, err)
	if !p.Outside() || !slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, "restored since") }) || !strings.Contains(p.Summary, "stays as it is") {
		t.Errorf("%s\n%q", p.Summary, p.Warnings)
	}
	check(t, p.Close())
	for _, point := range []string{"begun " + stepStop, "did " + stepFiles, "did " + stepPods} {
		if err := o.restore(point); !errors.Is(err, errKilled) {
			t.Fatalf("not killed: %v", err)
		}
		check(t, o.giveUp())
		if diff := cmp.Diff(onlyFiles(before), onlyFiles(o.tree())); diff != "" {
			t.Errorf("given up at %s (-before +after):\n%.2000s", point, diff)
		}
	}
	o.machine.story, o.units["kubelet"] = nil, true
	check(t, o.restore(""))
	all := "kube-apiserver kube-controller-manager kube-scheduler"
	wantStory := []string{"stop kubelet", "start kubelet", "API with kube-apiserver", "API with " + all, "etcd serves", "node", "tidy", "backup"}
	if diff := cmp.Diff(wantStory, o.machine.story); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(o.root, o.data)); err == nil {
		t.Error("an etcd was restored here")
	}
}

func TestCertificatesThatCantBeIssuedAnewAreToldOf(t *testing.T) {
	o := newOutside(t, bareHost) // its authority's key is elsewhere
	o.order.Rename, o.order.Address = []string{"cp1=cp4"}, []string{"10.0.0.11=10.0.0.44"}
	opts := o.opts()
	opts.Inspect = func(context.Context, topology.Inputs) (*topology.Host, error) { return &topology.Host{}, nil }
	m := outsideMachine{o.machine, o}
	opts.Machine = moved{m}
	p, err := Prepare(t.Context(), opts)
	check(t, err)
	defer p.Close()
	if !slices.ContainsFunc(p.Warnings, func(w string) bool {
		return strings.Contains(w, "/etc/etcd/pki/peer.crt stays as it is") && strings.Contains(w, "10.0.0.44")
	}) {
		t.Errorf("%q", p.Warnings)
	}
	if p.member.name != "cp4" || p.member.peerURLs[0] != "https://10.0.0.44:2380" || p.member.was != "cp1" {
		t.Errorf("%+v", p.member)
	}
}

// onlyFiles leaves folders out, which an abort may leave empty.
func onlyFiles(tree map[string]string) map[string]string {
	maps.DeleteFunc(tree, func(_, text string) bool { return strings.HasPrefix(text, "d") })
	return tree
}

// moved has the new address.
type moved struct{ outsideMachine }

func (moved) Identity() (node.Identity, error) {
	return node.Identity{Hostname: "cp4", Addresses: []node.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.44/24")}}}, nil
}
