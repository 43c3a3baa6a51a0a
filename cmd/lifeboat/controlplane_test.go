package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/restore/node"
	"lifeboat/restore/plane"
)

// ward is a backed-up control plane that is lost, and the machine to restore it on.
type ward struct {
	t       *testing.T
	work    string
	root    string // of the machine
	state   string
	config  string
	port    int // of etcd
	machine *patient
	later   time.Duration // that the commands are given
}

// newWard backs up a real etcd and the files of a node, and stops the etcd. More
// stores are folders beside the first one.
func newWard(t *testing.T, stores ...string) *ward {
	t.Helper()
	return newWardOf(t, func(string) {}, stores...)
}

// newWardOf backs up a node that was changed below its root since lifeboat init.
func newWardOf(t *testing.T, change func(host string), stores ...string) *ward {
	t.Helper()
	w := &ward{t: t, work: shm(t)}
	w.root, w.state, w.config = filepath.Join(w.work, "machine"), filepath.Join(w.work, "state"), filepath.Join(w.work, "keys/config.yaml")
	w.machine = &patient{ward: w, running: true}
	must(t, os.MkdirAll(w.root, 0o755))
	etcd := w.start("lost", 0)
	host := filepath.Join(w.work, "host")
	must(t, kubefixture.Build(host, kubefixture.Options{Node: "cp1", Address: "127.0.0.1", EtcdEndpoints: []string{etcd.Endpoint}}))
	manifest := filepath.Join(host, "etc/kubernetes/manifests/etcd.yaml") // as the test's own is
	rewrite(t, manifest, "etcd:3.6.8-0", "etcd:3.7.3-0")
	rewrite(t, manifest, "--initial-advertise-peer-urls=https://127.0.0.1:2380", "--initial-advertise-peer-urls="+etcd.PeerURL)
	client, err := etcdtest.NewClient(etcd.Endpoint)
	must(t, err)
	_, err = etcdtest.Fill(t.Context(), client, etcdtest.FillOptions{Objects: 40})
	must(t, err)
	must(t, client.Close())
	init := []string{"init", "--cluster", "prod", "--out", filepath.Dir(w.config), "--host-root", host, "--node", "cp1"}
	for _, store := range append([]string{"store"}, stores...) {
		init = append(init, "--store", "file://"+filepath.Join(w.work, store))
	}
	w.must(init...)
	rewrite(t, w.config, "\nstateDir: ", "\nstateDir: "+w.state+" # ")
	change(host)
	w.must("backup", "--config", w.config)
	must(t, etcd.Close())
	return w
}

