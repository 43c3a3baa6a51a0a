package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/agent/turns"
	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/status"
	"lifeboat/storage"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

// TestSimulationWithTheRealRepository lets agents commit small backups to real
// chains, in stores that go down and lose answers, with clocks that jump and
// agents that die. At the end every chain verifies, and is one chain.
func TestSimulationWithTheRealRepository(t *testing.T) {
	const days = 3
	seeds, fulls := 24, 0
	if testing.Short() {
		seeds = 6
	}
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) {
			w := newStoredWorld(t, seed)
			w.run(days)
			for i := range w.inner {
				n := w.verify(i)
				if n < days*4/2 {
					t.Errorf("seed %d: store %d holds %d fulls", seed, i, n)
				}
				fulls += n
			}
		})
	}
	t.Logf("%d fulls in %d worlds", fulls, seeds)
}

// storedWorld is agents that share real repositories.
type storedWorld struct {
	t      *testing.T
	rng    *rand.Rand
	trust  *manifest.Trust
	signer *manifest.Signer
	inner  []*memory.Store
	stores []*fault.Store
	agents []*storedAgent

	mu     sync.Mutex
	random *rand.ChaCha8
}

// Read makes the world a random source for many.
func (w *storedWorld) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.random.Read(p)
}

func newStoredWorld(t *testing.T, seed uint64) *storedWorld {
	w := &storedWorld{t: t, rng: rand.New(rand.NewPCG(seed, 3)), random: rand.NewChaCha8([32]byte{byte(seed)})}
	var err error
	if w.signer, err = manifest.GenerateSigner(w, "sim"); err != nil {
		t.Fatal(err)
	}
	w.trust = &manifest.Trust{Cluster: "sim-k3x9m2q7", Verifiers: []manifest.Verifier{{Key: w.signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}}}}
	for range 2 {
		w.inner = append(w.inner, memory.New())
		w.stores = append(w.stores, fault.New(w.inner[len(w.inner)-1]))
	}
	for i := range 3 {
		w.agents = append(w.agents, &storedAgent{world: w, index: i, node: fmt.Sprintf("cp%d", i+1), shelf: &shelfInMemory{}})
	}
	return w
}

func (w *storedWorld) run(days int) {
	for _, a := range w.agents {
		a.start()
	}
	end := time.Now().Add(time.Duration(days) * 24 * time.Hour)
	for time.Now().Before(end) {
		time.Sleep(time.Duration(w.rng.Int64N(int64(2 * time.Hour))))
		a, s := w.agents[w.rng.IntN(len(w.agents))], w.stores[w.rng.IntN(len(w.stores))]
		switch w.rng.IntN(6) {
		case 0:
			s.Crash()
		case 1, 2:
			s.Reset()
		case 3: // one of the next puts fails: not done, done, or half done
			s.FailOn(fault.Put, 1+w.rng.IntN(4), fault.Moments[w.rng.IntN(len(fault.Moments))], nil)
		case 4:
			a.stop()
			a.start()
		case 5:
			a.set(time.Duration(w.rng.Int64N(int64(20*time.Hour))) - 10*time.Hour)
		}
	}
	for _, s := range w.stores {
		s.Reset()
	}
	for _, a := range w.agents {
		a.set(0)
	}
	time.Sleep(8 * time.Hour) // the last slot with all well
	for _, a := range w.agents {
		a.stop()
	}
}

