package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"lifeboat/backup/etcd"
	"lifeboat/internal/segment"
)

// marshal makes a response's wire form by the generated code.
func marshal(t testing.TB, response *pb.WatchResponse) []byte {
	t.Helper()
	wire, err := proto.Marshal(response)
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func receive(t testing.TB, m *message, response *pb.WatchResponse) *message {
	t.Helper()
	if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(marshal(t, response))}, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func putOf(revision int64, sub int) *mvccpb.Event {
	return &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: fmt.Appendf(nil, "k%d", sub), Value: []byte("v"), CreateRevision: revision, ModRevision: revision, Version: 1}}
}

// taken is a sink that writes down what it is told.
type taken struct{ said []string }

func (s *taken) Record(r segment.Record) error {
	switch {
	case r.IsEvent():
		s.said = append(s.said, fmt.Sprintf("%s %d", r.Kind, r.Main))
	default:
		s.said = append(s.said, r.Kind.String())
	}
	return nil
}

func (s *taken) Complete(revision int64, _ time.Time) error {
	s.said = append(s.said, fmt.Sprintf("complete %d", revision))
	return nil
}

func (s *taken) Changed(string) {}

func newDrain(from int64, sink Sink) (*Drain, *progress) {
	return New(Source{etcd.Watchable{ClusterID: 9}}, Options{From: from}, sink), newProgress(from - 1)
}

func TestFragmentsCompleteOnlyWhatMayHaveNoMore(t *testing.T) {
	sink := &taken{}
	d, p := newDrain(5, sink)
	m := &message{}
	for _, r := range []*pb.WatchResponse{
		{Header: &pb.ResponseHeader{ClusterId: 9, Revision: 8}, Created: true},
		{Fragment: true, Events: []*mvccpb.Event{putOf(5, 0), putOf(5, 1)}},
		{Fragment: true, Events: []*mvccpb.Event{putOf(5, 2), putOf(6, 0), putOf(7, 0)}},
		{Events: []*mvccpb.Event{putOf(7, 1), putOf(8, 0)}},
		{Header: &pb.ResponseHeader{ClusterId: 9, Revision: 8}}, // progress
	} {
		if err := d.take(receive(t, m, r), p); err != nil {
			t.Fatal(err)
		}
		if p.open != r.Fragment {
			t.Errorf("open: %v after a response with fragment %v", p.open, r.Fragment)
		}
	}
	want := []string{"put 5", "put 5", "put 5", "put 6", "put 7", "complete 6", "put 7", "put 8", "complete 8"}
	if fmt.Sprint(sink.said) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", sink.said, want)
	}
}

func TestARevisionThatIsLeftOutEndsTheDrain(t *testing.T) {
	for _, test := range []struct {
		name      string
		responses []*pb.WatchResponse
		head      int64
	}{
		{"at the beginning", []*pb.WatchResponse{{Events: []*mvccpb.Event{putOf(6, 0)}}}, 6},
		{"between responses", []*pb.WatchResponse{{Events: []*mvccpb.Event{putOf(5, 0)}}, {Events: []*mvccpb.Event{putOf(7, 0)}}}, 7},
		{"inside a response", []*pb.WatchResponse{{Events: []*mvccpb.Event{putOf(5, 0), putOf(7, 0)}}}, 7},
		{"seen by a progress notification", []*pb.WatchResponse{{Events: []*mvccpb.Event{putOf(5, 0)}}, {Header: &pb.ResponseHeader{Revision: 6}}}, 6},
		{"an older one again", []*pb.WatchResponse{{Events: []*mvccpb.Event{putOf(5, 0), putOf(6, 0)}}, {Events: []*mvccpb.Event{putOf(5, 0)}}}, 5},
		{"more of one that was complete", []*pb.WatchResponse{{Events: []*mvccpb.Event{putOf(5, 0)}}, {Events: []*mvccpb.Event{putOf(5, 1)}}}, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, p := newDrain(5, &taken{})
			var err error
			for _, r := range test.responses {
				if err != nil {
					t.Fatalf("ended early: %v", err)
				}
				err = d.take(receive(t, &message{}, r), p)
			}
			var e *Error
			if !errors.As(d.fail(t.Context(), err), &e) || !errors.Is(e, ErrHole) || e.Head != test.head {
				t.Errorf("%v", e)
			}
		})
	}
}

func TestRevisionsBelowTheWantedOnesArePassedOver(t *testing.T) {
	sink := &taken{}
	d, p := newDrain(5, sink)
	if err := d.take(receive(t, &message{}, &pb.WatchResponse{Events: []*mvccpb.Event{putOf(3, 0), putOf(4, 0), putOf(5, 0)}}), p); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(sink.said); got != "[put 5 complete 5]" {
		t.Error(got)
	}
}

