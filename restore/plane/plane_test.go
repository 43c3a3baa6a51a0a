package plane

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"lifeboat/backup/host"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
	"lifeboat/restore"
	"lifeboat/restore/node"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/topology"
	"lifeboat/storage/memory"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a backed-up node and a machine to restore it on.
type world struct {
	t       *testing.T
	repo    *repository.Repository
	id      *age.X25519Identity
	root    string // of the machine
	state   string
	machine *machine
	order   Order

	verdict   topology.Verdict
	inspected int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := emptyWorld(t)
	w.backUp(w.node())
	return w
}

// emptyWorld has no backup yet.
func emptyWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, root: folder(t), state: folder(t), order: Order{Node: "cp1", Members: One}}
	w.machine = &machine{t: t, root: w.root, running: true}
	var err error
	w.id, err = age.GenerateX25519Identity()
	check(t, err)
	cluster, err := manifest.NewCluster(rand.Reader, "test")
	check(t, err)
	signer, err := manifest.GenerateSigner(rand.Reader, cluster)
	check(t, err)
	w.repo, err = repository.Open(memory.New(), repository.Options{
		Trust:  &manifest.Trust{Cluster: cluster, Verifiers: []manifest.Verifier{{Key: signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}}}},
		Signer: signer, Name: "memory", Now: func() time.Time { return now },
	})
	check(t, err)
	return w
}

// folder is one in memory where there is such a place: these tests sync much, and
// cut no power.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lifeboat-plane-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// node is a node as it was backed up.
func (w *world) node() string {
	root := folder(w.t)
	check(w.t, kubefixture.Build(root, kubefixture.Options{Kind: kubefixture.Stacked, Now: now}))
	return root
}

func (w *world) backUpEtcd(chain manifest.Chain, members ...manifest.Member) {
	w.t.Helper()
	db := filepath.Join(folder(w.t), "snapshot.db")
	_, err := etcdtest.BuildDB(db, etcdtest.BuildOptions{Objects: 50, Trailer: true, Storage: "3.6.0"})
	check(w.t, err)
	facts, err := snapdb.Inspect(w.t.Context(), db, snapdb.Options{})
	check(w.t, err)
	plain, err := os.ReadFile(db)
	check(w.t, err)
	w.commit(&manifest.Manifest{
		Chain: chain, Kind: manifest.KindFull,
		Etcd: &manifest.Etcd{
			Version: "3.6.16", StorageVersion: facts.StorageVersion, ClusterVersion: facts.ClusterVersion, ClusterID: 1, MemberID: 2,
			Revision: manifest.Revision(facts.Revision), CompactRevision: manifest.Revision(max(0, facts.CompactRevision)),
			HashKV: facts.HashKV, DBBytes: facts.DBBytes, Keys: facts.Keys, ComparedWith: []manifest.EtcdID{2},
			Members: members,
		},
	}, manifest.RoleSnapshot, "snapshot.db.zst.age", plain)
}

func (w *world) backUp(root string) {
	w.t.Helper()
	w.backUpEtcd(restore.DefaultChain, manifest.Member{ID: 2, Name: "cp1", PeerURLs: []string{"https://10.0.0.11:2380"}})
	var out bytes.Buffer
	a := seal.NewArchiveWriter(&out)
	_, err := host.Capture(w.t.Context(), host.Options{
		Root: root, Node: "cp1", Now: func() time.Time { return now.Add(time.Hour) }, Resolver: noDNS{}, Wait: time.Millisecond,
		Addresses: func() ([]host.Address, error) { return nil, nil },
	}, a)
	check(w.t, err)
	check(w.t, a.Close())
	w.commit(&manifest.Manifest{Chain: "hosts/cp1", Kind: manifest.KindFiles, Host: &manifest.Host{Node: "cp1", Files: 1, Bytes: 1}}, manifest.RoleFiles, "files.tar.zst.age", out.Bytes())
}

type noDNS struct{}

func (noDNS) LookupHost(context.Context, string) ([]string, error) { return nil, nil }

