package replay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
)

// restore writes a data directory of a revision and starts an etcd of the
// story's version on it; began is just before its start.
func (s *story) restore(rev int64, args ...string) (c *cluster.Cluster, began time.Time) {
	s.t.Helper()
	port, err := freeport.Take()
	if err != nil {
		s.t.Fatal(err)
	}
	dir, peer := filepath.Join(s.t.TempDir(), "data"), fmt.Sprintf("http://127.0.0.1:%d", port)
	s.site.must(append([]string{"restore", "etcd", "--identity", s.site.identity, "--revision", fmt.Sprint(rev), "--data-dir", dir,
		"--name", "restored", "--peer-url", peer, "--state-dir", s.site.dir, "--yes", "-q"}, args...)...)
	began = time.Now()
	return cluster.StartBinary(s.t, s.etcd.Version, cluster.Options{DataDir: dir, Name: "restored", PeerURL: peer}), began
}

// all reads every key of a cluster.
func all(t *testing.T, client *clientv3.Client, opts ...clientv3.OpOption) (map[string]*mvccpb.KeyValue, int64) {
	t.Helper()
	resp, err := client.Get(t.Context(), "\x00", append(opts, clientv3.WithFromKey())...)
	if err != nil {
		t.Fatal(err)
	}
	state := map[string]*mvccpb.KeyValue{}
	for _, kv := range resp.Kvs {
		state[string(kv.Key)] = kv
	}
	return state, resp.Header.Revision
}

// logHasNo fails the test if a member complained of lost leases.
func logHasNo(t *testing.T, m *cluster.Member, complaints ...string) {
	t.Helper()
	log, err := os.ReadFile(m.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, complaint := range complaints {
		if strings.Contains(string(log), complaint) {
			t.Errorf("the restored etcd logs %q:\n%s", complaint, log)
		}
	}
}

// The lease that is watched while it runs out.
const (
	shortTTL = 6 // seconds
	longTTL  = 3000
)

// probe is what is put into a living cluster to be looked for in a restored one.
type probe struct {
	point  int64 // the revision at which the short lease's key came
	events clientv3.WatchChan
	client *clientv3.Client // whose watch it is
}

// plant puts keys with a short and a long lease, waits until their leases could
// be asked for, and watches.
func (s *story) plant() *probe {
	s.t.Helper()
	client := s.etcd.Client()
	p := &probe{client: client}
	for _, one := range []struct {
		key string
		ttl int64
	}{{"probe/long", longTTL}, {"probe/short", shortTTL}} {
		lease, err := client.Grant(s.t.Context(), one.ttl)
		if err != nil {
			s.t.Fatal(err)
		}
		g := s.book.granted(int64(lease.ID), lease.TTL, lease.Revision)
		s.book.attach(g)
		s.book.drop(g, false) // the work, which goes on, must not revoke it
		resp, err := client.Put(s.t.Context(), one.key, "x", clientv3.WithLease(lease.ID))
		if err != nil {
			s.t.Fatal(err)
		}
		p.point = resp.Header.Revision
	}
	p.events = client.Watch(s.t.Context(), "probe/", clientv3.WithPrefix(), clientv3.WithRev(p.point))
	if resp := <-p.events; resp.Err() != nil || len(resp.Events) == 0 {
		s.t.Fatalf("the watch of the living cluster: %v", resp.Err())
	}
	time.Sleep(time.Second)
	return p
}

// goesOn starts etcd on the restored probe: its keys are there, leases run out
// one granted time after the start and not before, and who watched before is
// told to list again. It ends the story's cluster.
func (s *story) goesOn(p *probe) {
	s.t.Helper()
	head := s.oracle.seen()
	differ := func(how string, want, got map[string]*mvccpb.KeyValue) {
		s.t.Helper()
		v := &verdict{}
		compareKeys(v, want, got)
		for _, difference := range v.differences {
			s.t.Errorf("restored to %d %s: %s", p.point, how, difference)
		}
	}

	// Without a bump everything is as it was, to the revision.
	plain, began := s.restore(p.point, "--bump", "0")
	got, rev := all(s.t, plain.Client(), clientv3.WithRev(p.point))
	if rev < p.point { // leases of a second may be gone already, which makes more
		s.t.Errorf("the restored etcd is at revision %d, want %d", rev, p.point)
	}
	differ("as it was", s.oracle.stateAt(p.point), got)
	s.expires(plain, began)
	logHasNo(s.t, plain.Members[0], "lease not found")
	plain.Kill(0)

	// With the default bump no client takes the past for the present.
	for i := range s.etcd.Members {
		s.etcd.Kill(i)
	}
	bumped, _ := s.restore(p.point)
	p.client.SetEndpoints(bumped.Endpoints()...)
	s.toldToListAgain(p.events)
	got, rev = all(s.t, bumped.Client())
	if rev <= head {
		s.t.Errorf("the restored etcd is at revision %d, and clients have seen %d", rev, head)
	}
	want := s.oracle.stateAt(p.point)
	for key, kv := range want { // those of short leases may be gone by now
		if g := s.book.of(kv.Lease, kv.ModRevision); kv.Lease != 0 && (g == nil || g.ttl < 60) {
			delete(want, key)
			delete(got, key)
		}
	}
	differ("with a bump", want, got)
	logHasNo(s.t, bumped.Members[0], "lease not found")
	bumped.Kill(0)
}

// expires watches the short lease run out one granted time after the start. The
// upper limit is generous.
func (s *story) expires(c *cluster.Cluster, began time.Time) {
	s.t.Helper()
	client := c.Client()
	for {
		resp, err := client.Get(s.t.Context(), "probe/short")
		if err != nil {
			s.t.Fatal(err)
		}
		after := time.Since(began)
		if len(resp.Kvs) == 0 {
			if after < shortTTL*time.Second {
				s.t.Errorf("a lease of %d s ended %v after the start", shortTTL, after)
			}
			break
		}
		if after > shortTTL*time.Second+30*time.Second {
			s.t.Fatalf("a lease of %d s is still there %v after the start", shortTTL, after)
		}
		time.Sleep(100 * time.Millisecond)
	}
	resp, err := client.Get(s.t.Context(), "probe/long")
	if err != nil || len(resp.Kvs) != 1 {
		s.t.Fatalf("the key of a long lease: %v, %v", resp, err)
	}
	ttl, err := client.TimeToLive(s.t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease))
	if err != nil || ttl.GrantedTTL != longTTL || ttl.TTL < longTTL-120 {
		s.t.Errorf("the long lease: %+v, %v", ttl, err)
	}
}

// toldToListAgain waits for a watcher from before the restore to be cancelled as
// compacted. It must not see an event meanwhile.
func (s *story) toldToListAgain(events clientv3.WatchChan) {
	s.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case resp, open := <-events:
			switch {
			case !open:
				s.t.Error("the watch ended without a reason")
				return
			case errors.Is(resp.Err(), rpctypes.ErrCompacted):
				return
			case resp.Err() != nil:
				s.t.Errorf("the watch ended with %v, want %v", resp.Err(), rpctypes.ErrCompacted)
				return
			}
			for _, e := range resp.Events {
				if e.Kv.ModRevision > s.oracle.seen() {
					s.t.Errorf("the watch from before the restore goes on with revision %d of the restored etcd", e.Kv.ModRevision)
					return
				}
			}
		case <-timeout:
			s.t.Error("a watch from before the restore is told nothing")
			return
		}
	}
}
