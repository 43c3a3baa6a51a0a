package topology_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/restore/node"
	"lifeboat/restore/topology"
)

// backupOf is what a full of the cluster would say of it.
func backupOf(t *testing.T, c *cluster.Cluster) *manifest.Etcd {
	t.Helper()
	list, err := c.Client().MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Client().Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	out := &manifest.Etcd{ClusterID: manifest.EtcdID(list.Header.ClusterId), Revision: manifest.Revision(got.Header.Revision)}
	for _, m := range list.Members {
		out.Members = append(out.Members, manifest.Member{ID: manifest.EtcdID(m.ID), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner})
	}
	slices.SortFunc(out.Members, func(a, b manifest.Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func write1(t *testing.T, c *cluster.Cluster, members ...int) {
	t.Helper()
	if _, err := c.Client(members...).Put(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
}

// look inspects an empty host beside a cluster.
func look(t *testing.T, c *cluster.Cluster, etcd *manifest.Etcd, change ...func(*topology.Inputs)) *topology.Host {
	t.Helper()
	in := topology.Inputs{Root: t.TempDir(), Facts: facts(), Etcd: etcd, TLS: c.TLS(), Limits: topology.Limits{Call: 2 * time.Second}, Dial: new(net.Dialer).DialContext}
	in.Facts.Etcd.EtcdEndpoints = nil // not this machine's own
	for _, f := range change {
		f(&in)
	}
	return inspect(t, in)
}

func states(h *topology.Host) (out []topology.State) {
	for _, m := range h.Living.Members {
		out = append(out, m.State)
	}
	return out
}

func TestACluster(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{Members: 3, TLS: true})
			etcd := backupOf(t, c)
			write1(t, c)
			for i := range c.Members { // each has what two of three have acknowledged
				c.WaitHealthy(i)
			}

			h := look(t, c, etcd)
			if h.Verdict.Outcome != topology.QuorumLives || !h.Verdict.Refuse || h.Living.Answering != 3 || h.Living.Voters != 3 || h.Living.Same == nil || !*h.Living.Same || h.Living.Leader == 0 {
				t.Fatalf("all live: %+v, %+v", h.Verdict, h.Living)
			}
			if !strings.Contains(strings.Join(h.Verdict.Do, "\n"), "needs no restore") {
				t.Errorf("all live: %q", h.Verdict.Do)
			}
			for _, m := range h.Living.Members {
				if m.State != topology.Answers || m.ClusterID != etcd.ClusterID || m.Revision <= int64(etcd.Revision) || !strings.HasPrefix(m.Version, version) || !m.InBackup {
					t.Errorf("%+v", m)
				}
			}

			c.Kill(0)
			c.WaitHealthy(1)
			h = look(t, c, etcd)
			do := strings.Join(h.Verdict.Do, "\n")
			if h.Verdict.Outcome != topology.QuorumLives || !slices.Equal(states(h), []topology.State{topology.Refuses, topology.Answers, topology.Answers}) {
				t.Fatalf("one is dead: %+v, %+v", h.Verdict, h.Living)
			}
			for _, want := range []string{
				"member remove " + etcd.Members[0].ID.String() + "    # m0", "kubectl delete node m0", "member list", "kubeadm reset --force", "kubeadm join ENDPOINT", "--control-plane", "upload-certs",
				"kubectl -n kube-system exec etcd-m",
			} {
				if !strings.Contains(do, want) {
					t.Errorf("the advice lacks %q:\n%s", want, do)
				}
			}

			// A quorum that is hidden from here behind foreign certificates.
			h = look(t, c, etcd, func(in *topology.Inputs) { in.TLS = nil })
			if h.Verdict.Outcome != topology.Unclear || !h.Verdict.Refuse || !slices.Equal(states(h), []topology.State{topology.Refuses, topology.Accepts, topology.Accepts}) {
				t.Errorf("without certificates: %+v, %v", h.Verdict, states(h))
			}
			h = look(t, c, etcd, func(in *topology.Inputs) { in.TLS = &tls.Config{MinVersion: tls.VersionTLS12} })
			if h.Verdict.Outcome != topology.Unclear || !strings.Contains(strings.Join(h.Verdict.Why, "\n"), "not these certificates") {
				t.Errorf("with foreign certificates: %+v", h.Verdict)
			}
			own := c.TLS().Clone()
			own.Certificates = nil
			h = look(t, c, etcd, func(in *topology.Inputs) { in.TLS = own })
			if h.Verdict.Outcome != topology.Unclear {
				t.Errorf("without a client's certificate: %+v", h.Verdict)
			}

			c.Kill(1)
			waitNoLeader(t, c, 2)
			h = look(t, c, etcd)
			if h.Verdict.Outcome != topology.Survivors || h.Verdict.Refuse || h.Living.Answering != 1 || h.Living.Quorum {
				t.Fatalf("one lives: %+v, %+v", h.Verdict, h.Living)
			}
			if why := strings.Join(h.Verdict.Why, "\n"); !strings.Contains(why, "without a quorum (1 of 3 voters do)") || !strings.Contains(why, "revisions beyond the point") {
				t.Error(why)
			}
			if do := strings.Join(h.Verdict.Do, "\n"); !strings.Contains(do, "snapshot save") || strings.Contains(do, "--force-new-cluster") {
				t.Error(do)
			}

			c.Pause(2)
			h = look(t, c, etcd, func(in *topology.Inputs) { in.Limits.Call = 300 * time.Millisecond })
			if h.Verdict.Outcome != topology.Survivors || !strings.Contains(strings.Join(h.Verdict.Why, "\n"), "no answer within 300ms") {
				t.Errorf("one hangs: %+v", h.Verdict)
			}
			c.Resume(2)

			c.Kill(2)
			h = look(t, c, etcd)
			if h.Verdict.Outcome != topology.NothingLives || h.Verdict.Refuse || !strings.Contains(strings.Join(h.Verdict.Why, "\n"), "connection refused") {
				t.Errorf("all are dead: %+v", h.Verdict)
			}
		})
	}
}

