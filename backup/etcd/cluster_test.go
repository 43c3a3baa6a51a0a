package etcd

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
)

var limits = Limits{Call: 5 * time.Second, NoProgress: 10 * time.Second, MaxStall: time.Second}

func openCluster(t *testing.T, c *cluster.Cluster, limits Limits) *Cluster {
	t.Helper()
	opened, err := Open(Config{Name: "main", Endpoints: c.Endpoints(), CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile}, limits, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return opened
}

func fill(t *testing.T, c *cluster.Cluster, objects int, members ...int) *etcdtest.FillResult {
	t.Helper()
	result, err := etcdtest.Fill(t.Context(), c.Client(members...), etcdtest.FillOptions{Objects: objects, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func survey(t *testing.T, c *Cluster) *Survey {
	t.Helper()
	s, err := c.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func take(t *testing.T, c *Cluster, s *Survey, source Source) (*Capture, error) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "snapshot.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return c.Capture(t.Context(), s, source, file, file.Name())
}

func TestCaptureOfEveryVersionIsExactAndProved(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run("etcd "+version, func(t *testing.T) {
			live := cluster.StartBinary(t, version, cluster.Options{Members: 3, TLS: true})
			filled := fill(t, live, 300)
			if _, err := live.Client().Compact(t.Context(), filled.Revision/2); err != nil {
				t.Fatal(err)
			}
			c := openCluster(t, live, limits)
			s := survey(t, c)
			if len(s.Members) != 3 || s.Voters() != 3 || s.ClusterID == 0 {
				t.Fatalf("survey: %+v", s)
			}
			if int64(s.Floor) != filled.Revision || s.FloorErr != nil {
				t.Fatalf("floor %d, error %v; want %d", s.Floor, s.FloorErr, filled.Revision)
			}
			source := s.Sources()[0]
			got, err := take(t, c, s, source)
			if err != nil {
				t.Fatal(err)
			}
			if int64(got.Etcd.Revision) != filled.Revision || got.Etcd.Keys != filled.Live {
				t.Errorf("revision %d with %d keys, want %d with %d", got.Etcd.Revision, got.Etcd.Keys, filled.Revision, filled.Live)
			}
			if len(got.Unproved)+len(got.Degraded)+len(got.Etcd.Dissenting) != 0 {
				t.Errorf("unproved %q, degraded %q, dissenting %v; want none", got.Unproved, got.Degraded, got.Etcd.Dissenting)
			}
			if len(got.Etcd.ComparedWith) != 1 || got.Etcd.ComparedWith[0] == source.Member() {
				t.Errorf("compared with %v, want one member other than the source %s", got.Etcd.ComparedWith, source.Member())
			}
			leader := s.Members[0].Leader
			if got.Etcd.ComparedWith[0] == leader {
				t.Errorf("the leader was asked to scan while a follower was there")
			}
		})
	}
}

func TestASingleMemberIsComparedWithItself(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{})
	fill(t, live, 100)
	c := openCluster(t, live, limits)
	s := survey(t, c)
	got, err := take(t, c, s, s.Sources()[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Unproved) != 0 || !slices.Equal(got.Etcd.ComparedWith, []manifest.EtcdID{s.Members[0].ID}) {
		t.Errorf("unproved %q, compared with %v", got.Unproved, got.Etcd.ComparedWith)
	}
}

func TestAScanOverTheStallLimitIsNotAskedFor(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	fill(t, live, 100)
	none := limits
	none.MaxStall = 0
	c := openCluster(t, live, none)
	s := survey(t, c)
	got, err := take(t, c, s, s.Sources()[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Etcd.ComparedWith) != 0 || len(got.Unproved) == 0 || !strings.Contains(strings.Join(got.Unproved, " "), "hold up its writes") {
		t.Errorf("compared with %v, unproved %q; want nobody, and the reason", got.Etcd.ComparedWith, got.Unproved)
	}
	if len(got.Degraded) != 0 {
		t.Errorf("degraded %q; a backup that was not proved for kindness is not degraded", got.Degraded)
	}
}

// corrupt flips bits of one byte of the newest plain value in a stopped member's
// database, as a bad disk would: page checksums do not exist, so only HashKV
// can tell.
func corrupt(t *testing.T, path string, flip byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte("key"))
		cursor := bucket.Cursor()
		for k, v := cursor.Last(); k != nil; k, v = cursor.Prev() {
			if len(k) == 17 && len(v) > 100 {
				changed := slices.Clone(v)
				changed[len(changed)/2] ^= flip
				return bucket.Put(slices.Clone(k), changed)
			}
		}
		return errors.New("no value to corrupt")
	})
	if err != nil {
		t.Fatal(err)
	}
}

func startWithACorruptMember(t *testing.T) (live *cluster.Cluster, bad manifest.EtcdID) {
	live = cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	fill(t, live, 100)
	live.Stop(2)
	corrupt(t, live.Members[2].DBFile(), 1)
	live.Restart(2)
	status, err := live.Client(2).Status(t.Context(), live.Members[2].Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	return live, manifest.EtcdID(status.Header.MemberId)
}

func TestASourceAgainstTheMajorityIsBad(t *testing.T) {
	live, bad := startWithACorruptMember(t)
	c := openCluster(t, live, limits)
	s := survey(t, c)
	index := slices.IndexFunc(s.Sources(), func(source Source) bool { return source.Member() == bad })
	source := s.Sources()[index]

	var badSource *BadSourceError
	if _, err := take(t, c, s, source); !errors.As(err, &badSource) || badSource.Member != bad {
		t.Fatalf("got %v, want a BadSourceError for %s", err, bad)
	}

	source.Tolerate = true
	got, err := take(t, c, s, source)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Degraded) == 0 || len(got.Unproved) == 0 || !slices.Contains(got.Etcd.Dissenting, bad) {
		t.Errorf("as a last resort: degraded %q, unproved %q, dissenting %v", got.Degraded, got.Unproved, got.Etcd.Dissenting)
	}
}

func TestABadMinorityIsNamed(t *testing.T) {
	live, bad := startWithACorruptMember(t)
	c := openCluster(t, live, limits)
	s := survey(t, c)
	// Ask the corrupt member first, whoever leads.
	for i := range s.Members {
		s.Members[i].Leader = 1
		if s.Members[i].ID == bad {
			s.Members[i].Applied = 1 << 60
		}
	}
	index := slices.IndexFunc(s.Sources(), func(source Source) bool { return source.Member() != bad })
	got, err := take(t, c, s, s.Sources()[index])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Etcd.Dissenting, []manifest.EtcdID{bad}) || len(got.Etcd.ComparedWith) != 1 || len(got.Unproved) != 0 {
		t.Errorf("dissenting %v, compared with %v, unproved %q; want %s named and the backup proved", got.Etcd.Dissenting, got.Etcd.ComparedWith, got.Unproved, bad)
	}
}

