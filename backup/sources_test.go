package backup_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/backup/etcd"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

// marked writes a value that can be found again in a database file.
func marked(t *testing.T, live *cluster.Cluster) (marker []byte) {
	t.Helper()
	random := make([]byte, 100)
	rand.Read(random)
	marker = []byte(hex.EncodeToString(random))
	if _, err := live.Client().Put(t.Context(), "/registry/marked", string(marker)); err != nil {
		t.Fatal(err)
	}
	return marker
}

// corrupt changes the marker in a member's database, as a bad disk would. Pages
// have no checksums, so only HashKV can tell.
func corrupt(t *testing.T, live *cluster.Cluster, member int, marker []byte, flip byte) {
	t.Helper()
	live.WaitHealthy(member)
	live.Stop(member)
	changed := slices.Clone(marker)
	changed[50] ^= flip
	edited(t, live.Members[member].DBFile(), func(b []byte) []byte {
		if !bytes.Contains(b, marker) {
			t.Fatal("the marker is not in the database file")
		}
		return bytes.ReplaceAll(b, marker, changed)
	})
	live.Restart(member)
}

// level says that all members have applied the same, so that their order will
// not change while nobody writes.
func level(survey *etcd.Survey) bool {
	return !slices.ContainsFunc(survey.Members, func(m etcd.MemberState) bool { return m.Applied != survey.Members[0].Applied })
}