// waitNoLeader waits until a member that is left alone has noticed.
func waitNoLeader(t *testing.T, c *cluster.Cluster, i int) {
	t.Helper()
	client := c.Client(i)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		s, err := client.Status(t.Context(), c.Members[i].Endpoint)
		if err == nil && s.Leader == 0 {
			return
		}
	}
	t.Fatal("the last member still names a leader")
}

func TestACutOffHostSeesSilence(t *testing.T) {
	etcd := &manifest.Etcd{ClusterID: 1, Members: []manifest.Member{{ID: 1, Name: "cp1", ClientURLs: []string{"https://10.0.0.11:2379"}}, {ID: 2, Name: "cp2"}}}
	h := inspect(t, topology.Inputs{Root: t.TempDir(), Etcd: etcd, Dial: cutOff, Limits: topology.Limits{Call: 50 * time.Millisecond}})
	if h.Verdict.Outcome != topology.NothingLives || !slices.Equal(states(h), []topology.State{topology.Silent, topology.Silent}) {
		t.Errorf("%+v, %v", h.Verdict, states(h))
	}
	if why := strings.Join(h.Verdict.Why, "\n"); !strings.Contains(why, "cut off from here") || !strings.Contains(why, "no client URL") {
		t.Error(why)
	}
}

// through dials members at their addresses in the backup.
func through(to map[string]string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if real, ok := to[address]; ok {
			return new(net.Dialer).DialContext(ctx, network, real)
		}
		return cutOff(ctx, network, address)
	}
}

func TestAPartitionFromThisHostHidesAMember(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3, TLS: true})
	etcd := backupOf(t, c)
	reachable := map[string]string{}
	for _, m := range c.Members[:2] {
		u, err := url.Parse(m.Endpoint)
		if err != nil {
			t.Fatal(err)
		}
		reachable[u.Host] = u.Host
	}
	limits := func(in *topology.Inputs) { in.Limits.Call = 2 * time.Second }
	h := look(t, c, etcd, limits, func(in *topology.Inputs) { in.Dial = through(reachable) })
	if h.Verdict.Outcome != topology.QuorumLives || h.Living.Answering != 2 || h.Living.Agreeing != 2 {
		t.Errorf("one is cut off: %+v, %+v", h.Verdict, h.Living)
	}
	for host := range reachable {
		delete(reachable, host)
		break
	}
	h = look(t, c, etcd, limits, func(in *topology.Inputs) { in.Dial = through(reachable) })
	if h.Verdict.Outcome != topology.Survivors || h.Living.Answering != 1 {
		t.Errorf("two are cut off: %+v, %+v", h.Verdict, h.Living)
	}
}

