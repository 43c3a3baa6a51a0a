package plane

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
	"lifeboat/restore"
)

// change commits one change behind the newest full.
func (w *world) change(key, value string) {
	w.t.Helper()
	full, err := w.repo.NewestFull(w.t.Context(), restore.DefaultChain)
	check(w.t, err)
	at := int64(full.Etcd.Revision) + 1
	kv, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: at, ModRevision: at, Version: 1})
	check(w.t, err)
	var plain bytes.Buffer
	s, err := segment.NewWriter(&plain, segment.Header{ClusterID: 1, MemberID: 2, First: at, At: now.UnixMilli()})
	check(w.t, err)
	check(w.t, s.Write(segment.Record{Kind: segment.KindPut, Main: at, KV: kv}))
	check(w.t, s.Close(at))
	span := &manifest.Span{ClusterID: 1, MemberID: 2, First: manifest.Revision(at), Last: manifest.Revision(at), Events: 1, FirstTime: now, LastTime: now}
	span.SetMoments([]manifest.Moment{{At: now, AtLeast: manifest.Revision(at), AtMost: manifest.Revision(at)}})
	w.commit(&manifest.Manifest{Chain: restore.DefaultChain, Epoch: full.Epoch, Kind: manifest.KindSegment, Span: span}, manifest.RoleEvents, "events.zst.age", plain.Bytes())
}

func TestAKeyThatOnlyChangesBehindTheFullUseIsMissedBeforeTheFirstChange(t *testing.T) {
	w := newWorld(t)
	w.old()
	w.change("/registry/secrets/default/late", "k8s:enc:aescbc:v1:late:sealed")
	before := w.tree()
	p, err := Prepare(t.Context(), w.options())
	check(t, err) // the full's own facts name no key
	defer p.Close()
	var stages []string
	err = p.Execute(t.Context(), func(e events.Event) {
		if e, ok := e.(events.StageDone); ok && e.Err != nil {
			stages = append(stages, e.Stage)
		}
	})
	if !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), `"late"`) || !strings.Contains(err.Error(), "/registry/secrets/default/late") {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([]string{StageKeys}, stages); diff != "" {
		t.Errorf("what failed (-want +got):\n%s", diff)
	}
	after := w.tree()
	for name := range after { // the folder in which the new member was made
		if strings.HasPrefix(name, "var/lib/etcd/.lifeboat") {
			if strings.HasSuffix(name, "db") {
				t.Errorf("%s is left", name)
			}
			delete(after, name)
		}
	}
	if diff := cmp.Diff(before, after); diff != "" || len(w.machine.story) > 0 || p.Changing() {
		t.Errorf("something changed: %v\n%s", w.machine.story, diff)
	}
}
