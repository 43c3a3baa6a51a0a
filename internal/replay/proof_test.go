package replay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/s3test"
)

// story is a cluster whose whole life is known and was recorded.
type story struct {
	t      *testing.T
	rng    *rand.Rand
	etcd   *cluster.Cluster
	oracle *oracle
	book   *book
	site   *site
	work   *workload

	recorder *process

	members      []*clientv3.Client // one of each member
	stopSampling func()
}

// begin starts a cluster, its oracle, the work and a recorder, and waits for the
// full that the recorder takes. server is a store of its own, nil for a folder.
func begin(t *testing.T, version string, server *s3test.Server) *story {
	t.Helper()
	s := &story{t: t}
	from := seed(t)
	s.rng = rand.New(rand.NewPCG(from, 7))
	s.etcd = cluster.StartBinary(t, version, cluster.Options{Members: 3})
	s.oracle, s.book = watchFrom1(t, s.etcd), newBook()
	for i := range s.etcd.Members {
		s.members = append(s.members, s.etcd.Client(i))
	}
	store, env := "", []string(nil)
	if server != nil {
		store, env = "s3://"+server.Bucket+"/proof", server.Env()
	}
	s.site = newSite(t, s.etcd, store, env, "interval:", "interval: 500ms")
	ctx, cancel := context.WithCancel(t.Context())
	wait := s.oracle.sampleUntil(ctx, s.etcd, rand.New(rand.NewPCG(from, 99)), 40*time.Millisecond)
	s.stopSampling = func() { cancel(); wait() }
	t.Cleanup(s.stopSampling)
	s.work = startWork(t, s.etcd, s.oracle, s.book, from, 10*time.Millisecond)
	s.recorder = s.site.start("record")
	s.site.recorded(2)
	return s
}

// exported is what the program says of a file that it wrote.
type exported struct {
	path  string
	Point struct {
		Revision int64     `json:"revision"`
		At       time.Time `json:"at"`
		Segments int       `json:"segments"`
	} `json:"point"`
	Applied *struct {
		ProvedRevision int64 `json:"provedRevision"`
	} `json:"applied"`
}

