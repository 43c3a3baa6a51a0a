package watch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/backup/etcd"
	"lifeboat/backup/watch"
	"lifeboat/internal/durable/tinydisk"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/events"
	"lifeboat/internal/segment"
	"lifeboat/internal/snapdb"
)

// calls is how often a member was called by a gRPC method, as it counts itself.
func calls(t *testing.T, m *cluster.Member, method string) int {
	t.Helper()
	return counted(t, m, "grpc_server_started_total", method)
}

// counted is a counter of the member's, of one method.
func counted(t *testing.T, m *cluster.Member, counter, method string) int {
	t.Helper()
	response, err := http.Get(m.Endpoint + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + counter + `\{grpc_method="` + method + `",.*\} (\S+)$`).FindSubmatch(page)
	if found == nil {
		t.Fatalf("%s does not count calls of %s", m.Endpoint, method)
	}
	n, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// warned keeps the warnings.
type warned struct {
	mu   sync.Mutex
	list []string
}

func (w *warned) hear(e events.Event) {
	if e, ok := e.(events.Warning); ok {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.list = append(w.list, e.Message)
	}
}

func (w *warned) all() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.list, "\n")
}

// farBehind makes more revisions than lanes should read of a leader.
func farBehind(t *testing.T, client *clientv3.Client) int64 {
	t.Helper()
	result, err := etcdtest.Fill(t.Context(), client, etcdtest.FillOptions{Objects: 14_000, ValueBytes: 300, Seed: 3, LeaseTTL: 3600})
	if err != nil {
		t.Fatal(err)
	}
	if result.Revision < 17_000 {
		t.Fatalf("only %d revisions", result.Revision)
	}
	return result.Revision
}

// At the only member, what was missed comes from a snapshot, and one watch goes
// on behind it.
func TestWhatTheOnlyMemberHoldsComesFromASnapshot(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{})
			client, s := c.Client(), source(t, c)
			missed := farBehind(t, client)
			snapshots, watches := calls(t, c.Members[0], "Snapshot"), calls(t, c.Members[0], "Watch")
			stop := writer(t, client)
			options, heard := quick(1), &warned{}
			options.Scratch, options.Events = t.TempDir(), heard.hear
			r := run(t, s, options)
			r.waitRevision(missed)
			if n := calls(t, c.Members[0], "Snapshot") - snapshots; n != 1 {
				t.Errorf("%d snapshots were asked for", n)
			}
			last := stop()
			r.waitRevision(last)
			leases := func() int { return len(r.of(segment.KindLease)) }
			r.waitFor("leases that the changes hang on", func() bool { return leases() > 0 && !r.drain.LeasesPending(last) })
			if n := calls(t, c.Members[0], "Watch") - watches; n > 8 { // lanes would be seventeen
				t.Errorf("%d watches were begun", n)
			}
			r.whole(s, last)
			if left, err := os.ReadDir(options.Scratch); err != nil || len(left) > 0 {
				t.Errorf("left in scratch: %v, %v", left, err)
			}
			if heard.all() != "" {
				t.Errorf("warned: %s", heard.all())
			}
			// From the middle of a history, too.
			options.From = missed - 16_500
			middle := onto(t, s, options, &tape{t: t, complete: options.From - 1})
			middle.waitRevision(last)
			middle.end()
			all, half := r.of(segment.KindPut, segment.KindDelete), middle.of(segment.KindPut, segment.KindDelete)
			for len(all) > 0 && all[0].Main < options.From {
				all = all[1:]
			}
			equal(t, all, half)
		})
	}
}

// equal holds two lists of changes against each other, as far as both go.
func equal(t *testing.T, want, got []segment.Record) {
	t.Helper()
	n := min(len(want), len(got))
	if n < 16_000 {
		t.Fatalf("%d and %d changes", len(want), len(got))
	}
	for i := range n {
		if a, b := segment.AppendRecord(nil, want[i]), segment.AppendRecord(nil, got[i]); string(a) != string(b) {
			t.Fatalf("change %d is %+v instead of %+v", i, got[i], want[i])
		}
	}
}