func (w *world) commit(draft *manifest.Manifest, role manifest.Role, file string, plain []byte) {
	w.t.Helper()
	id, err := manifest.NewID(rand.Reader)
	check(w.t, err)
	var sealed bytes.Buffer
	s, err := seal.NewWriter(&sealed, []age.Recipient{w.id.Recipient()})
	check(w.t, err)
	_, err = s.Write(plain)
	check(w.t, err)
	check(w.t, s.Close())
	name := repository.ObjectName(draft.Chain, id, file)
	check(w.t, w.repo.PutObject(w.t.Context(), name, bytes.NewReader(sealed.Bytes()), time.Time{}))
	sums := s.Sums()
	draft.ID, draft.Created, draft.Writer = id, now, manifest.Writer{Node: "cp1", Version: "test"}
	draft.Objects = []manifest.Object{{Name: name, Role: role, Size: sums.StoredSize, SHA256: sums.StoredSHA256, PlainSize: sums.PlainSize}}
	_, err = w.repo.Commit(w.t.Context(), draft)
	check(w.t, err)
}

func (w *world) options() Options {
	return Options{
		Repo: w.repo, Chain: restore.DefaultChain, Files: "hosts/cp1", Identities: []age.Identity{w.id}, Order: w.order,
		Root: w.root, StateDir: w.state, Machine: w.machine, Health: func(*nodefiles.Staged) (Health, error) { return w.machine, nil },
		Inspect: w.inspect,
		Now:     func() time.Time { return now.Add(2 * time.Hour) }, Rand: rand.Reader,
	}
}

// inspect finds what the world says, which is nothing by default: the fixture's
// addresses are nobody's here.
func (w *world) inspect(_ context.Context, in topology.Inputs) (*topology.Host, error) {
	if in.TLS == nil || in.Etcd == nil || in.Facts == nil || in.Point == 0 {
		w.t.Errorf("inspected with %+v", in)
	}
	w.inspected++
	return &topology.Host{Verdict: w.verdict}, nil
}

// run prepares and executes, and ends at a point as a kill does.
func (w *world) run(killAt string) error {
	w.t.Helper()
	o := w.options()
	o.at = func(point string) error {
		if point == killAt {
			return errKilled
		}
		return nil
	}
	p, err := Prepare(w.t.Context(), o)
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Execute(w.t.Context(), nil)
}

var errKilled = errors.New("killed")

func (w *world) abort() error {
	folder, err := OpenJournals(filepath.Join(w.state, "restores"), time.Now)
	check(w.t, err)
	defer folder.Close()
	j, err := Unfinished(folder)
	check(w.t, err)
	if j == nil {
		return errors.New("nothing is unfinished")
	}
	return Abort(w.t.Context(), j, w.machine, nil)
}

// machine is one without a runtime: what runs is what has a manifest while
// kubelet runs.
type machine struct {
	t       *testing.T
	root    string
	running bool // kubelet
	noUnit  bool // a person runs it
	story   []string
}

func (m *machine) tell(what string) { m.story = append(m.story, what) }

func (m *machine) Service(_ context.Context, name string) (node.Service, error) {
	s := node.Service{Name: name, Unit: name + ".service", Active: "inactive"}
	if m.running {
		s.Active, s.PID = "active", 77
	}
	if m.noUnit {
		s.Unit, s.Active = "", ""
	}
	return s, nil
}

func (m *machine) Stop(context.Context, string) error {
	m.tell("stop kubelet")
	m.running = false
	return nil
}
func (m *machine) Start(context.Context, string) error {
	m.tell("start kubelet")
	m.running = true
	return nil
}