// verify reads everything in a store as a stranger with the trust file would.
func (w *storedWorld) verify(store int) (fulls int) {
	r, err := repository.Open(w.inner[store], repository.Options{Trust: w.trust, Name: "memory:"})
	if err != nil {
		w.t.Fatal(err)
	}
	report, err := r.Verify(w.t.Context(), repository.VerifyOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := report.Err(); err != nil {
		w.t.Errorf("store %d: %v", store, err)
	}
	for _, p := range report.Problems {
		if p.Kind == repository.Fork || p.Kind == repository.Skipped {
			w.t.Errorf("store %d: %s", store, p)
		}
	}
	backups, _, err := r.Backups(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return len(backups)
}

// storedAgent is one agent and its Works.
type storedAgent struct {
	world *storedWorld
	index int
	node  string
	shelf *shelfInMemory

	mu     sync.Mutex
	offset time.Duration
	cancel context.CancelFunc
	done   chan error
}

func (a *storedAgent) set(offset time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.offset = offset
}

func (a *storedAgent) wall() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Add(a.offset).Round(0)
}

func (a *storedAgent) start() {
	c := config.Default()
	c.Node, c.Etcd = a.node, []config.Etcd{{Name: "main"}}
	c.Stores = []config.Store{config.DefaultStore("s3://0"), config.DefaultStore("s3://1")}
	c.Schedule = config.Schedule{Full: "0 */6 * * *"}
	agent, err := newAgent(Options{Config: c, Works: a, Wall: a.wall, Refresh: 2 * time.Hour}, a.shelf)
	if err != nil {
		a.world.t.Fatal(err)
	}
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(context.Background())
	a.done = make(chan error, 1)
	go func() { a.done <- agent.Run(ctx) }()
}

func (a *storedAgent) stop() {
	a.cancel()
	if err := <-a.done; err != nil {
		a.world.t.Error(err)
	}
}

// open opens a store's repository as a job does, anew.
func (a *storedAgent) open(store int) (*repository.Repository, error) {
	return repository.Open(slowly{a.world.stores[store], a}, repository.Options{
		Trust: a.world.trust, Signer: a.world.signer, Name: fmt.Sprintf("s3://%d", store), Now: a.wall, Rand: a.world,
		Writer: manifest.Writer{Node: a.node, Version: "0.0.0"},
	})
}

func (a *storedAgent) Look(ctx context.Context) (*Picture, error) {
	p := &Picture{}
	for i := range a.world.stores {
		s := StorePicture{URL: fmt.Sprintf("s3://%d", i)}
		var view *repository.View
		r, err := a.open(i)
		if err == nil {
			view, err = r.Load(ctx, simChain)
		}
		if s.Err = err; err == nil {
			s.Chains = map[manifest.Chain]status.InStore{}
			if view.Head != nil {
				at := view.Head.Created
				s.Chains[simChain] = status.InStore{Head: uint64(view.Head.Sequence), RecoveryPoint: at, Newest: at, NewestWhole: at, NewestProved: at, Valid: true}
			}
		}
		p.Stores = append(p.Stores, s)
	}
	return p, ctx.Err()
}

func (a *storedAgent) Standing(context.Context, string) (*Standing, error) {
	members := []turns.Member{}
	for i, other := range a.world.agents {
		members = append(members, turns.Member{ID: uint64(i + 1), Name: other.node, Local: i == a.index, Answers: true, Leader: true, Healthy: true})
	}
	place, _ := turns.Among(members)
	return &Standing{Rank: place.Rank, Quorum: true, First: place.First}, nil
}

func (a *storedAgent) Record(ctx context.Context, _ string, _ Recording) error {
	<-ctx.Done()
	return ctx.Err()
}

func (a *storedAgent) Full(ctx context.Context, _ string) (*Outcome, error) {
	id, err := manifest.NewID(a.world)
	if err != nil {
		return nil, err
	}
	data := []byte("sealed bytes of " + id)
	m := &manifest.Manifest{
		Chain: simChain, Kind: manifest.KindFull, ID: id, Created: a.wall().UTC().Truncate(time.Millisecond), Writer: manifest.Writer{Node: a.node, Version: "0.0.0"},
		Etcd: &manifest.Etcd{ClusterID: 7, MemberID: 1, Version: "3.6.0", Revision: manifest.Revision(time.Now().Unix()), HashKV: 7, ComparedWith: []manifest.EtcdID{2}},
		Objects: []manifest.Object{{
			Name: repository.ObjectName(simChain, id, "snapshot.db.zst.age"), Role: manifest.RoleSnapshot,
			Size: int64(len(data)), SHA256: sha256.Sum256(data), PlainSize: int64(len(data)),
		}},
	}
	var last error
	taken := 0
	for i := range a.world.stores {
		r, err := a.open(i)
		if err == nil {
			err = r.PutObject(ctx, m.Objects[0].Name, bytes.NewReader(data), time.Time{})
		}
		if err == nil {
			_, err = r.Commit(ctx, m)
		}
		if err != nil {
			last = err
			continue
		}
		taken++
	}
	if taken == 0 {
		return nil, Because(status.StoreDown, last)
	}
	return &Outcome{Chain: simChain, ID: id, Created: m.Created}, nil
}

func (a *storedAgent) Files(context.Context) (*Outcome, error)                    { return nil, nil }
func (a *storedAgent) Verify(context.Context, []manifest.Chain) (*Outcome, error) { return nil, nil }
func (a *storedAgent) Prune(context.Context) (*Outcome, error)                    { return nil, nil }
func (a *storedAgent) Certificates(context.Context) ([]status.Certificate, error) { return nil, nil }
func (a *storedAgent) Reload(context.Context, *config.Config) error               { return nil }

// slowly lets each request take its time, so that agents meet in the middle.
type slowly struct {
	storage.Store
	a *storedAgent
}

func (s slowly) wait(ctx context.Context) {
	var b [2]byte
	_, _ = s.a.world.Read(b[:])
	timer := time.NewTimer(time.Duration(int(b[0])<<8|int(b[1])) * 20 * time.Microsecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (s slowly) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	s.wait(ctx)
	defer s.wait(ctx)
	return s.Store.Put(ctx, name, r, opts)
}

func (s slowly) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	s.wait(ctx)
	return s.Store.Open(ctx, name, rng)
}

func (s slowly) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	s.wait(ctx)
	return s.Store.List(ctx, prefix)
}