func TestWithoutRoomForASnapshotTheWatchGivesWhatWasMissed(t *testing.T) {
	c := cluster.StartBinary(t, "3.7", cluster.Options{})
	client, s := c.Client(), source(t, c)
	missed := farBehind(t, client)
	file := filepath.Join(t.TempDir(), "a file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	large := s
	large.DBSize = 1 << 40
	for name, w := range map[string]struct {
		source  watch.Source
		scratch string
		why     string
	}{
		"no folder":      {s, "", "no folder for it"},
		"no such folder": {s, filepath.Join(file, "below"), "a file"},
		"a large one":    {large, t.TempDir(), "the database has 1099511627776 bytes"},
	} {
		snapshots, heard := calls(t, c.Members[0], "Snapshot"), &warned{}
		options := quick(1)
		options.Scratch, options.Events = w.scratch, heard.hear
		run(t, w.source, options).whole(s, missed)
		if n := calls(t, c.Members[0], "Snapshot") - snapshots; n != 0 {
			t.Errorf("%s: %d snapshots were asked for", name, n)
		}
		if !strings.Contains(heard.all(), w.why) {
			t.Errorf("%s: warned: %q", name, heard.all())
		}
	}
}

// ending is a tape that ends the drain at a revision.
type ending struct {
	*tape
	at  int64
	end func()
}

func (e *ending) Complete(revision int64, at time.Time) error {
	if revision >= e.at {
		e.end()
	}
	return e.tape.Complete(revision, at)
}

// The disk is seen by the test's own goroutine alone, so Run is called by it.
func TestADiskWithoutRoomIsNoReasonToMissAnything(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	client, s := c.Client(), source(t, c)
	missed := farBehind(t, client)
	dir := tinydisk.Full(t, 4<<20)
	full := s
	full.DBSize = -(255 << 20) // so it seems to fit, with all that must stay free
	for _, w := range []struct {
		source    watch.Source
		snapshots int
		why       string
	}{{s, 0, "are free"}, {full, 1, "no space left on device"}} {
		snapshots, heard := calls(t, c.Members[0], "Snapshot"), &warned{}
		ctx, end := context.WithCancelCause(t.Context())
		to := &ending{&tape{t: t, complete: 0}, missed, func() { end(errStopped) }}
		options := quick(1)
		options.Scratch, options.Events = dir, heard.hear
		if err := watch.Run(ctx, w.source, options, to); !errors.Is(err, errStopped) {
			t.Errorf("the drain ended with %v", err)
		}
		if got, want := to.hash(), hashKV(t, s, to.reached()); got != want.Hash {
			t.Errorf("HashKV %08x, the member says %08x", got, want.Hash)
		}
		if n := calls(t, c.Members[0], "Snapshot") - snapshots; n != w.snapshots || !strings.Contains(heard.all(), w.why) {
			t.Errorf("%d snapshots were asked for, warned: %q", n, heard.all())
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in scratch: %v, %v", left, err)
		}
	}
}

// A snapshot shows no more than a watch does of what was compacted.
func TestASnapshotOfACompactedHistoryIsNotTaken(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	client, s := c.Client(), source(t, c)
	missed := farBehind(t, client)
	compact(t, client, 500)
	options := quick(100)
	options.Scratch = t.TempDir()
	if e := run(t, s, options).waitEnd(); !errors.Is(e, watch.ErrCompacted) || e.Compact != 500 || e.Last != 99 {
		t.Errorf("%v", e)
	}
	options.From = 501
	r := run(t, s, options)
	r.waitRevision(missed)
	if first := r.of(segment.KindPut, segment.KindDelete)[0].Main; first != 501 {
		t.Errorf("it begins at revision %d", first)
	}
}

// damage changes, in the database of a member that runs, what stands between the
// two halves of a revision's key.
func damage(t *testing.T, c *cluster.Cluster, revision int64) {
	t.Helper()
	key := append(binary.BigEndian.AppendUint64(nil, uint64(revision)), '_', 0, 0, 0, 0, 0, 0, 0, 0)
	file, err := os.OpenFile(c.Members[0].DBFile(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var changed int
	for deadline := time.Now().Add(20 * time.Second); changed == 0; time.Sleep(100 * time.Millisecond) { // etcd writes to it ten times a second
		data, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; ; changed++ {
			i := bytes.Index(data[at:], key)
			if i < 0 {
				break
			}
			at += i + len(key)
			if _, err := file.WriteAt([]byte{'?'}, int64(at-9)); err != nil {
				t.Fatal(err)
			}
		}
		if changed == 0 && time.Now().After(deadline) {
			t.Fatalf("revision %d is not in the database", revision)
		}
	}
}

// etcd panics when a watch makes it read such a page, so none is asked for, and
// nothing is given of a history that can't be given whole.
func TestNothingIsGivenOfADamagedHistory(t *testing.T) {
	t.Parallel()
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{})
			client, s := c.Client(), source(t, c)
			missed := farBehind(t, client)
			damage(t, c, missed/2)
			watches := calls(t, c.Members[0], "Watch")
			options := quick(1)
			options.Scratch = t.TempDir()
			r := run(t, s, options)
			e := r.waitEnd()
			if !errors.Is(e, watch.ErrDamaged) || !errors.Is(e, snapdb.ErrCorrupt) || e.Last != 1 || len(r.of(segment.KindPut, segment.KindDelete)) > 0 {
				t.Errorf("%d changes were given, then %v", len(r.of(segment.KindPut, segment.KindDelete)), e)
			}
			if n := calls(t, c.Members[0], "Watch") - watches; n != 0 {
				t.Errorf("%d watches were asked for", n)
			}
			if left, err := os.ReadDir(options.Scratch); err != nil || len(left) > 0 {
				t.Errorf("left in scratch: %v, %v", left, err)
			}
			// etcd lives, and what comes from now on can be had of it.
			options.From = put(t, client, "still", "alive")
			run(t, s, options).waitRevision(put(t, client, "still", "going"))
		})
	}
}