func TestWithoutAMajorityTheCaptureIsDegraded(t *testing.T) {
	live, _ := startWithACorruptMember(t)
	live.Stop(1)
	corrupt(t, live.Members[1].DBFile(), 2) // differently
	live.Restart(1)
	c := openCluster(t, live, limits)
	s := survey(t, c)
	got, err := take(t, c, s, s.Sources()[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Degraded) == 0 || len(got.Unproved) == 0 {
		t.Errorf("degraded %q, unproved %q; want both said", got.Degraded, got.Unproved)
	}
}

func TestWithoutQuorumTheCaptureIsTakenAndDegraded(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	filled := fill(t, live, 100)
	live.WaitHealthy(0) // it has what two of three have acknowledged
	live.Kill(1)
	live.Kill(2)
	time.Sleep(3 * time.Second) // until the survivor has noticed: longer than an election
	short := limits
	short.Call = time.Second
	c := openCluster(t, live, short)
	s := survey(t, c)
	if s.FloorErr == nil || len(s.Members) != 3 {
		t.Fatalf("floor error %v, %d members; want an error and all three members", s.FloorErr, len(s.Members))
	}
	got, err := take(t, c, s, s.Sources()[0])
	if err != nil {
		t.Fatal(err)
	}
	if int64(got.Etcd.Revision) != filled.Revision || len(got.Degraded) == 0 || len(got.Unproved) == 0 {
		t.Errorf("revision %d (want %d), degraded %q, unproved %q", got.Etcd.Revision, filled.Revision, got.Degraded, got.Unproved)
	}
}

func TestAPausedMemberEndsTheStreamAtTheNoProgressLimit(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{})
	fill(t, live, 2000)
	impatient := limits
	impatient.NoProgress = time.Second
	c := openCluster(t, live, impatient)
	s := survey(t, c)
	paused := false
	_, err := c.Capture(t.Context(), s, s.Sources()[0], writerFunc(func(p []byte) (int, error) {
		if !paused {
			paused = true
			live.Pause(0)
		}
		return len(p), nil
	}), "")
	live.Resume(0)
	if !errors.Is(err, ErrStalled) {
		t.Fatalf("got %v, want ErrStalled", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestStreamingStraightThroughIsUnproved(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{})
	filled := fill(t, live, 50)
	c := openCluster(t, live, limits)
	s := survey(t, c)
	got, err := c.Capture(t.Context(), s, s.Sources()[0], io.Discard, "")
	if err != nil {
		t.Fatal(err)
	}
	if int64(got.Etcd.Revision) != filled.Revision || len(got.Unproved) == 0 || got.Size == 0 {
		t.Errorf("got %+v", got)
	}
}

func TestAFailingDestinationIsNotTheMembersFault(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{})
	fill(t, live, 50)
	c := openCluster(t, live, limits)
	s := survey(t, c)
	full := errors.New("disk full")
	_, err := c.Capture(t.Context(), s, s.Sources()[0], writerFunc(func([]byte) (int, error) { return 0, full }), "")
	var bad *BadSourceError
	if !errors.Is(err, full) || errors.As(err, &bad) {
		t.Errorf("got %v, want the destination's error as it is", err)
	}
}

func TestNoEndpointAnswers(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + listener.Addr().String()
	listener.Close()
	c, err := Open(Config{Name: "main", Endpoints: []string{address}}, Limits{Call: time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := c.Survey(ctx); err == nil || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "main") {
		t.Errorf("got %v, want an error that names the cluster and the endpoint", err)
	}
}

func TestOpenRefusesBadConfiguration(t *testing.T) {
	for name, config := range map[string]Config{
		"no endpoints":        {Name: "main"},
		"an endpoint no URL":  {Name: "main", Endpoints: []string{"127.0.0.1:2379"}},
		"a certificate lacks": {Name: "main", Endpoints: []string{"https://127.0.0.1:2379"}, CertFile: "/does/not/exist", KeyFile: "/does/not/exist"},
	} {
		if _, err := Open(config, Limits{}, nil); err == nil || !strings.Contains(err.Error(), `"main"`) {
			t.Errorf("%s: got %v, want an error that names the cluster", name, err)
		}
	}
}

func TestMembersThatDisagreeDegradeEvenWhenAnotherCannotBeAsked(t *testing.T) {
	live, bad := startWithACorruptMember(t)
	live.Kill(1) // two of three are left: a quorum, and no majority for either hash
	live.WaitHealthy(0)
	short := limits
	short.Call = 2 * time.Second
	c := openCluster(t, live, short)
	s := survey(t, c)
	index := slices.IndexFunc(s.Sources(), func(source Source) bool { return source.Member() != bad })
	got, err := take(t, c, s, s.Sources()[index])
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Degraded) == 0 || !strings.Contains(got.Degraded[0], bad.String()) || len(got.Unproved) == 0 {
		t.Errorf("degraded %q, unproved %q; want the disagreement with %s in both", got.Degraded, got.Unproved, bad)
	}
}

func TestWithoutQuorumAndScratchTheCaptureIsStillOneThatCanBeCommitted(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	fill(t, live, 20)
	live.Kill(1)
	live.Kill(2)
	time.Sleep(3 * time.Second) // longer than an election
	short := limits
	short.Call = time.Second
	c := openCluster(t, live, short)
	s := survey(t, c)
	got, err := c.Capture(t.Context(), s, s.Sources()[0], io.Discard, "")
	if err != nil {
		t.Fatal(err)
	}
	if got.Etcd.Revision < 1 {
		t.Errorf("revision %d: a manifest refuses it, and the backup would be lost", got.Etcd.Revision)
	}
}

func TestAClusterCompactedAtItsHeadIsProved(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run("etcd "+version, func(t *testing.T) {
			live := cluster.StartBinary(t, version, cluster.Options{})
			filled := fill(t, live, 100)
			if _, err := live.Client().Compact(t.Context(), filled.Revision, clientv3.WithCompactPhysical()); err != nil {
				t.Fatal(err)
			}
			c := openCluster(t, live, limits)
			s := survey(t, c)
			got, err := take(t, c, s, s.Sources()[0])
			if err != nil {
				t.Fatal(err)
			}
			if got.Etcd.CompactRevision != got.Etcd.Revision || len(got.Unproved) != 0 {
				t.Errorf("revision %d, compacted at %d, unproved %q; want it proved", got.Etcd.Revision, got.Etcd.CompactRevision, got.Unproved)
			}
		})
	}
}

func TestASlowDestinationIsNotAStalledMember(t *testing.T) {
	live := cluster.StartBinary(t, "3.6", cluster.Options{})
	fill(t, live, 200)
	impatient := limits
	impatient.NoProgress = 1500 * time.Millisecond
	c := openCluster(t, live, impatient)
	s := survey(t, c)
	slow := true
	_, err := c.Capture(t.Context(), s, s.Sources()[0], writerFunc(func(p []byte) (int, error) {
		if slow {
			slow = false
			time.Sleep(4 * time.Second)
		}
		return len(p), nil
	}), "")
	if err != nil {
		t.Errorf("got %v", err)
	}
}