func (m *machine) Processes(context.Context, ...string) ([]node.Process, error)  { return nil, nil }
func (m *machine) WaitGone(context.Context, []node.Process) error                { return nil }
func (m *machine) Pods(context.Context) ([]node.Pod, error)                      { return nil, nil }
func (m *machine) StopPods(context.Context, []node.Pod, time.Duration) error     { return nil }
func (m *machine) Images(context.Context) ([]node.Image, error)                  { return nil, nil }
func (m *machine) HasImage(context.Context, string) (bool, error)                { return true, nil }
func (m *machine) Space(string) (node.Space, error)                              { return node.Space{Free: 1 << 40}, nil }
func (m *machine) Listeners(context.Context, ...uint16) ([]node.Listener, error) { return nil, nil }
func (m *machine) Identity() (node.Identity, error) {
	return node.Identity{Hostname: "cp1", Addresses: []node.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.11/24")}}}, nil
}

// present are the static pods that kubelet would run now.
func (m *machine) present() string {
	entries, _ := os.ReadDir(filepath.Join(m.root, "etc/kubernetes/manifests"))
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return strings.Join(names, " ")
}

// The health of a machine whose kubelet runs is good as soon as it is asked.
func (m *machine) ask(what string) error {
	if !m.running {
		return errors.New(what + ": kubelet does not run")
	}
	m.tell(what + " with " + m.present())
	return nil
}

func (m *machine) Etcd(context.Context) error            { return m.ask("etcd") }
func (m *machine) Events(context.Context) error          { return m.ask("events") }
func (m *machine) API(context.Context) error             { return m.ask("API") }
func (m *machine) Node(context.Context, time.Time) error { return m.ask("node") }
func (m *machine) Tidy(context.Context) ([]string, []string, error) {
	return []string{"an alarm"}, nil, m.ask("tidy")
}
func (m *machine) Backup(context.Context) (manifest.ID, error) { return "new", m.ask("backup") }

// tree is everything below a folder that a restore may change.
func (w *world) tree() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	check(w.t, filepath.WalkDir(w.root, func(p string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(w.root, p)
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			check(w.t, err)
			text += " to " + to
		case info.Mode().IsRegular():
			content, err := os.ReadFile(p)
			check(w.t, err)
			text += "\n" + string(content)
		}
		out[name] = text
		return nil
	}))
	return out
}

// old makes the machine one that has an older control plane of the same cluster.
func (w *world) old() map[string]string {
	w.t.Helper()
	p, err := Prepare(w.t.Context(), w.options())
	check(w.t, err)
	ca, err := p.Files.Read("/etc/kubernetes/pki/ca.crt")
	check(w.t, err)
	check(w.t, p.Close())
	for name, text := range map[string]string{
		"etc/kubernetes/pki/ca.crt": string(ca), "etc/kubernetes/admin.conf": "of before", "etc/kubernetes/extra": "only here",
		"etc/kubernetes/manifests/etcd.yaml": pod("etcd"), "etc/kubernetes/manifests/kube-apiserver.yaml": pod("kube-apiserver"),
		"etc/kubernetes/manifests/kube-scheduler.yaml": "", // broken
		"var/lib/etcd/member/snap/db":                  "the old database", "var/lib/kubelet/config.yaml": "of before",
	} {
		path := filepath.Join(w.root, name)
		check(w.t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(w.t, os.WriteFile(path, []byte(text), 0o600))
	}
	return w.tree()
}

func pod(name string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", namespace: kube-system}\nspec: {hostNetwork: true, containers: [{name: " + name + ", image: old}]}\n"
}

// points are all at which a restore can be killed.
func points() (list []string) {
	for _, s := range []string{stepStop, stepFence, stepFiles, stepEtcd, stepStart, stepPods, stepHealth, stepTidy, stepBackup} {
		list = append(list, "begun "+s, "did "+s)
	}
	return list
}

func (w *world) wantRestored() {
	w.t.Helper()
	tree := w.tree()
	for _, name := range []string{"etc/kubernetes/admin.conf", "etc/kubernetes/pki/sa.key", "etc/kubernetes/manifests/etcd.yaml", "etc/kubernetes/manifests/kube-scheduler.yaml", "var/lib/etcd/member/snap/db", "var/lib/kubelet/config.yaml"} {
		if text, ok := tree[name]; !ok || strings.Contains(text, "of before") || strings.Contains(text, "the old") || strings.Contains(text, "image: old") {
			w.t.Errorf("%s is not restored: %.80q", name, text)
		}
	}
	facts, err := snapdb.Inspect(w.t.Context(), filepath.Join(w.root, "var/lib/etcd/member/snap/db"), snapdb.Options{})
	check(w.t, err)
	if facts.Revision < 1_000_000_000 {
		w.t.Errorf("the database is at revision %d", facts.Revision)
	}
	if !w.machine.running {
		w.t.Error("kubelet does not run")
	}
	w.wantNoKeys()
}

// wantNoKeys checks that no staged files are left.
func (w *world) wantNoKeys() {
	w.t.Helper()
	left, err := filepath.Glob(filepath.Join(w.state, "restores", "*", stagedName))
	check(w.t, err)
	if len(left) > 0 {
		w.t.Errorf("keys are left in %v", left)
	}
}

func TestABareMachineGetsItsControlPlaneInOrder(t *testing.T) {
	w := newWorld(t)
	w.machine.running = false
	check(t, w.run(""))
	w.wantRestored()
	want := []string{
		"stop kubelet", "start kubelet", "etcd with etcd", "API with etcd kube-apiserver",
		"etcd with etcd kube-apiserver kube-controller-manager kube-scheduler",
		"API with etcd kube-apiserver kube-controller-manager kube-scheduler", "etcd with etcd kube-apiserver kube-controller-manager kube-scheduler", "node with etcd kube-apiserver kube-controller-manager kube-scheduler",
		"tidy with etcd kube-apiserver kube-controller-manager kube-scheduler", "backup with etcd kube-apiserver kube-controller-manager kube-scheduler",
	}
	if diff := cmp.Diff(want, w.machine.story); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

func TestARestoreThatIsKilledAnywhereGoesOn(t *testing.T) {
	for _, point := range points() {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.old()
			if err := w.run(point); !errors.Is(err, errKilled) {
				t.Fatalf("not killed: %v", err)
			}
			check(t, w.run(""))
			w.wantRestored()
			if err := w.abort(); err == nil {
				t.Error("a restore that has ended was aborted")
			}
		})
	}
}

