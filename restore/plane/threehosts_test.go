package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/backup/host"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
	"lifeboat/restore"
	"lifeboat/restore/kubeapi"
	"lifeboat/restore/node"
	"lifeboat/restore/nodefiles"
)

// etcdHostOf is one host of a real cluster, whose unit is a real etcd process.
type etcdHostOf struct {
	*machine
	name, root, state, bin string

	mu  sync.Mutex
	cmd *exec.Cmd
}

func (h *etcdHostOf) Identity() (node.Identity, error) {
	return node.Identity{Hostname: h.name, Addresses: []node.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("127.0.0.1/8")}}}, nil
}

func (h *etcdHostOf) Service(_ context.Context, name string) (node.Service, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := node.Service{Name: name, Unit: name + ".service", Active: "inactive"}
	if h.cmd != nil {
		s.Active, s.PID = "active", h.cmd.Process.Pid
	}
	return s, nil
}

// Start does what systemd would make of the restored unit and environment file,
// whose paths are the host's own.
func (h *etcdHostOf) Start(_ context.Context, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	unit, err := os.ReadFile(filepath.Join(h.root, "etc/systemd/system", name+".service"))
	if err != nil || !strings.Contains(string(unit), "EnvironmentFile=/etc/etcd/etcd.env") {
		return fmt.Errorf("the unit is not restored: %w: %s", err, unit)
	}
	env, err := os.ReadFile(filepath.Join(h.root, "etc/etcd/etcd.env"))
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(h.state, "etcd.log"))
	if err != nil {
		return err
	}
	h.cmd = exec.Command(h.bin)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	for line := range strings.Lines(string(env)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if strings.HasPrefix(value, "/") {
			value = h.root + value
		}
		h.cmd.Env = append(h.cmd.Env, key+"="+value)
	}
	return h.cmd.Start()
}

func (h *etcdHostOf) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	}
}

// backUpHost takes the files of a host on which a member of the cluster runs as a
// unit.
func (w *world) backUpHost(c *cluster.Cluster, i int, bin string) {
	w.t.Helper()
	m, root := c.Members[i], folder(w.t)
	pki := filepath.Dir(c.CAFile)
	entries, err := os.ReadDir(pki)
	check(w.t, err)
	write := func(name, text string) {
		file := filepath.Join(root, name)
		check(w.t, os.MkdirAll(filepath.Dir(file), 0o755))
		check(w.t, os.WriteFile(file, []byte(text), 0o600))
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(pki, e.Name()))
		check(w.t, err)
		write("etc/etcd/pki/"+e.Name(), string(text))
	}
	var initial []string
	for _, other := range c.Members {
		initial = append(initial, other.Name+"="+other.PeerURL)
	}
	write("etc/systemd/system/etcd.service", "[Service]\nEnvironmentFile=/etc/etcd/etcd.env\nExecStart="+bin+"\n")
	write("etc/etcd/etcd.env", fmt.Sprintf(`ETCD_NAME=%[1]s
ETCD_DATA_DIR=/srv/etcd
ETCD_LISTEN_CLIENT_URLS=%[2]s
ETCD_ADVERTISE_CLIENT_URLS=%[2]s
ETCD_LISTEN_PEER_URLS=%[3]s
ETCD_INITIAL_ADVERTISE_PEER_URLS=%[3]s
ETCD_INITIAL_CLUSTER=%[4]s
ETCD_CLIENT_CERT_AUTH=true
ETCD_TRUSTED_CA_FILE=/etc/etcd/pki/ca.crt
ETCD_CERT_FILE=/etc/etcd/pki/server.crt
ETCD_KEY_FILE=/etc/etcd/pki/server.key
ETCD_PEER_CLIENT_CERT_AUTH=true
ETCD_PEER_TRUSTED_CA_FILE=/etc/etcd/pki/ca.crt
ETCD_PEER_CERT_FILE=/etc/etcd/pki/server.crt
ETCD_PEER_KEY_FILE=/etc/etcd/pki/server.key
ETCD_UNSAFE_NO_FSYNC=true
`, m.Name, m.Endpoint, m.PeerURL, strings.Join(initial, ",")))
	var out bytes.Buffer
	a := seal.NewArchiveWriter(&out)
	_, err = host.Capture(w.t.Context(), host.Options{
		Root: root, Node: m.Name, Now: func() time.Time { return now }, Resolver: noDNS{}, Wait: time.Millisecond, Addresses: func() ([]host.Address, error) { return nil, nil },
	}, a)
	check(w.t, err)
	check(w.t, a.Close())
	w.commit(&manifest.Manifest{Chain: manifest.Chain("hosts/" + m.Name), Kind: manifest.KindFiles, Host: &manifest.Host{Node: m.Name, Files: 1, Bytes: 1}}, manifest.RoleFiles, "files.tar.zst.age", out.Bytes())
}

