package kubeapi

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"lifeboat/internal/manifest"
)

// EtcdOptions say how to reach etcd.
type EtcdOptions struct {
	Endpoints []string    // client URLs; one that leads to a member is enough
	TLS       *tls.Config // nil for plain text

	Limit time.Duration // for one question; default 10 s
	// Long is the limit for what goes through a whole database: HashKV, a
	// compaction, a defragmentation; default 15 min.
	Long  time.Duration
	Pause time.Duration // between two tries; default 1 s
	Sleep func(context.Context, time.Duration) error
}

// Etcd asks the members of one etcd cluster. Close it after use.
type Etcd struct {
	client             *clientv3.Client
	limit, long, pause time.Duration
	sleep              func(context.Context, time.Duration) error
}

// NewEtcd prepares connections; no member need live yet.
func NewEtcd(o EtcdOptions) (*Etcd, error) {
	e := &Etcd{limit: cmp.Or(o.Limit, 10*time.Second), long: cmp.Or(o.Long, 15*time.Minute), pause: cmp.Or(o.Pause, time.Second), sleep: o.Sleep}
	if e.sleep == nil {
		e.sleep = sleep
	}
	if len(o.Endpoints) == 0 {
		return nil, errors.New("connect to etcd: no endpoints were given")
	}
	var err error
	e.client, err = clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, TLS: o.TLS, DialTimeout: e.limit, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 10 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(soon)},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(o.Endpoints, ", "), err)
	}
	return e, nil
}

// soon is how an etcd is dialled that is about to start: gRPC's own pauses grow to
// minutes, and a restore would wait for them.
var soon = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.2, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
	MinConnectTimeout: 5 * time.Second,
}

// Close ends the connections.
func (e *Etcd) Close() error { return e.client.Close() }

// EtcdMember is a member as it answers.
type EtcdMember struct {
	ID       manifest.EtcdID `json:"id"`
	Name     string          `json:"name"` // empty: it was added and never started
	Learner  bool            `json:"learner,omitempty"`
	Endpoint string          `json:"endpoint,omitempty"` // that answered, or the first
	Version  string          `json:"version,omitempty"`
	Leader   manifest.EtcdID `json:"leader,omitempty"` // 0: it knows none
	Term     uint64          `json:"term,omitempty"`
	Revision int64           `json:"revision,omitempty"`
	DBBytes  int64           `json:"dbBytes,omitempty"` // of its file
	InUse    int64           `json:"inUse,omitempty"`   // bytes of them
	Quota    int64           `json:"quota,omitempty"`   // bytes; 0: not told, as before etcd 3.6
	Errors   []string        `json:"errors,omitempty"`  // what it says of itself: alarms, no leader
	Failed   string          `json:"failed,omitempty"`  // why it could not be asked
}

// Healthy says whether the member answers, knows a leader and complains of
// nothing.
func (m EtcdMember) Healthy() bool {
	return m.Failed == "" && m.Leader != 0 && len(m.Errors) == 0
}

func (m EtcdMember) String() string {
	return fmt.Sprintf("member %s (%s)", cmp.Or(m.Name, "that never started"), m.ID)
}

// Members lists the members and asks each how it is. It takes a quorum: without
// one it is an error.
func (e *Etcd) Members(ctx context.Context) ([]EtcdMember, error) {
	asking, cancel := e.within(ctx, e.limit)
	defer cancel()
	list, err := e.client.MemberList(asking)
	if err != nil {
		return nil, fmt.Errorf("list the members of etcd at %s: %w", strings.Join(e.client.Endpoints(), ", "), caused(asking, err))
	}
	out := make([]EtcdMember, len(list.Members))
	var all sync.WaitGroup
	for i, m := range list.Members {
		all.Go(func() { out[i] = e.look(ctx, m) })
	}
	all.Wait()
	slices.SortFunc(out, func(a, b EtcdMember) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

func (e *Etcd) look(ctx context.Context, m *etcdserverpb.Member) EtcdMember {
	out := EtcdMember{ID: manifest.EtcdID(m.ID), Name: m.Name, Learner: m.IsLearner, Failed: "it has never started, so it has no client URL"}
	var failed []string
	for i, endpoint := range m.ClientURLs {
		if i == 0 {
			out.Endpoint = endpoint
		}
		asking, cancel := e.within(ctx, e.limit)
		s, err := e.client.Status(asking, endpoint)
		cancel()
		switch {
		case err != nil:
			failed = append(failed, fmt.Sprintf("%s: %v", endpoint, caused(asking, err)))
		case s.Header.MemberId != m.ID:
			failed = append(failed, fmt.Sprintf("%s: another member answers there, %x", endpoint, s.Header.MemberId))
		default:
			out.Endpoint, out.Failed = endpoint, ""
			out.Version, out.Leader, out.Term, out.Revision = s.Version, manifest.EtcdID(s.Leader), s.RaftTerm, s.Header.Revision
			out.DBBytes, out.InUse, out.Quota, out.Errors = s.DbSize, s.DbSizeInUse, s.DbSizeQuota, s.Errors
			return out
		}
	}
	if len(failed) > 0 {
		out.Failed = strings.Join(failed, "; ")
	}
	return out
}

// Alarm is one that a member has raised.
type Alarm struct {
	Member manifest.EtcdID `json:"member"`
	Kind   string          `json:"kind"` // NOSPACE, CORRUPT
}

// Alarms lists the alarms. etcd sends the question through its log like a write,
// so it takes a quorum.
func (e *Etcd) Alarms(ctx context.Context) ([]Alarm, error) {
	asking, cancel := e.within(ctx, e.limit)
	defer cancel()
	r, err := e.client.AlarmList(asking)
	if err != nil {
		return nil, fmt.Errorf("list the alarms of etcd at %s: %w", strings.Join(e.client.Endpoints(), ", "), caused(asking, err))
	}
	out := []Alarm{}
	for _, a := range r.Alarms {
		out = append(out, Alarm{Member: manifest.EtcdID(a.MemberID), Kind: a.Alarm.String()})
	}
	slices.SortFunc(out, func(a, b Alarm) int { return cmp.Or(strings.Compare(a.Kind, b.Kind), cmp.Compare(a.Member, b.Member)) })
	return out, nil
}

// revision is a linearizable read's, of a key that can't be there.
func (e *Etcd) revision(ctx context.Context) (int64, error) {
	asking, cancel := e.within(ctx, e.limit)
	defer cancel()
	r, err := e.client.Get(asking, "\x00", clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("ask etcd at %s for its revision: %w", strings.Join(e.client.Endpoints(), ", "), caused(asking, err))
	}
	return r.Header.Revision, nil
}

func (e *Etcd) within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
}

// caused says why a context ended in place of that it did.
func caused(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
