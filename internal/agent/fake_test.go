package agent

import (
	"context"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// fake is Works that a test fills in. What is left out succeeds.
type fake struct {
	mu       sync.Mutex
	calls    []string
	picture  func() (*Picture, error)
	standing func() (*Standing, error)
	full     func(context.Context) (*Outcome, error)
	files    func(context.Context) (*Outcome, error)
	verify   func([]manifest.Chain) (*Outcome, error)
	record   func(context.Context, Recording) error
	certs    []status.Certificate
	reload   error
}

func (f *fake) note(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
}

func (f *fake) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (f *fake) Look(context.Context) (*Picture, error) {
	f.note("look")
	if f.picture == nil {
		return &Picture{Stores: []StorePicture{{URL: "s3://a", Chains: map[manifest.Chain]status.InStore{}}}}, nil
	}
	return f.picture()
}

func (f *fake) Standing(context.Context, string) (*Standing, error) {
	f.note("standing")
	if f.standing == nil {
		return &Standing{Quorum: true}, nil
	}
	return f.standing()
}

func (f *fake) Full(ctx context.Context, cluster string) (*Outcome, error) {
	f.note("full " + cluster)
	if f.full == nil {
		return &Outcome{Created: time.Now()}, nil
	}
	return f.full(ctx)
}

func (f *fake) Files(ctx context.Context) (*Outcome, error) {
	f.note("files")
	if f.files == nil {
		return &Outcome{Created: time.Now()}, nil
	}
	return f.files(ctx)
}

func (f *fake) Record(ctx context.Context, cluster string, r Recording) error {
	f.note("record " + cluster)
	if f.record == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.record(ctx, r)
}

func (f *fake) Verify(_ context.Context, chains []manifest.Chain) (*Outcome, error) {
	f.note("verify")
	if f.verify == nil {
		return &Outcome{}, nil
	}
	return f.verify(chains)
}

func (f *fake) Prune(context.Context) (*Outcome, error) { f.note("prune"); return &Outcome{}, nil }

func (f *fake) Certificates(context.Context) ([]status.Certificate, error) { return f.certs, nil }

func (f *fake) Reload(context.Context, *config.Config) error { return f.reload }

// holding is a store that holds each chain with a newest backup of that time.
func holding(url string, newest map[manifest.Chain]time.Time) StorePicture {
	p := StorePicture{URL: url, Chains: map[manifest.Chain]status.InStore{}}
	for chain, at := range newest {
		p.Chains[chain] = status.InStore{Head: uint64(at.Unix()), RecoveryPoint: at, Newest: at, NewestWhole: at, NewestProved: at, Expected: at.Add(1000 * time.Hour), Valid: true}
	}
	return p
}

func testConfig(t *testing.T) *config.Config {
	c := config.Default()
	c.Cluster, c.Node, c.StateDir = "test", "cp1", t.TempDir()
	c.Etcd = []config.Etcd{{Name: "main"}}
	c.Stores = []config.Store{config.DefaultStore("s3://a")}
	c.Schedule = config.Schedule{Full: "0 */6 * * *"}
	c.Segments.Interval = 0 // tests of the recorder turn it on
	return c
}

// started is a running agent and what stops it.
func started(t *testing.T, o Options) (*Agent, func() error) {
	t.Helper()
	a, err := newAgent(o, &shelfInMemory{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return a, func() error { cancel(); return <-done }
}

// problemsOf lists the severity and message of the problems about a subject.
func problemsOf(s *status.Status, subject string) []string {
	list := []string{}
	for _, p := range s.Problems {
		if p.Subject == subject {
			list = append(list, string(p.Severity)+": "+p.Message)
		}
	}
	return list
}