// export materializes a point, as flags name it, into a file.
func (s *story) export(flags ...string) (*exported, error) {
	s.t.Helper()
	e := &exported{path: filepath.Join(s.t.TempDir(), "export.db")}
	out, code, errs := s.site.run(append([]string{"export", "--identity", s.site.identity, "--out", e.path, "-o", "json", "-q"}, flags...)...)
	if code != 0 {
		return nil, fmt.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	s.site.decode(out, e)
	return e, nil
}

// tally sums verdicts up.
type tally struct{ points, keys, leases, synthetic, live, proved int }

func (sum *tally) add(other tally) {
	sum.points += other.points
	sum.keys += other.keys
	sum.leases += other.leases
	sum.synthetic += other.synthetic
	sum.live += other.live
	sum.proved += other.proved
}

// judge materializes revisions and compares each with what was.
func (s *story) judge(revs []int64) (sum tally) {
	s.t.Helper()
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(2)
	for _, rev := range revs {
		group.Go(func() error {
			e, err := s.export("--revision", fmt.Sprint(rev))
			if err != nil {
				s.t.Errorf("export revision %d: %v", rev, err)
				return nil
			}
			v, err := s.compare(e, rev)
			if err != nil {
				return err
			}
			one := tally{points: 1, keys: v.keys, leases: v.leases, synthetic: v.synthetic, live: min(1, v.live)}
			if e.Applied != nil && e.Applied.ProvedRevision > 0 {
				one.proved = 1
			}
			mu.Lock()
			defer mu.Unlock()
			sum.add(one)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		s.t.Fatal(err)
	}
	return sum
}

// compare judges an exported file and removes it.
func (s *story) compare(e *exported, rev int64) (*verdict, error) {
	if e.Point.Revision != rev {
		s.t.Errorf("asked for revision %d, the program says that it exported %d", rev, e.Point.Revision)
	}
	if rev >= s.work.compacted() { // the live members may still know
		_, _ = s.oracle.ask(s.t.Context(), s.members[rev%int64(len(s.members))], rev)
	}
	v, err := s.oracle.judge(s.t.Context(), s.book, e.path, rev)
	if err != nil {
		return nil, err
	}
	for _, difference := range v.differences {
		s.t.Errorf("at revision %d: %s", rev, difference)
	}
	return v, os.Remove(e.path)
}

// slack is how much older than the time that was asked for a state may be: each
// second has a time, and trouble costs some.
const slack = 15 * time.Second

// judgeTimes aims at random times: nothing that was asked for later is in the
// state, and nothing that had been acknowledged well before is missing.
func (s *story) judgeTimes(n int) {
	s.t.Helper()
	first, last := s.work.lasted()
	for range n {
		at := first.Add(slack).Add(time.Duration(s.rng.Int64N(int64(last.Sub(first) - slack))))
		e, err := s.export("--at", at.UTC().Format(time.RFC3339Nano))
		if err != nil {
			s.t.Errorf("export %v: %v", at, err)
			continue
		}
		rev := e.Point.Revision
		if later := s.work.asked(at); later != 0 && rev >= later {
			s.t.Errorf("the state at %v is revision %d, and %d was asked for after it", at, rev, later)
		}
		if before := s.work.acknowledged(at.Add(-slack)); rev < before {
			s.t.Errorf("the state at %v is revision %d, and %d was acknowledged %v before it", at, rev, before, slack)
		}
		if before := s.work.acknowledged(e.Point.At); rev < before || e.Point.At.After(at) {
			s.t.Errorf("the state at %v is said to be that of %v, revision %d, and %d had been acknowledged", at, e.Point.At, rev, before)
		}
		if _, err := s.compare(e, rev); err != nil {
			s.t.Fatal(err)
		}
	}
}

// The exit codes of what can't be restored.
const (
	exitVerification = 3 // a gap
	exitNothing      = 5 // before all, or behind
)

// refused asks for what can't be restored, and wants to be told what can.
func (s *story) refused(line *timeline, head int64) {
	s.t.Helper()
	refuse := func(want int, near []int64, flags ...string) {
		s.t.Helper()
		path := filepath.Join(s.t.TempDir(), "refused.db")
		_, code, errs := s.site.run(append([]string{"export", "--identity", s.site.identity, "--out", path}, flags...)...)
		if code != want {
			s.t.Errorf("export %v: exit code %d, want %d\n%s", flags, code, want, errs)
		}
		for _, rev := range near {
			if !strings.Contains(errs, fmt.Sprintf("revision %d ", rev)) {
				s.t.Errorf("export %v does not name revision %d:\n%s", flags, rev, errs)
			}
		}
		if _, err := os.Stat(path); err == nil {
			s.t.Errorf("export %v left a file", flags)
		}
	}
	first := line.Spans[0].First
	if first.Revision > 1 {
		refuse(exitNothing, []int64{first.Revision}, "--revision", fmt.Sprint(first.Revision-1))
	}
	refuse(exitNothing, []int64{first.Revision}, "--at", first.Time.Add(-time.Hour).Format(time.RFC3339))
	refuse(exitNothing, nil, "--revision", fmt.Sprint(head+1000))
	refuse(exitNothing, nil, "--at", time.Now().Add(time.Hour).Format(time.RFC3339))
	for i, later := range line.Spans[1:] {
		before := line.Spans[i].Last.Revision
		if line.Spans[i].Epoch == later.Epoch && before+1 < later.First.Revision {
			refuse(exitVerification, []int64{before, later.First.Revision}, "--revision", fmt.Sprint(before+1))
		}
	}
}

// TestEveryRecordedRevisionComesBackExactly is the proof: random work and
// trouble, recorded by the program, and random revisions that come back as they
// were.
func TestEveryRecordedRevisionComesBackExactly(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			var server *s3test.Server
			if version == "3.6" {
				server = s3test.Start(t, s3test.Options{})
			}
			s := begin(t, version, server)
			s.work.meet(1500 * time.Millisecond)
			for range number(t, "LIFEBOAT_ROUNDS", 1) - 1 {
				s.site.insist("backup", "--only", "etcd", "-q")
				s.work.meet(1500 * time.Millisecond)
			}
			planted := s.plant()
			s.work.stop()
			s.work.did(t)
			head := s.oracle.seen()
			line := s.site.recorded(head)
			if !s.recorder.running() {
				t.Error("the recorder ended by itself")
			}
			s.stopSampling()
			s.oracle.sound(t)

			var revs []int64
			for _, rev := range pick(s.rng, s.oracle, line.Spans[0].First.Revision, head) {
				if line.holds(rev) {
					revs = append(revs, rev)
				}
			}
			// Some were hashed by a member only before a compaction that the file
			// is as of: others take their place.
			points := number(t, "LIFEBOAT_POINTS", 10)
			var sum tally
			for sum.live < points && len(revs) > 0 {
				n := min(points-sum.live, len(revs))
				sum.add(s.judge(revs[:n]))
				revs = revs[n:]
			}
			t.Logf("%d revisions, %d recoverable spans; judged: %+v", head, len(line.Spans), sum)
			if sum.points >= 50 && sum.proved == 0 {
				t.Error("no recorded hash proved anything")
			}
			if sum.live < points {
				t.Errorf("only %d of %d points could be compared with a live member's hash", sum.live, points)
			}
			s.judgeTimes(5)
			s.refused(line, head)
			if sum.leases == 0 || sum.synthetic*4 > sum.leases {
				t.Errorf("%d of %d leases have a made-up time", sum.synthetic, sum.leases)
			}
			s.recorder.stop()
			s.goesOn(planted)
		})
	}
}