// order lists the members as a backup would choose them, and their indexes in
// the cluster.
func order(t *testing.T, live *cluster.Cluster) (members []manifest.EtcdID, indexes []int) {
	t.Helper()
	c, err := etcd.Open(configOf(live), limits, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	survey, err := c.Survey(t.Context())
	for deadline := time.Now().Add(15 * time.Second); err == nil && !level(survey); survey, err = c.Survey(t.Context()) {
		if time.Now().After(deadline) {
			t.Fatalf("the members don't come level: %+v", survey.Members)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range survey.Sources() {
		members = append(members, source.Member())
		i := slices.IndexFunc(live.Members, func(m *cluster.Member) bool {
			status, err := live.Client().Status(t.Context(), m.Endpoint)
			return err == nil && status.Header.MemberId == uint64(source.Member())
		})
		indexes = append(indexes, i)
	}
	return members, indexes
}

// corruptFirstChoice makes the member corrupt that a backup would take first.
func corruptFirstChoice(t *testing.T, live *cluster.Cluster) manifest.EtcdID {
	t.Helper()
	marker := marked(t, live)
	members, indexes := order(t, live)
	corrupt(t, live, indexes[0], marker, 1)
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if again, _ := order(t, live); len(again) == len(members) && again[0] == members[0] {
			return members[0]
		}
		if time.Now().After(deadline) {
			t.Fatalf("member %s is no longer the first choice", members[0])
		}
	}
}

func TestACorruptSourceIsPassedOverAndNamed(t *testing.T) {
	t.Parallel()
	live := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	bad := corruptFirstChoice(t, live)
	w, store := newWorld(t), memory.New()
	m := mustEtcd(t, w.runner(t, store), configOf(live))
	if m.Etcd.MemberID == bad || !slices.Equal(m.Etcd.Dissenting, []manifest.EtcdID{bad}) {
		t.Errorf("taken from %s, dissenting %v; the bad one is %s", m.Etcd.MemberID, m.Etcd.Dissenting, bad)
	}
	if len(m.Unproved)+len(m.Degraded) > 0 || len(m.Etcd.ComparedWith) == 0 {
		t.Errorf("unproved %q, degraded %q, compared with %v", m.Unproved, m.Degraded, m.Etcd.ComparedWith)
	}
	if told := w.events.all(); !strings.Contains(told, "member "+bad.String()+": passed over") {
		t.Errorf("nobody was told: %s", told)
	}
	if left := objects(t, store); len(left) != 2 { // snapshot and manifest
		t.Errorf("the store holds %q", left)
	}
	w.verified(t, store)
	w.restored(t, store, m)
	w.noScratch(t)
}

func TestWithoutAGoodSourceABackupIsStillTaken(t *testing.T) {
	t.Parallel()
	t.Run("all members differ", func(t *testing.T) {
		t.Parallel()
		live := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
		marker := marked(t, live)
		for i := range live.Members {
			corrupt(t, live, i, marker, 1<<i)
		}
		w, store := newWorld(t), memory.New()
		m := mustEtcd(t, w.runner(t, store), configOf(live))
		if len(m.Unproved) == 0 || !has(m.Degraded, "no majority") {
			t.Errorf("unproved %q, degraded %q", m.Unproved, m.Degraded)
		}
		w.verified(t, store)
		if list := w.backups(t, store); len(list) != 1 || list[0].Proved {
			t.Errorf("listed: %+v", list)
		}
		w.restored(t, store, m)
		w.noScratch(t)
	})
	t.Run("the good ones die when they are asked", func(t *testing.T) {
		t.Parallel()
		live := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
		fillWith(t, live, 8<<20)
		bad := corruptFirstChoice(t, live)
		_, indexes := order(t, live)
		w, store := newWorld(t), memory.New()
		asked := 0
		w.events.hook = func(e events.Event) {
			if started, ok := e.(events.StageStarted); ok && started.Stage == "snapshot" {
				if asked == 1 || asked == 2 {
					live.Kill(indexes[asked])
				}
				asked++
			}
		}
		result, err := w.runner(t, store).Etcd(t.Context(), configOf(live), impatient)
		if err != nil {
			t.Fatal(err)
		}
		m := result.Manifest
		if asked != 4 || m.Etcd.MemberID != bad {
			t.Errorf("%d snapshots were asked for, taken from %s; want the bad one, %s, as the last resort", asked, m.Etcd.MemberID, bad)
		}
		if len(m.Unproved) == 0 || !has(m.Degraded, bad.String()) || !slices.Contains(m.Etcd.Dissenting, bad) {
			t.Errorf("unproved %q, degraded %q, dissenting %v", m.Unproved, m.Degraded, m.Etcd.Dissenting)
		}
		w.verified(t, store)
		w.restored(t, store, m)
		w.noScratch(t)
	})
}

// impatient limits wait less for members that are known to be dead.
var impatient = etcd.Limits{Call: 2 * time.Second, NoProgress: limits.NoProgress, MaxStall: limits.MaxStall}

// fillWith makes a database of at least so many bytes.
func fillWith(t *testing.T, live *cluster.Cluster, bytes int) {
	t.Helper()
	if _, err := etcdtest.Fill(t.Context(), live.Client(), etcdtest.FillOptions{
		Objects: bytes / 4000, ValueBytes: 4000, Seed: 2, Batch: 50, CreateOnly: true,
	}); err != nil {
		t.Fatal(err)
	}
}

func TestAMemberThatDiesWhileItStreamsIsReplaced(t *testing.T) {
	t.Parallel()
	for name, scratch := range map[string]bool{"through scratch": true, "straight through": false} {
		t.Run(name, func(t *testing.T) {
			live := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
			fillWith(t, live, 8<<20) // more than fits into the buffers on the way
			members, indexes := order(t, live)
			w, store := newWorld(t), memory.New()
			killed := false
			w.events.hook = func(e events.Event) {
				if progress, ok := e.(events.StageProgress); ok && progress.Stage == "snapshot" && progress.Done > 1<<20 && !killed {
					killed = true
					live.Kill(indexes[0])
				}
			}
			r := w.runner(t, store)
			if !scratch {
				r.Scratch = ""
			}
			result, err := r.Etcd(t.Context(), configOf(live), impatient)
			if err != nil {
				t.Fatal(err)
			}
			m := result.Manifest
			if !killed || m.Etcd.MemberID == members[0] || len(m.Etcd.Dissenting) != 0 {
				t.Errorf("killed: %v; taken from %s, dissenting %v", killed, m.Etcd.MemberID, m.Etcd.Dissenting)
			}
			if scratch == (len(m.Unproved) > 0) {
				t.Errorf("unproved: %q", m.Unproved)
			}
			if told := w.events.all(); !strings.Contains(told, members[0].String()+": passed over") {
				t.Errorf("told: %s", told)
			}
			if left := objects(t, store); len(left) != 2 {
				t.Errorf("the store holds %q", left)
			}
			w.verified(t, store)
			w.opened(t, store, m)
			w.noScratch(t)
		})
	}
}

func TestACancelledBackupEndsQuicklyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	config := sharedEtcd(t)
	for _, test := range []struct {
		stage   string
		scratch bool
	}{{"snapshot", true}, {"prove", true}, {"seal", true}, {"snapshot", false}, {"seal", false}} {
		name := "at " + test.stage
		if !test.scratch {
			name += ", straight through"
		}
		t.Run(name, func(t *testing.T) {
			w, store := newWorld(t), directory(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var since time.Time
			w.events.hook = func(e events.Event) {
				if started, ok := e.(events.StageStarted); ok && started.Stage == test.stage {
					since = time.Now()
					cancel()
				}
			}
			r := w.runner(t, store)
			if !test.scratch {
				r.Scratch = ""
			}
			_, err := r.Etcd(ctx, config, limits)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(since); took > busy {
				t.Errorf("it took %s to end", took)
			}
			if left := objects(t, store); len(left) != 0 {
				t.Errorf("left %q", left)
			}
			w.noScratch(t)
		})
	}
}

func TestABackupCancelledAtItsCommitIsNotThere(t *testing.T) {
	t.Parallel()
	config := sharedEtcd(t)
	w, inner := newWorld(t), memory.New()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	store := &hanging{Store: inner, hang: func(op fault.Op, name string) bool {
		commit := op == fault.Put && strings.Contains(name, "/manifests/")
		if commit {
			cancel()
		}
		return commit
	}}
	began := time.Now()
	if _, err := w.runner(t, store).Etcd(ctx, config, limits); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > busy {
		t.Errorf("it took %s to end", took)
	}
	w.noScratch(t)
	w.verified(t, inner)
	if list := w.backups(t, inner); len(list) != 0 {
		t.Errorf("listed: %v", ids(list))
	}
	mustEtcd(t, w.runner(t, inner), config)
	w.verified(t, inner)
}

func TestWithoutAScratchFolderABackupIsUnproved(t *testing.T) {
	t.Parallel()
	config := sharedEtcd(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"none configured": "", "a file in its place": file} {
		t.Run(name, func(t *testing.T) {
			w, store := newWorld(t), memory.New()
			r := w.runner(t, store)
			r.Scratch = path
			m := mustEtcd(t, r, config)
			if len(m.Unproved) == 0 || len(m.Degraded) != 0 || m.Etcd.HashKV != 0 {
				t.Errorf("unproved %q, degraded %q, hash %d", m.Unproved, m.Degraded, m.Etcd.HashKV)
			}
			if list := w.backups(t, store); len(list) != 1 || list[0].Proved {
				t.Errorf("listed: %+v", list)
			}
			w.verified(t, store)
			if report := w.opened(t, store, m); report.Proof == nil {
				t.Error("whoever holds the identity can't prove it later")
			}
			w.restored(t, store, m)
		})
	}
}
