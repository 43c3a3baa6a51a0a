package plane

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/topology"
)

// again runs the order that others have shared, and ends it at a point as a kill
// does.
func (w *world) again(text []byte, killAt string) (*Plan, error) {
	w.t.Helper()
	shared, err := ParseShared(text)
	check(w.t, err)
	o := w.options()
	o.Order, o.Shared = Order{Node: "cp1"}, shared
	o.at = func(point string) error {
		if point == killAt {
			return errKilled
		}
		return nil
	}
	p, err := Prepare(w.t.Context(), o)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return p, p.Execute(w.t.Context(), nil)
}

func TestASharedOrderIsDoneOnceOnAMachineAndCanComeAgainAfterAnAbort(t *testing.T) {
	w := newWorld(t)
	w.order.Members = All
	text := w.share()
	w.state = folder(t) // another machine's
	before := w.old()
	first, err := w.again(text, "did "+stepEtcd)
	if !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	check(t, w.abort())
	second, err := w.again(text, "")
	check(t, err)
	w.wantRestored()
	if first.ID() != first.Order.RestoreID || second.ID() == first.ID() || second.Order.RestoreID != first.Order.RestoreID || second.Etcd.ClusterID != first.Etcd.ClusterID {
		t.Errorf("the same order is restore %s of cluster %s, and then %s of %s", first.ID(), first.Etcd.ClusterID, second.ID(), second.Etcd.ClusterID)
	}
	// What was there before the first is what the second has kept.
	for _, kept := range Kept(second.Record()) {
		if !strings.Contains(kept, second.ID()) {
			t.Errorf("the second keeps %s", kept)
		}
	}
	db, err := os.ReadFile(filepath.Join(w.state, "aside", second.ID(), "member/snap/db"))
	if err != nil || !strings.HasSuffix(before["var/lib/etcd/member/snap/db"], string(db)) {
		t.Errorf("etcd's old member: %q, %v", db, err)
	}
	if _, err := w.again(text, ""); !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "was done on this machine and has ended") {
		t.Errorf("once more: %v", err)
	}
}

func TestARelativeTimeStaysThePointThatItMeant(t *testing.T) {
	begun := Order{Node: "cp1", Members: One, Aim: "--at 10 minutes ago", Point: repository.Point{Revision: 41, Epoch: 1}, Token: "t", Bump: 7, RestoreID: "r"}
	at := repository.Point{Time: time.Unix(1e9, 0)}
	for name, c := range map[string]struct {
		asked Order
		want  bool
	}{
		"the same words, later": {Order{Node: "cp1", Members: One, Aim: "--at 10 minutes ago", Point: at}, true},
		"other words":           {Order{Node: "cp1", Members: One, Aim: "--at 9 minutes ago", Point: at}, false},
		"no point":              {Order{Node: "cp1", Members: One}, true},
		"another node":          {Order{Node: "cp2", Members: One}, false},
		"other members":         {Order{Node: "cp1", Members: All}, false},
		"another token":         {Order{Node: "cp1", Members: One, Token: "u"}, false},
	} {
		if got := begun.goesOn(c.asked); got != c.want {
			t.Errorf("%s: goes on %v, want %v", name, got, c.want)
		}
	}
}

func TestTheInspectionKnowsWhichClusterTheRestoreMakes(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	var asked topology.Inputs
	o.Inspect = func(_ context.Context, in topology.Inputs) (*topology.Host, error) {
		asked = in
		return &topology.Host{}, nil
	}
	p, err := Prepare(t.Context(), o)
	check(t, err)
	defer p.Close()
	if asked.Becomes == nil || p.Etcd.ClusterID == 0 || asked.Becomes.ClusterID != p.Etcd.ClusterID || asked.Becomes.MemberID != p.Etcd.MemberID || p.Etcd.MemberID == 0 {
		t.Errorf("the inspection knows %+v, the plan makes cluster %s with member %s", asked.Becomes, p.Etcd.ClusterID, p.Etcd.MemberID)
	}
}

func TestAnAPIServerIsAskedWhereItsManifestSays(t *testing.T) {
	w := newWorld(t)
	p, err := Prepare(t.Context(), w.options())
	check(t, err)
	defer p.Close()
	if got := apiServer(p.Files, w.root); got != "https://127.0.0.1:6443" {
		t.Errorf("by default %s", got)
	}
	path := filepath.Join(p.Files.Manifests(), "kube-apiserver.yaml")
	text, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, []byte(strings.Replace(string(text), "--secure-port=6443", "--secure-port=8443\n    - --bind-address=10.0.0.11", 1)), 0o600))
	if got := apiServer(p.Files, w.root); got != "https://10.0.0.11:8443" {
		t.Errorf("by its manifest %s", got)
	}
}