// shm is a folder in memory where there is such a place.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lifeboat-cmd-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// rewrite changes the one place of a text in a file.
func rewrite(t *testing.T, path, old, new string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	if n := strings.Count(string(text), old); n != 1 {
		t.Fatalf("%s has %q %d times", path, old, n)
	}
	must(t, os.WriteFile(path, []byte(strings.Replace(string(text), old, new, 1)), 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs an etcd with its data in a folder below the work's.
func (w *ward) start(dir string, port int) *etcdtest.Member {
	w.t.Helper()
	etcd, err := etcdtest.StartEmbedded(filepath.Join(w.work, dir), etcdtest.EmbeddedOptions{Name: "cp1", NoSync: true, ClientPort: port})
	must(w.t, err)
	w.t.Cleanup(func() { _ = etcd.Close() })
	u, err := url.Parse(etcd.Endpoint)
	must(w.t, err)
	w.port, err = strconv.Atoi(u.Port())
	must(w.t, err)
	return etcd
}

// run runs a command; answer is what a person types.
func (w *ward) run(ctx context.Context, answer string, args ...string) (code int, out, errs string) {
	w.t.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{
		streams: streams{in: strings.NewReader(answer), out: &stdout, err: &stderr}, now: func() time.Time { return time.Now().Add(w.later) }, rand: rand.Reader,
		machine: func(root string) node.Machine {
			if root != w.root {
				w.t.Errorf("the machine at %s is asked for", root)
			}
			return w.machine
		},
		living: func(o plane.LivingOptions) (plane.Health, error) { return &visit{w.machine, o}, nil },
	}
	code = a.run(ctx, args)
	return code, stdout.String(), stderr.String()
}

func (w *ward) must(args ...string) string {
	w.t.Helper()
	code, out, errs := w.run(w.t.Context(), "", args...)
	if code != 0 {
		w.t.Fatalf("lifeboat %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// flags are those of a restore here.
func (w *ward) flags(more ...string) []string {
	return append([]string{"restore", "control-plane", "--config", w.config, "--identity", filepath.Join(filepath.Dir(w.config), "recovery.key"), "--root", w.root}, more...)
}

// patient is a machine without a runtime: what has a manifest runs while kubelet
// does.
type patient struct {
	node.Machine // what must not be called panics
	ward         *ward
	running      bool // kubelet
	etcd         *etcdtest.Member
	story        []string
	failing      map[string]func() error // by what is asked

	addresses []string // empty: the loopback one
}

func (m *patient) tell(what string) error {
	m.story = append(m.story, what)
	if f := m.failing[what]; f != nil {
		return f()
	}
	return nil
}

func (m *patient) Service(_ context.Context, name string) (node.Service, error) {
	s := node.Service{Name: name, Unit: name + ".service", Active: "inactive"}
	if m.running && name == node.Kubelet {
		s.Active, s.PID = "active", 77
	}
	return s, nil
}

func (m *patient) Stop(context.Context, string) error {
	m.running = false
	if m.etcd != nil {
		_ = m.etcd.Close()
		m.etcd = nil
	}
	return m.tell("stop kubelet")
}

func (m *patient) Start(context.Context, string) error {
	m.running = true
	if _, err := os.Stat(filepath.Join(m.ward.root, "etc/kubernetes/manifests")); err != nil {
		m.ward.t.Errorf("kubelet starts without a folder that it can watch: %v", err)
	}
	return m.tell("start kubelet")
}

func (m *patient) Processes(context.Context, ...string) ([]node.Process, error)  { return nil, nil }
func (m *patient) WaitGone(context.Context, []node.Process) error                { return nil }
func (m *patient) Pods(context.Context) ([]node.Pod, error)                      { return nil, nil }
func (m *patient) StopPods(context.Context, []node.Pod, time.Duration) error     { return nil }
func (m *patient) HasImage(context.Context, string) (bool, error)                { return true, nil }
func (m *patient) Space(string) (node.Space, error)                              { return node.Space{Free: 1 << 40}, nil }
func (m *patient) Listeners(context.Context, ...uint16) ([]node.Listener, error) { return nil, nil }
func (m *patient) Identity() (node.Identity, error) {
	id := node.Identity{Hostname: "cp1"}
	if len(m.addresses) == 0 {
		id.Addresses = append(id.Addresses, node.Address{Interface: "lo", Prefix: netip.MustParsePrefix("127.0.0.1/8")})
	}
	for _, a := range m.addresses {
		id.Addresses = append(id.Addresses, node.Address{Interface: "eth0", Prefix: netip.MustParsePrefix(a)})
	}
	return id, nil
}

// visit is the health of the patient, whose etcd is a real one.
type visit struct {
	*patient
	options plane.LivingOptions
}

func (v *visit) Etcd(context.Context) error {
	if v.etcd == nil {
		v.etcd = v.ward.start("machine/var/lib/etcd", v.ward.port)
	}
	return v.tell("etcd")
}
func (v *visit) Events(context.Context) error { return v.tell("events") }
func (v *visit) API(context.Context) error    { return v.tell("API") }
func (v *visit) Node(_ context.Context, since time.Time) error {
	if since.IsZero() {
		return errors.New("a heartbeat since when?")
	}
	return v.tell("node")
}
func (v *visit) Tidy(context.Context) ([]string, []string, error) {
	return []string{"an alarm"}, []string{"a member is nearly full"}, v.tell("tidy")
}

func (v *visit) Backup(ctx context.Context) (manifest.ID, error) {
	return v.options.Backup(ctx)
}

// revision asks the patient's etcd.
func (w *ward) revision() int64 {
	w.t.Helper()
	client, err := etcdtest.NewClient(w.machine.etcd.Endpoint)
	must(w.t, err)
	defer client.Close()
	got, err := client.Get(w.t.Context(), "x")
	must(w.t, err)
	return got.Header.Revision
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// keys are a JSON object's, sorted.
func keys(t *testing.T, text string) []string {
	t.Helper()
	var v map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(text), &v))
	return slices.Sorted(maps.Keys(v))
}

func TestAControlPlaneComesBackByOneCommand(t *testing.T) {
	w := newWard(t)

	// A dry run, for programs and for people, changes nothing.
	out := w.must(w.flags("--dry-run", "-o", "json")...)
	want := []string{"bump", "clusterID", "continues", "filesBackup", "host", "members", "node", "notes", "point", "restoreID", "steps", "summary", "token", "warnings"}
	if got := keys(t, out); !slices.Equal(got, want) {
		t.Errorf("a plan has the fields %v, want %v", got, want)
	}
	plan := decode[struct {
		Node, RestoreID, Members string
		Continues                bool
		Steps                    []planeStepJSON
		Point                    pointJSON
	}](t, dropped(t, out, "bump", "clusterID", "filesBackup", "host", "notes", "summary", "token", "warnings"))
	var stages []string
	for _, s := range plan.Steps {
		stages = append(stages, s.Stage)
	}
	if got := strings.Join(stages, " "); got != "fetch check edit keys stop fence files install start pods health tidy backup" || plan.Node != "cp1" || plan.Continues || plan.Members != "one" {
		t.Errorf("the plan: %+v, stages %s", plan, got)
	}
	text := w.must(w.flags("--dry-run")...)
	for _, words := range []string{"Rebuild the control plane of node cp1", " 5. Stop kubelet", "restore abort"} {
		if !strings.Contains(text, words) {
			t.Errorf("the plan does not say %q:\n%s", words, text)
		}
	}
	if entries, err := os.ReadDir(w.root); err != nil || len(entries) > 0 || len(w.machine.story) > 0 {
		t.Fatalf("a dry run changed something: %v %v %v", entries, w.machine.story, err)
	}
	if code, _, errs := w.run(t.Context(), "n\n", w.flags()...); code != 1 || !strings.Contains(errs, "nothing was changed") {
		t.Errorf("a no: %d %s", code, errs)
	}

	code, out, errs := w.run(t.Context(), "y\n", w.flags()...)
	if code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, out, errs)
	}
	if got := strings.Join(w.machine.story, ", "); got != "stop kubelet, start kubelet, etcd, API, etcd, API, etcd, node, tidy" {
		t.Errorf("what happened: %s", got)
	}
	for _, words := range []string{
		"The control plane of node cp1 is back", "from the command to /readyz (etcd served after ", "Bring the static pods back", "RPO: the state is of", "no changes behind it are recorded", "Tidied:\n  - an alarm",
		"etcd/main", "hosts/cp1", "Left to do:",
	} {
		if !strings.Contains(out, words) {
			t.Errorf("the report does not say %q:\n%s", words, out)
		}
	}
	for _, words := range []string{"Go on? [y/N]", " 1/13 Fetch", "13/13 Take a full backup"} {
		if !strings.Contains(errs, words) {
			t.Errorf("on the way it did not say %q:\n%s", words, errs)
		}
	}
	if r := w.revision(); r < 1_000_000_000 {
		t.Errorf("etcd is at revision %d", r)
	}
	if _, err := os.Stat(filepath.Join(w.root, "etc/kubernetes/admin.conf")); err != nil {
		t.Error(err)
	}

	// The new history has a full of its own, and lives: there is nothing to restore.
	code, _, errs = w.run(t.Context(), "", w.flags("--yes")...)
	if code != exitRefused || !strings.Contains(errs, "etcd needs no restore") {
		t.Errorf("once more: %d %s", code, errs)
	}
}

// dropped is a JSON object without some of its fields.
func dropped(t *testing.T, text string, fields ...string) string {
	t.Helper()
	var v map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(text), &v))
	for _, f := range fields {
		delete(v, f)
	}
	out, err := json.Marshal(v)
	must(t, err)
	return string(out)
}

func TestTheReportIsForProgramsToo(t *testing.T) {
	w := newWard(t)
	out := w.must(w.flags("--yes", "-o", "json")...)
	r := decode[planeReportJSON](t, out)
	want := []string{"aside", "backups", "clusterID", "continued", "filesBackup", "left", "node", "point", "restoreID", "revision", "rpo", "rto", "tidied", "warnings"}
	if got := keys(t, out); !slices.Equal(got, want) {
		t.Errorf("a report has the fields %v, want %v", got, want)
	}
	var phases []string
	sum := 0.0
	for _, p := range r.RTO.Phases {
		phases = append(phases, p.Stage)
		sum += p.Seconds
	}
	if got := strings.Join(phases, " "); got != "plan fetch check edit keys stop fence files install start pods health tidy backup" {
		t.Errorf("phases %s", got)
	}
	if r.RTO.Ready <= 0 || r.RTO.Ready > r.RTO.Seconds || sum > r.RTO.Seconds+0.01 || r.RTO.Etcd > r.RTO.Ready || r.RTO.Heartbeat < r.RTO.Ready {
		t.Errorf("RTO %+v, phases of %.3f s", r.RTO, sum)
	}
	if len(r.Backups) != 2 || r.Backups[0].Chain != "etcd/main" || r.Backups[1].Chain != "hosts/cp1" || int64(r.Backups[0].Revision) < r.Revision {
		t.Errorf("new backups %+v", r.Backups)
	}
	if r.RPO.Recorded || r.RPO.Revision != r.Point.Revision || r.RPO.AgeSeconds <= 0 || r.RPO.AgeSeconds > 600 {
		t.Errorf("RPO %+v", r.RPO)
	}
	if r.Continued || r.Revision != int64(r.Point.Revision)+1_000_000_000 || !slices.Equal(r.Tidied, []string{"an alarm"}) || r.Left[0] != "a member is nearly full" {
		t.Errorf("%+v", r)
	}
}

func TestABackupThatCantBeTakenIsLeftToDo(t *testing.T) {
	w := newWard(t)
	must(t, os.Remove(filepath.Join(filepath.Dir(w.config), "signing.key")))
	r := decode[planeReportJSON](t, w.must(w.flags("--yes", "-o", "json")...))
	if len(r.Backups) > 0 || !strings.Contains(fmt.Sprint(r.Left), "signing.key") || !strings.Contains(fmt.Sprint(r.Left), "lifeboat backup") {
		t.Errorf("backups %v, left to do: %q", r.Backups, r.Left)
	}
}