func TestOneEtcdAtTwoAddressesOfTheHostIsNoQuorum(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{TLS: true})
	u, err := url.Parse(c.Members[0].Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	root := write(t, map[string]string{"etc/etcd/etcd.env": fmt.Sprintf("ETCD_LISTEN_CLIENT_URLS=https://0.0.0.0:%s,https://[::]:%s,unix://x\n", u.Port(), u.Port())})
	etcd := &manifest.Etcd{ClusterID: 1}
	for i, name := range []string{"cp1", "cp2", "cp3"} {
		etcd.Members = append(etcd.Members, manifest.Member{ID: manifest.EtcdID(i + 1), Name: name, ClientURLs: []string{"https://127.0.0.1:1"}})
	}
	h := look(t, c, etcd, func(in *topology.Inputs) { in.Root, in.TLS = root, nil })
	if h.Verdict.Outcome != topology.Survivors || len(h.Living.Members) != 4 {
		t.Errorf("%+v, %+v", h.Verdict, h.Living)
	}
	// With certificates it can be asked at the loopback address, which they are for.
	if h = look(t, c, etcd, func(in *topology.Inputs) { in.Root = root }); h.Verdict.Outcome != topology.OtherCluster {
		t.Errorf("%+v, %+v", h.Verdict, h.Living)
	}
}

func TestAnotherClusterIsRefused(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	etcd := backupOf(t, c)
	etcd.ClusterID++
	h := look(t, c, etcd)
	if h.Verdict.Outcome != topology.OtherCluster || !h.Verdict.Refuse || h.Living.Same == nil || *h.Living.Same || len(h.Living.Foreign) != 1 {
		t.Errorf("%+v, %+v", h.Verdict, h.Living)
	}
	t.Run("also where only the host's own files name it", func(t *testing.T) {
		root := write(t, map[string]string{"etc/etcd/etcd.env": "ETCD_LISTEN_CLIENT_URLS=" + c.Members[0].Endpoint})
		etcd := &manifest.Etcd{ClusterID: 5, Members: []manifest.Member{{ID: 1, Name: "cp1", ClientURLs: []string{"http://127.0.0.1:1"}}}}
		if h := look(t, c, etcd, func(in *topology.Inputs) { in.Root = root }); h.Verdict.Outcome != topology.OtherCluster {
			t.Errorf("%+v", h.Verdict)
		}
	})
}

func TestMembersThatTheBackupDoesNotKnowCount(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	etcd := backupOf(t, c)
	// Since the backup, all but one were replaced.
	etcd.Members[1] = manifest.Member{ID: 77, Name: "gone1", ClientURLs: []string{"http://127.0.0.1:1"}}
	etcd.Members[2] = manifest.Member{ID: 78, Name: "gone2", ClientURLs: []string{"http://127.0.0.1:1"}}
	h := look(t, c, etcd)
	if h.Verdict.Outcome != topology.QuorumLives || h.Living.Answering != 3 || h.Living.Voters != 3 || len(h.Living.Members) != 5 {
		t.Errorf("%+v, %+v", h.Verdict, h.Living)
	}
	if do := strings.Join(h.Verdict.Do, "\n"); !strings.Contains(do, "needs no restore") {
		t.Errorf("members that were removed long ago are to be replaced:\n%s", do)
	}
	t.Run("and one at the address of another is told", func(t *testing.T) {
		etcd.Members = etcd.Members[:1]
		real := etcd.Members[0].ID
		etcd.Members[0].ID = 99
		h := look(t, c, etcd)
		if m := h.Living.Members[0]; m.ID != 99 || m.State != topology.Silent || !strings.Contains(m.How, real.String()+") answers there") || h.Verdict.Outcome != topology.QuorumLives {
			t.Errorf("%+v, %+v", m, h.Verdict)
		}
		if m := h.Living.Members[1]; m.ID != real || m.InBackup || m.State != topology.Answers {
			t.Errorf("%+v", m)
		}
	})
	t.Run("without a backup, what the host names", func(t *testing.T) {
		root := write(t, map[string]string{"etc/etcd/etcd.env": "ETCD_LISTEN_CLIENT_URLS=" + c.Members[0].Endpoint})
		h := look(t, c, nil, func(in *topology.Inputs) { in.Root, in.Facts = root, nil })
		if h.Verdict.Outcome != topology.QuorumLives || h.Living.Same != nil || h.Kind != topology.Etcd || !strings.Contains(strings.Join(h.Verdict.Why, "\n"), "not known") {
			t.Errorf("%+v, %+v", h.Verdict, h.Living)
		}
	})
	t.Run("an external member's replacement names the others", func(t *testing.T) {
		whole := backupOf(t, c)
		c.Kill(2)
		c.WaitHealthy(0)
		root := write(t, map[string]string{"etc/etcd/etcd.env": "ETCD_DATA_DIR=/srv/etcd\n"})
		h := look(t, c, whole, func(in *topology.Inputs) { in.Root, in.Facts = root, nil })
		do := strings.Join(h.Verdict.Do, "\n")
		initial := fmt.Sprintf("--initial-cluster-state existing --initial-cluster m0=%s,m1=%s,m2=%s", c.Members[0].PeerURL, c.Members[1].PeerURL, c.Members[2].PeerURL)
		sorted := func(s string) string {
			_, list, _ := strings.Cut(s, "--initial-cluster-state existing --initial-cluster ")
			list, _, _ = strings.Cut(list, "\n")
			names := strings.Split(list, ",")
			slices.Sort(names)
			return strings.Join(names, ",")
		}
		if !strings.Contains(do, "member add m2 --peer-urls="+c.Members[2].PeerURL) || sorted(do) != sorted(initial) || !strings.Contains(do, "/srv/etcd/member aside") {
			t.Error(do)
		}
	})
}