// backUpCluster takes a full of a real cluster.
func (w *world) backUpCluster(c *cluster.Cluster) {
	w.t.Helper()
	file := filepath.Join(folder(w.t), "snapshot.db")
	out, err := exec.CommandContext(w.t.Context(), cluster.Binary(w.t, c.Version, "etcdctl"), "--endpoints", c.Members[0].Endpoint,
		"--cacert", c.CAFile, "--cert", c.CertFile, "--key", c.KeyFile, "snapshot", "save", file).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	plain, err := os.ReadFile(file)
	check(w.t, err)
	check(w.t, os.Truncate(file, int64(len(plain)-32))) // without its trailer it is a database
	facts, err := snapdb.Inspect(w.t.Context(), file, snapdb.Options{})
	check(w.t, err)
	list, err := c.Client().MemberList(w.t.Context())
	check(w.t, err)
	e := &manifest.Etcd{
		Version: c.Version + ".0", StorageVersion: facts.StorageVersion, ClusterVersion: facts.ClusterVersion, ClusterID: manifest.EtcdID(list.Header.ClusterId), MemberID: manifest.EtcdID(list.Header.MemberId),
		Revision: manifest.Revision(facts.Revision), CompactRevision: manifest.Revision(max(0, facts.CompactRevision)), HashKV: facts.HashKV, DBBytes: facts.DBBytes, Keys: facts.Keys,
	}
	for _, m := range list.Members {
		e.Members = append(e.Members, manifest.Member{ID: manifest.EtcdID(m.ID), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs})
	}
	e.ComparedWith = []manifest.EtcdID{e.Members[0].ID}
	w.commit(&manifest.Manifest{Chain: restore.DefaultChain, Kind: manifest.KindFull, Etcd: e}, manifest.RoleSnapshot, "snapshot.db.zst.age", plain)
}

// threeHosts is a real cluster of three hosts with TLS and its backups, and three
// empty machines to restore it on.
type threeHosts struct {
	*world
	cluster *cluster.Cluster
	hosts   []*etcdHostOf
	killAt  string // where restore ends
}

func newThreeHosts(t *testing.T, version string, before ...func(*cluster.Cluster)) *threeHosts {
	w := emptyWorld(t)
	bin := cluster.Binary(t, version, "etcd")
	c := cluster.StartBinary(t, version, cluster.Options{Members: 3, TLS: true, Args: []string{"--quota-backend-bytes", fmt.Sprint(16 << 20)}})
	_, err := c.Client().Put(t.Context(), "/registry/x", "kept")
	check(t, err)
	for _, f := range before {
		f(c)
	}
	w.backUpCluster(c)
	three := &threeHosts{world: w, cluster: c}
	for i := range c.Members {
		w.backUpHost(c, i, bin)
		three.hosts = append(three.hosts, three.host(i, bin))
	}
	return three
}

// host is an empty machine for a member.
func (w *threeHosts) host(i int, bin string) *etcdHostOf {
	w.t.Helper()
	h := &etcdHostOf{machine: &machine{t: w.t}, name: w.cluster.Members[i].Name, root: folder(w.t), state: folder(w.t), bin: bin}
	file := filepath.Join(h.root, bin) // that it is installed is looked for below the root
	check(w.t, os.MkdirAll(filepath.Dir(file), 0o755))
	check(w.t, os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755))
	w.t.Cleanup(h.kill)
	return h
}

// prepare plans a host's restore, which ends at a point as a kill does.
func (w *threeHosts) prepare(h *etcdHostOf, shared *Shared, killAt string) (*Plan, error) {
	o := w.options()
	o.Order, o.Shared, o.Files = Order{Node: h.name, Members: All}, shared, manifest.Chain("hosts/"+h.name)
	o.Root, o.StateDir, o.Machine, o.Inspect, o.Limit = h.root, h.state, h, nil, 2*time.Minute
	o.Now = time.Now // the cluster's certificates are of today
	o.Health = func(s *nodefiles.Staged) (Health, error) {
		return NewLiving(LivingOptions{Staged: s, Node: h.name, Order: o.Order})
	}
	o.at = func(point string) error {
		if point == killAt {
			return errKilled
		}
		return nil
	}
	return Prepare(w.t.Context(), o)
}