// What is nearer than that a watch gives, at the only member too.
func TestTheOnlyMemberGivesAShortPastByAWatch(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	s := source(t, c)
	missed := farBehind(t, c.Client())
	options := quick(missed - 15_000)
	options.Scratch = t.TempDir()
	r := run(t, s, options)
	r.waitRevision(missed)
	if n := calls(t, c.Members[0], "Snapshot"); n != 0 {
		t.Errorf("%d snapshots were asked for", n)
	}
	if first := r.of(segment.KindPut, segment.KindDelete)[0].Main; first != options.From {
		t.Errorf("it begins at revision %d instead of %d", first, options.From)
	}
}

// What is nearer than that a watch gives, and a follower spares the leader.
func TestNoSnapshotIsAskedForWithoutNeed(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{Members: 3})
	lead := leader(t, c)
	missed := farBehind(t, c.Client(lead))
	options := quick(1)
	options.Scratch = t.TempDir()
	run(t, at(t, c, lead), options).whole(at(t, c, lead), missed)
	options.From = missed - 15_000
	r := run(t, at(t, c, lead), options)
	r.waitRevision(missed)
	for i, m := range c.Members {
		if n := calls(t, m, "Snapshot"); n != 0 {
			t.Errorf("member %d: %d snapshots were asked for", i, n)
		}
	}
}

// Where no follower can be asked, the leader is, and by a snapshot.
func TestALeaderThatIsLeftAloneIsAskedForASnapshot(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.7", cluster.Options{Members: 3})
	lead := leader(t, c)
	missed := farBehind(t, c.Client(lead))
	s := at(t, c, lead)
	options := quick(1)
	options.Scratch = t.TempDir()
	for i, m := range c.Members { // one follower is left
		if m.Endpoint == s.Others[0].Endpoint {
			c.Kill(i)
		}
	}
	run(t, s, options).whole(s, missed)
	if n := calls(t, c.Members[lead], "Snapshot"); n != 0 {
		t.Errorf("%d snapshots were asked for although there is a follower", n)
	}
	s.Others = s.Others[:1] // as if the other were not reached: without it there would be no quorum
	run(t, s, options).whole(s, missed)
	if n := calls(t, c.Members[lead], "Snapshot"); n != 1 {
		t.Errorf("%d snapshots were asked for", n)
	}
}

// narrow is an endpoint before another, through which so many bytes a second come.
func narrow(t *testing.T, endpoint string, rate int64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	t.Cleanup(func() { l.Close() })
	forward := func(from net.Conn) {
		defer from.Close()
		to, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "http://"))
		if err != nil {
			return
		}
		defer to.Close()
		// Small buffers, so that what is asked beside the stream doesn't wait behind it.
		_ = to.(*net.TCPConn).SetReadBuffer(64 << 10)
		_ = from.(*net.TCPConn).SetWriteBuffer(64 << 10)
		running.Go(func() { _, _ = io.Copy(to, from); to.Close() })
		buffer := make([]byte, 64<<10)
		for {
			n, err := to.Read(buffer)
			if err != nil {
				return
			}
			if _, err := from.Write(buffer[:n]); err != nil {
				return
			}
			time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
		}
	}
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { forward(conn) })
		}
	})
	return "http://" + l.Addr().String()
}

// A copy takes longer than a silence may last, and is none.
func TestACopyThatComesSlowlyIsNoSilence(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	missed := farBehind(t, c.Client())
	narrowed := narrow(t, c.Members[0].Endpoint, source(t, c).DBSize/4)
	opened, err := etcd.Open(etcd.Config{Name: "main", Endpoints: []string{narrowed}}, etcd.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	s := sources(t, opened)[0]
	options := quick(1)
	options.Call, options.Stall, options.Scratch = 10*time.Second, time.Second, t.TempDir()
	began := time.Now()
	r := run(t, s, options)
	r.waitRevision(missed)
	if n := calls(t, c.Members[0], "Snapshot"); n != 1 || time.Since(began) < 2*options.Stall {
		t.Errorf("%d snapshots came within %s: nothing was shown", n, time.Since(began))
	}
	r.whole(s, missed)
}

// A sink's refusal in the midst of a history is what ends the drain, and nothing
// stays behind.
func TestARefusalWhileASnapshotIsReadEndsTheDrain(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	s := source(t, c)
	farBehind(t, c.Client())
	options := quick(1)
	options.Scratch = t.TempDir()
	refusal := errors.New("the disk is full")
	r := onto(t, s, options, &tape{t: t, complete: 1, refuse: refusal})
	<-r.done
	if r.err != refusal {
		t.Errorf("it ended with %v", r.err)
	}
	if left, err := os.ReadDir(options.Scratch); err != nil || len(left) > 0 {
		t.Errorf("left in scratch: %v, %v", left, err)
	}
}