func TestCompactionsAndHashesWaitForTheirRevision(t *testing.T) {
	sink := &taken{}
	d, p := newDrain(5, sink)
	for _, r := range []segment.Record{
		{Kind: segment.KindHash, Hash: segment.Hash{Revision: 6}},
		{Kind: segment.KindCompaction, Compaction: segment.Compaction{Revision: 4}},
		{Kind: segment.KindTime},
	} {
		if err := d.takeFinding(finding{record: r}, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.take(receive(t, &message{}, &pb.WatchResponse{Events: []*mvccpb.Event{putOf(5, 0), putOf(6, 0)}}), p); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(sink.said); got != "[time put 5 put 6 complete 6 hash compaction]" {
		t.Error(got)
	}
}

func TestWhyAWatchEnded(t *testing.T) {
	ended, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	d, p := newDrain(5, &taken{})
	for _, test := range []struct {
		response *pb.WatchResponse
		want     error
	}{
		{&pb.WatchResponse{Canceled: true, CompactRevision: 7}, ErrCompacted},
		{&pb.WatchResponse{Canceled: true, CancelReason: "etcdserver: no leader"}, ErrNoLeader},
		{&pb.WatchResponse{Canceled: true, Created: true, CancelReason: "etcdserver: permission denied"}, ErrLost},
		{&pb.WatchResponse{Canceled: true}, ErrLost},
		{&pb.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 8}, Created: true}, ErrOtherCluster},
	} {
		err := d.take(receive(t, &message{}, test.response), p)
		if got := d.fail(t.Context(), err); !errors.Is(got, test.want) {
			t.Errorf("%v: %v, wanted %v", test.response, got, test.want)
		}
		if got := d.fail(ended, err); got != why {
			t.Errorf("%v with a context that ended: %v", test.response, got)
		}
	}
}

func TestEventsKeepTheBytesOfTheDatabase(t *testing.T) {
	kv := &mvccpb.KeyValue{Key: []byte("k"), Value: []byte("v"), CreateRevision: 3, ModRevision: 300, Version: 2, Lease: -7}
	stored, err := proto.Marshal(kv)
	if err != nil {
		t.Fatal(err)
	}
	tomb, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte("k")})
	if err != nil {
		t.Fatal(err)
	}
	m := receive(t, &message{}, &pb.WatchResponse{Events: []*mvccpb.Event{
		{Kv: kv, PrevKv: kv},
		{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 300}},
	}})
	put, err := parseEvent(m.events[0])
	if err != nil || put.deletion || put.main != 300 || put.lease != -7 || !bytes.Equal(put.kv, stored) {
		t.Errorf("put: %+v, %v", put, err)
	}
	deletion, err := parseEvent(m.events[1])
	if err != nil || !deletion.deletion || deletion.main != 300 || deletion.lease != 0 || !bytes.Equal(deletion.kv, tomb) {
		t.Errorf("delete: %+v, %v", deletion, err)
	}
	// The same with the revision before the key, as no etcd writes it.
	odd := append([]byte{3 << 3, 5}, tomb...)
	e, err := parseEvent(append([]byte{1 << 3, 1, 2<<3 | 2, byte(len(odd))}, odd...))
	if err != nil || e.main != 5 || !bytes.Equal(e.kv, tomb) {
		t.Errorf("delete with the revision first: %+v, %v", e, err)
	}
}

func TestAHugeMessageDoesNotKeepItsMemory(t *testing.T) {
	m := &message{}
	huge := putOf(5, 0)
	huge.Kv.Value = make([]byte, 2*keptWire)
	receive(t, m, &pb.WatchResponse{Events: []*mvccpb.Event{huge}})
	receive(t, m, &pb.WatchResponse{Events: []*mvccpb.Event{putOf(6, 0)}})
	if cap(m.wire) > keptWire {
		t.Errorf("%d bytes are kept", cap(m.wire))
	}
}

// FuzzResponse holds the parser against the generated one: no panic, and what
// both take means the same.
func FuzzResponse(f *testing.F) {
	f.Add([]byte{})
	f.Add(marshal(f, &pb.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 9, MemberId: 8, Revision: 7, RaftTerm: 6}, Created: true, WatchId: 3}))
	f.Add(marshal(f, &pb.WatchResponse{Canceled: true, CompactRevision: 5, CancelReason: "reason", Fragment: true}))
	f.Add(marshal(f, &pb.WatchResponse{Events: []*mvccpb.Event{putOf(5, 0), {Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 6}}}}))
	f.Fuzz(func(t *testing.T, wire []byte) {
		m := &message{wire: wire}
		if m.parse() != nil {
			return
		}
		var want pb.WatchResponse
		generated := proto.Unmarshal(wire, &want) == nil
		if generated && (m.revision != 0 || m.cluster != 0) && want.Header == nil {
			t.Error("a header where there is none")
		}
		for i, b := range m.events {
			e, err := parseEvent(b)
			if err != nil {
				continue
			}
			record := segment.Record{Kind: segment.KindPut, Main: e.main, KV: e.kv}
			if e.deletion {
				record.Kind = segment.KindDelete
			}
			if key, err := segment.KeyOf(e.kv); err != nil || len(key) == 0 {
				t.Errorf("event %d has no key: %v", i, err)
			}
			_ = segment.AppendRecord(nil, record)
		}
	})
}