// dataRoot is a kubeadm host whose etcd's data directory is that of a member.
func dataRoot(t *testing.T, dir string) string {
	t.Helper()
	root := fixture(t, kubefixture.Stacked)
	data := filepath.Join(root, "var/lib/etcd")
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(data, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestADataDirectoryThatSurvives(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{})
			etcd := backupOf(t, c)
			for range 5 {
				write1(t, c)
			}
			last, err := c.Client().Get(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			c.Stop(0)
			root := dataRoot(t, c.Members[0].Dir)
			end := manifest.Revision(last.Header.Revision)
			for _, c := range []struct {
				name   string
				change func(*topology.Inputs)
				want   topology.Freshness
				is     topology.Outcome
			}{
				{name: "fresher than the backup", want: topology.Fresher, is: topology.Survivors},
				{name: "as fresh as the point", want: topology.Equal, is: topology.NothingLives, change: func(in *topology.Inputs) { in.Point = end }},
				{name: "older than the point", want: topology.Older, is: topology.NothingLives, change: func(in *topology.Inputs) { in.Point = end + 1 }},
				{name: "another cluster's", want: topology.Foreign, is: topology.NothingLives, change: func(in *topology.Inputs) { e := *in.Etcd; e.ClusterID = 5; in.Etcd = &e }},
				{name: "of a cluster that the backup does not name", want: topology.Unproved, is: topology.Survivors, change: func(in *topology.Inputs) { e := *in.Etcd; e.ClusterID = 0; in.Etcd = &e }},
				{name: "without a backup", want: topology.Unproved, is: topology.Survivors, change: func(in *topology.Inputs) { in.Etcd = nil }},
				{name: "larger than what is read", want: topology.Unproved, is: topology.Survivors, change: func(in *topology.Inputs) { in.Limits.Database = 100 }},
				{name: "equal, but its data is not the backup's", want: topology.Unproved, is: topology.Survivors, change: func(in *topology.Inputs) {
					e := *in.Etcd
					e.Revision, e.HashKV = end, 12345
					in.Etcd = &e
				}},
			} {
				t.Run(c.name, func(t *testing.T) {
					in := topology.Inputs{Root: root, Facts: facts(), Etcd: etcd}
					if c.change != nil {
						c.change(&in)
					}
					h := inspect(t, in)
					if h.Data.Freshness != c.want || h.Verdict.Outcome != c.is || !h.Data.Member || h.Data.FreshHow == "" || h.Data.ClusterID != etcd.ClusterID || h.Data.MemberID != etcd.Members[0].ID {
						t.Errorf("%+v, %+v", h.Data, h.Verdict)
					}
					if salvage := strings.Contains(strings.Join(h.Verdict.Do, "\n"), "--force-new-cluster"); salvage != (c.is == topology.Survivors) {
						t.Errorf("salvage is offered: %v", salvage)
					} else if ours := strings.Contains(strings.Join(h.Verdict.Do, "\n"), "--from-data-dir "+h.Data.Path); ours != salvage {
						t.Errorf("salvage by the restore itself is offered: %v", ours)
					}
				})
			}
			t.Run("its log is lost, so its cluster is not known", func(t *testing.T) {
				if err := os.RemoveAll(filepath.Join(root, "var/lib/etcd/member/wal")); err != nil {
					t.Fatal(err)
				}
				h := inspect(t, topology.Inputs{Root: root, Facts: facts(), Etcd: etcd})
				if h.Data.Freshness != topology.Unproved || !strings.Contains(h.Data.FreshHow, "same cluster is not known") || h.Verdict.Outcome != topology.Survivors {
					t.Errorf("%+v, %+v", h.Data, h.Verdict)
				}
			})
		})
	}
}