func TestAnAbortedRestoreLeavesTheMachineAsItWas(t *testing.T) {
	for _, point := range points() {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			before := w.old()
			if err := w.run(point); !errors.Is(err, errKilled) {
				t.Fatalf("not killed: %v", err)
			}
			check(t, w.abort())
			w.wantOld(before)
			check(t, w.run("")) // and a new one can be done
			w.wantRestored()
		})
	}
}

func TestAnotherRestoreMustWaitForTheOneThatWasBegun(t *testing.T) {
	w := newWorld(t)
	if err := w.run("did " + stepFence); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	w.order.Rename = []string{"cp1=cp4"}
	if err := w.run(""); !errors.Is(err, ErrUnfinished) {
		t.Errorf("with other flags: %v", err)
	}
	check(t, w.abort())
	check(t, w.run(""))
	if text := w.tree()["etc/kubernetes/manifests/etcd.yaml"]; !strings.Contains(text, "--name=cp4") {
		t.Errorf("etcd's manifest: %s", text)
	}
}

func TestWhatCantWorkIsRefusedBeforeTheFirstChange(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		want   error
		say    string
	}{
		"a machine of another cluster": {func(w *world) {
			path := filepath.Join(w.root, "etc/kubernetes/pki/ca.crt")
			check(w.t, os.MkdirAll(filepath.Dir(path), 0o755))
			check(w.t, os.WriteFile(path, []byte("another CA"), 0o644))
		}, restore.ErrRefused, "another cluster"},
		"a wrong identity": {func(w *world) {
			id, err := age.GenerateX25519Identity()
			check(w.t, err)
			w.id = id
		}, seal.ErrNoIdentity, ""},
		"a majority that lives": {func(w *world) {
			w.verdict = topology.Verdict{Outcome: topology.QuorumLives, Refuse: true, Why: []string{"cp2 and cp3 agree on a leader"}, Do: []string{"kubeadm join"}}
		}, restore.ErrRefused, "cp2 and cp3 agree on a leader\nkubeadm join"},
		"a bad mapping": {func(w *world) { w.order.Address = []string{"10.0.0.11"} }, nil, "10.0.0.11"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.change(w)
			before := w.tree()
			err := w.run("")
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%v", err)
			}
			if diff := cmp.Diff(before, w.tree()); diff != "" || len(w.machine.story) > 0 {
				t.Errorf("something changed: %v\n%s", w.machine.story, diff)
			}
			entries, _ := os.ReadDir(filepath.Join(w.state, "restores"))
			if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.IsDir() }) {
				t.Errorf("left in the state folder: %v", entries)
			}
		})
	}
}

func TestThePlanTellsEachStep(t *testing.T) {
	w := newWorld(t)
	p, err := Prepare(t.Context(), w.options())
	check(t, err)
	defer p.Close()
	var out strings.Builder
	check(t, p.Print(&out))
	for _, words := range []string{"Rebuild the control plane of node cp1", "Stop kubelet", "restore abort", "Put the node's files back", "Bring the static pods back", "Take a full backup"} {
		if !strings.Contains(out.String(), words) {
			t.Errorf("it does not say %q:\n%s", words, out.String())
		}
	}
}