// restore restores hosts at the same time, as the first one's plan says, and returns
// what they have tidied and left.
func (w *threeHosts) restore(shared *Shared, hosts ...*etcdHostOf) (tidied, left string) {
	w.t.Helper()
	var all sync.WaitGroup
	errs, plans := make([]error, len(hosts)), make([]*Plan, len(hosts))
	for i, h := range hosts {
		p, err := w.prepare(h, shared, w.killAt)
		check(w.t, err)
		defer p.Close()
		plans[i] = p
		all.Go(func() { errs[i] = p.Execute(w.t.Context(), nil) })
		if i == 0 && len(hosts) > 1 {
			time.Sleep(time.Second) // it serves nothing alone, and the others find it alive
		}
	}
	all.Wait()
	for i, err := range errs {
		if err != nil && !(w.killAt != "" && errors.Is(err, errKilled)) {
			log, _ := os.ReadFile(filepath.Join(hosts[i].state, "etcd.log"))
			w.t.Fatalf("%s: %v\n%.3000s", hosts[i].name, err, log)
		}
		tidied += strings.Join(plans[i].Tidied, "\n") + "\n"
		left += strings.Join(plans[i].Left, "\n")
	}
	return tidied, left
}

// share is the order of the first host for all.
func (w *threeHosts) share() *Shared {
	w.t.Helper()
	first, err := w.prepare(w.hosts[0], nil, "")
	check(w.t, err)
	defer first.Close()
	text, err := first.Share()
	check(w.t, err)
	shared, err := ParseShared(text)
	check(w.t, err)
	return shared
}

// loseAll kills the cluster.
func (w *threeHosts) loseAll() {
	for i := range w.cluster.Members {
		w.cluster.Kill(i)
	}
}

// TestThreeHostsOfEtcdComeBackFromOneOrder loses a real cluster of three hosts with
// TLS, and restores each from its own files and one order.
func TestThreeHostsOfEtcdComeBackFromOneOrder(t *testing.T) {
	w := newThreeHosts(t, "3.6")
	c := w.cluster
	if _, err := w.prepare(w.hosts[0], nil, ""); !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "3 of 3 voting members answer and name") {
		t.Fatalf("beside the living cluster: %v", err)
	}
	w.loseAll()
	w.restore(w.share(), w.hosts...)
	got, err := c.Client().Get(t.Context(), "/registry/x")
	check(t, err)
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "kept" || got.Header.Revision < 1_000_000_000 {
		t.Errorf("%+v", got)
	}
	var endpoints []string
	for _, m := range c.Members {
		endpoints = append(endpoints, m.Endpoint)
	}
	ask, err := kubeapi.NewEtcd(kubeapi.EtcdOptions{Endpoints: endpoints, TLS: c.TLS()})
	check(t, err)
	defer ask.Close()
	agreed, err := ask.Agree(t.Context(), nil)
	if err != nil || len(agreed.Members) != 3 {
		t.Errorf("%+v, %v", agreed, err)
	}
}

// One who comes late, also after an abort, is let in, as long as its member has never
// started. Afterwards the order is not accepted again, whatever became of the journal:
// the new member would have the old one's id, and nothing of what it had agreed to.
func TestAHostMayComeLateButNotTwice(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			w := newThreeHosts(t, version)
			w.loseAll()
			shared := w.share()
			if _, left := w.restore(shared, w.hosts[:2]...); !strings.Contains(left, "whether etcd's members hold the same is not known") || !strings.Contains(left, "never started") {
				t.Errorf("two of three have left: %s", left)
			}

			late := w.hosts[2]
			p, err := w.prepare(late, shared, "did "+stepEtcd)
			check(t, err)
			if err := p.Execute(t.Context(), nil); !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			check(t, p.Close())
			w.state = late.state
			check(t, w.abort())
			if tidied, left := w.restore(shared, late); !strings.Contains(tidied, "etcd's 3 members are equal in HashKV") || left != "" {
				t.Errorf("the last has tidied %q and left %q", tidied, left)
			}

			_, err = w.cluster.Client().Put(t.Context(), "/registry/y", "since")
			check(t, err)
			late.kill()
			bare := w.host(2, late.bin)
			p, err = w.prepare(bare, shared, "")
			if err == nil {
				p.Close()
			}
			if !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "was done on this node before") ||
				!strings.Contains(err.Error(), "member remove") || !strings.Contains(err.Error(), "member add "+late.name) {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

// A database that was full when it was backed up refuses every write where it is
// restored, although there is room. It takes all members to end that.
func TestAnAlarmOutOfTheBackupEndsBeforeAnythingIsToWrite(t *testing.T) {
	w := newThreeHosts(t, "3.6", func(c *cluster.Cluster) {
		for i := 0; ; i++ {
			if _, err := c.Client().Put(t.Context(), "/registry/large", strings.Repeat("v", 512<<10)); err != nil {
				return
			}
			if i > 200 {
				t.Fatal("the quota is never reached")
			}
		}
	})
	w.loseAll()
	shared := w.share()
	w.killAt = "did " + stepStartEtcd
	w.restore(shared, w.hosts...)
	_, err := w.cluster.Client().Put(t.Context(), "/registry/y", "since")
	check(t, err)
	w.killAt = ""
	if tidied, left := w.restore(shared, w.hosts...); !strings.Contains(tidied, "equal in HashKV") || left != "" {
		t.Errorf("tidied %q, left %q", tidied, left)
	}
}
