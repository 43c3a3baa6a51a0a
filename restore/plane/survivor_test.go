package plane

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/internal/snapdb"
	"lifeboat/restore"
	"lifeboat/restore/salvage"
	"lifeboat/restore/topology"
)

// survivors is a world whose machine has a real member's data, of an etcd that was
// killed some changes after its last full.
func survivors(t *testing.T) (w *world, before map[string]string, last int64) {
	t.Helper()
	w = newWorld(t)
	w.old()
	c := cluster.StartBinary(t, "3.6", cluster.Options{Args: []string{"--backend-batch-interval", "30s", "--backend-batch-limit", "1000000"}})
	client := c.Client()
	put := func(i int) {
		res, err := client.Put(t.Context(), fmt.Sprintf("/registry/k%d", i), fmt.Sprint(i))
		check(t, err)
		last = res.Header.Revision
	}
	for i := range 20 {
		put(i)
	}
	stream, err := client.Snapshot(t.Context())
	check(t, err)
	plain, err := io.ReadAll(stream)
	check(t, err)
	db := filepath.Join(t.TempDir(), "snapshot.db")
	check(t, os.WriteFile(db, plain, 0o600))
	facts, err := snapdb.Inspect(t.Context(), db, snapdb.Options{})
	check(t, err)
	list, err := client.MemberList(t.Context())
	check(t, err)
	w.commit(&manifest.Manifest{
		Chain: restore.DefaultChain, Kind: manifest.KindFull,
		Etcd: &manifest.Etcd{
			Version: "3.6.16", ClusterVersion: "3.6.0", ClusterID: manifest.EtcdID(list.Header.ClusterId), MemberID: 2, Revision: manifest.Revision(facts.Revision),
			HashKV: facts.HashKV, DBBytes: facts.DBBytes, Keys: facts.Keys, ComparedWith: []manifest.EtcdID{2},
			Members: []manifest.Member{{ID: 2, Name: "cp1", PeerURLs: []string{"https://10.0.0.11:2380"}}, {ID: 3, Name: "cp2", PeerURLs: []string{"https://10.0.0.12:2380"}}},
		},
	}, manifest.RoleSnapshot, "snapshot.db.zst.age", plain)
	for i := range 30 {
		put(100 + i)
	}
	c.Kill(0)
	dir := filepath.Join(w.root, "var/lib/etcd")
	check(t, os.RemoveAll(dir))
	out, err := exec.Command("cp", "-a", c.Members[0].Dir, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.order.FromDataDir = dir
	return w, w.tree(), last
}

func (w *world) restoredRevision() int64 {
	w.t.Helper()
	facts, err := snapdb.Inspect(w.t.Context(), filepath.Join(w.root, "var/lib/etcd/member/snap/db"), snapdb.Options{})
	check(w.t, err)
	return facts.Revision
}

func TestANodeIsRebuiltFromItsOwnDataDirectory(t *testing.T) {
	w, before, last := survivors(t)
	p, err := Prepare(t.Context(), w.options())
	check(t, err)
	defer p.Close()
	var text strings.Builder
	check(t, p.Print(&text))
	for _, want := range []string{"which has survived", "the directory is fresher by", "Apply the write-ahead log", "the same past"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the plan lacks %q:\n%s", want, &text)
		}
	}
	if w.inspected != 2 { // once to make the machine old
		t.Error("the machine was not inspected")
	}
	if diff := cmp.Diff(before, w.tree()); diff != "" {
		t.Errorf("planning has changed the machine: %s", diff)
	}
	check(t, p.Execute(t.Context(), nil))
	if got := w.restoredRevision(); got != last+int64(p.Order.Bump) {
		t.Errorf("revision %d, %d was acknowledged and the bump is %d", got, last, p.Order.Bump)
	}
	if int64(p.Etcd.Choice.Revision) != last || p.Order.Point.Revision != p.Etcd.Choice.Revision {
		t.Errorf("the plan ends at %+v, the order at %+v", p.Etcd.Choice, p.Order.Point)
	}
}

func TestASalvageGoesOnAfterAKillAndCanBeUndone(t *testing.T) {
	for _, at := range []string{"begun " + stepStop, "did " + stepFiles, "begun " + stepEtcd, "did " + stepEtcd, "begun " + stepPods, "did " + stepBackup} {
		t.Run(at, func(t *testing.T) {
			w, _, last := survivors(t)
			if err := w.run(at); !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			p, err := Prepare(t.Context(), w.options())
			check(t, err)
			check(t, p.Execute(t.Context(), nil))
			if got := w.restoredRevision(); got != last+int64(p.Order.Bump) {
				t.Errorf("went on to revision %d, %d was acknowledged", got, last)
			}
			if int64(p.Etcd.Choice.Revision) != last {
				t.Errorf("the plan that went on says %+v, %d was acknowledged", p.Etcd.Choice, last)
			}
			check(t, p.Close())

			w, before, _ := survivors(t)
			if err := w.run(at); !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			check(t, w.abort())
			after := w.tree()
			for name := range before {
				if !cmp.Equal(before[name], after[name]) {
					t.Errorf("%s is not what it was", name)
				}
			}
		})
	}
}

func TestANodeIsNotRebuiltFromWhatDoesNotFit(t *testing.T) {
	w, before, _ := survivors(t)
	prepare := func(edit func(*Options)) error {
		o := w.options()
		edit(&o)
		p, err := Prepare(t.Context(), o)
		if err == nil {
			check(t, p.Close())
		}
		return err
	}
	if err := prepare(func(o *Options) { o.Order.Members = All }); !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "--members one") {
		t.Errorf("all members: %v", err)
	}
	if err := prepare(func(o *Options) { o.Order.FromDataDir = "var/lib/etcd" }); !errors.Is(err, restore.ErrRefused) {
		t.Errorf("a relative path: %v", err)
	}
	w.verdict = topology.Verdict{Outcome: topology.QuorumLives, Refuse: true, Why: []string{"2 of 3 live"}}
	if err := prepare(func(*Options) {}); !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "2 of 3 live") {
		t.Errorf("a living quorum: %v", err)
	}
	w.verdict = topology.Verdict{}
	s, err := salvage.Open(w.order.FromDataDir)
	check(t, err)
	check(t, s.Close())
	db, err := os.OpenFile(filepath.Join(w.order.FromDataDir, "member/snap/db"), os.O_RDWR, 0)
	check(t, err)
	info, err := db.Stat()
	check(t, err)
	_, err = db.WriteAt([]byte(strings.Repeat("x", int(info.Size())-2*4096)), 2*4096) // all but the two meta pages
	check(t, errors.Join(err, db.Close()))
	if err := prepare(func(*Options) {}); !errors.Is(err, snapdb.ErrCorrupt) {
		t.Errorf("damaged pages: %v", err)
	}
	after := w.tree()
	delete(before, "var/lib/etcd/member/snap/db")
	for name := range before {
		if before[name] != after[name] {
			t.Errorf("%s is not what it was", name)
		}
	}
}