func TestADataDirectoryInUse(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	etcd := backupOf(t, c)
	root := write(t, map[string]string{"etc/etcd/etcd.env": "ETCD_DATA_DIR=/srv/etcd\n"})
	c.Stop(0)
	if err := os.CopyFS(filepath.Join(root, "srv/etcd"), os.DirFS(c.Members[0].Dir)); err != nil {
		t.Fatal(err)
	}
	running := cluster.StartBinary(t, "3.6", cluster.Options{DataDir: filepath.Join(root, "srv/etcd"), PeerURL: c.Members[0].PeerURL})
	m := cp1()
	m.processes = []node.Process{{PID: running.Members[0].PID(), Program: "etcd", Args: []string{"etcd", "--data-dir", "/srv/etcd"}}, {PID: 5, Program: "etcd"}}

	in := topology.Inputs{Root: root, Machine: m, Etcd: etcd, Dial: deadNetwork}
	h := inspect(t, in)
	if !h.Data.InUse || !strings.Contains(h.Data.By, fmt.Sprintf("process %d (etcd), whose arguments name it", running.Members[0].PID())) || h.Data.Freshness != topology.Unproved || h.Verdict.Outcome != topology.Survivors {
		t.Errorf("%+v, %+v", h.Data, h.Verdict)
	}
	m.processes = m.processes[1:]
	if h = inspect(t, in); !strings.Contains(h.Data.By, "the only etcd that runs") {
		t.Errorf("%+v", h.Data)
	}
	m.processes = nil
	if h = inspect(t, in); !strings.Contains(h.Data.By, "is called neither etcd") {
		t.Errorf("%+v", h.Data)
	}
	write1(t, running)
}

func TestAMemberThatWaitsForAQuorumIsSeen(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			var urls [3]string
			for i := range urls {
				port, err := freeport.Take()
				if err != nil {
					t.Fatal(err)
				}
				urls[i] = fmt.Sprintf("http://127.0.0.1:%d", port)
			}
			cmd := exec.CommandContext(t.Context(), cluster.Binary(t, version, "etcd"), "--name", "a", "--data-dir", t.TempDir(), "--log-level", "error",
				"--listen-client-urls", urls[0], "--advertise-client-urls", urls[0], "--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1],
				"--initial-cluster", "a="+urls[1]+",b="+urls[2])
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				conn, err := net.Dial("tcp", strings.TrimPrefix(urls[0], "http://"))
				if err == nil {
					_ = conn.Close()
					break
				}
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
			}
			etcd := &manifest.Etcd{ClusterID: 9, Members: []manifest.Member{{ID: 1, Name: "a", ClientURLs: urls[:1]}, {ID: 2, Name: "b", ClientURLs: []string{"http://127.0.0.1:1"}}}}
			h := inspect(t, topology.Inputs{Root: t.TempDir(), Etcd: etcd, Dial: new(net.Dialer).DialContext, Limits: topology.Limits{Call: 500 * time.Millisecond}})
			if h.Verdict.Outcome != topology.Survivors || h.Living.Members[0].State != topology.Accepts {
				t.Errorf("%+v, %+v", h.Verdict, h.Living)
			}
		})
	}
}
