package record

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/backup/watch"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/segment"
)

// The worlds of these tests: an etcd and chains that fail where and when a test
// wants it, in the time of testing/synctest. record_test.go has the real ones.

// fakeEtcd is a history of revisions, from 1 on.
type fakeEtcd struct {
	mu        sync.Mutex
	cluster   manifest.EtcdID
	revisions [][]segment.Record // of revision i+1; revision 1 has none
	compacted int64
	dead      error         // of everything
	more      chan struct{} // closed when anything changes
	watches   int
	facts     []*watch.Facts // that the watches were given
	maxLag    int64          // of a watch that begins; 0: as far behind as it may be
	damaged   []bool         // its members, and whose database is; nil: one that is not
	slow      func()         // at the beginning of each answer to how far it is
}

func newFakeEtcd() *fakeEtcd {
	return &fakeEtcd{cluster: 7, revisions: make([][]segment.Record, 1), more: make(chan struct{})}
}

func (f *fakeEtcd) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.more)
	f.more = make(chan struct{})
}

// put is a put of a key as etcd stores it.
func put(main int64, key, value string) segment.Record {
	kv := append(binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(key))), key...)
	for field, n := range []int64{2: main, 3: main, 4: 1} {
		if n != 0 {
			kv = binary.AppendUvarint(append(kv, byte(field<<3)), uint64(n))
		}
	}
	kv = append(binary.AppendUvarint(append(kv, 5<<3|2), uint64(len(value))), value...)
	return segment.Record{Kind: segment.KindPut, Main: main, KV: kv}
}

// puts makes n revisions of one put each.
func (f *fakeEtcd) puts(t testing.TB, n int, value string) {
	f.change(func() {
		for range n {
			main := int64(len(f.revisions)) + 1
			f.revisions = append(f.revisions, []segment.Record{put(main, fmt.Sprintf("k%d", main%100), value)})
		}
	})
}

// rewind makes the history another one from a revision on.
func (f *fakeEtcd) rewind(head int64) { f.change(func() { f.revisions = f.revisions[:head:head] }) }

func (f *fakeEtcd) head() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.revisions))
}

func (f *fakeEtcd) compact(at int64) { f.change(func() { f.compacted = at }) }
func (f *fakeEtcd) fail(err error)   { f.change(func() { f.dead = err }) }

// fakeMember is a member of a fakeEtcd. What was begun on one history ends with
// it. One whose database is damaged gives nothing that is older than a watch.
type fakeMember struct {
	f       *fakeEtcd
	damaged bool
}

func (f *fakeEtcd) members(context.Context) ([]member, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead != nil {
		return nil, f.dead
	}
	if f.damaged == nil {
		return []member{fakeMember{f: f}}, nil
	}
	var list []member
	for _, damaged := range f.damaged {
		list = append(list, fakeMember{f, damaged})
	}
	return list, nil
}

func (m fakeMember) IDs() (cluster, member manifest.EtcdID) {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	return m.f.cluster, 1
}

func (m fakeMember) Head(context.Context) (int64, error) {
	if m.f.slow != nil {
		m.f.slow()
	}
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	return int64(len(m.f.revisions)), m.f.dead
}

func (m fakeMember) Compacted(_ context.Context, known int64) (int64, error) {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	return max(known, m.f.compacted), m.f.dead
}

func (m fakeMember) Watch(ctx context.Context, o watch.Options, to watch.Sink) error {
	f := m.f
	next, timed := o.From, o.Now()
	f.mu.Lock()
	f.watches++
	f.facts = append(f.facts, o.Facts)
	lag := int64(len(f.revisions)) - next
	f.mu.Unlock()
	if f.maxLag > 0 && lag >= f.maxLag {
		return &watch.Error{Why: watch.ErrBehind, Last: next - 1, Head: next + lag}
	}
	if m.damaged && lag >= 0 {
		return &watch.Error{Why: watch.ErrDamaged, Last: next - 1}
	}
	for {
		f.mu.Lock()
		more, dead, compacted := f.more, f.dead, f.compacted
		head := int64(len(f.revisions))
		var given [][]segment.Record
		if head >= next {
			given = slices.Clone(f.revisions[next-1 : min(head, next+99)])
		}
		f.mu.Unlock()
		switch {
		case dead != nil:
			return &watch.Error{Why: watch.ErrLost, Last: next - 1, Cause: dead}
		case compacted >= next:
			return &watch.Error{Why: watch.ErrCompacted, Last: next - 1, Compact: compacted}
		case head < next-1:
			return &watch.Error{Why: watch.ErrLower, Last: next - 1, Head: head}
		}
		for _, revision := range given {
			for _, r := range revision {
				if err := to.Record(r); err != nil {
					return err
				}
			}
			next++
		}
		if len(given) > 0 {
			if err := to.Complete(next-1, o.Now()); err != nil {
				return err
			}
		}
		if now := o.Now(); now.Sub(timed).Abs() >= time.Second {
			timed = now
			if err := to.Record(segment.Record{Kind: segment.KindTime, Time: segment.Moment{At: timed.UnixMilli(), AtLeast: next - 1, AtMost: max(head, next-1)}}); err != nil {
				return err
			}
		}
		if head >= next {
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-more:
		case <-time.After(time.Second):
		}
	}
}

// fakeChain is one store's chain. It keeps every rule of the real one that a
// recorder goes by.
type fakeChain struct {
	mu      sync.Mutex
	dead    error // of every request
	lies    error // of commits, which take effect all the same
	commits int
	prunes  int
	sweeps  int
	sweep   error // how sweeps end
	objects map[string][]byte
	list    []*manifest.Manifest
	dbBytes int64 // that its fulls tell of
}

func newFakeChain() *fakeChain { return &fakeChain{objects: map[string][]byte{}} }

func (c *fakeChain) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = err
}

// addFull commits a full of the etcd as it is.
func (c *fakeChain) addFull(f *fakeEtcd, epoch uint64, mark string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	head, cluster := f.head(), f.cluster
	tip := c.tipLocked()
	e := max(tip.Epoch, epoch, 1)
	if tip.ClusterID != 0 && tip.ClusterID != cluster {
		e = max(e, tip.Epoch+1)
	}
	c.list = append(c.list, &manifest.Manifest{
		Kind: manifest.KindFull, Epoch: e, Created: whole(time.Now()),
		Etcd: &manifest.Etcd{ClusterID: cluster, Revision: manifest.Revision(head), Mark: mark, DBBytes: c.dbBytes},
	})
}

func (c *fakeChain) tip() *repository.Tip {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tipLocked()
}

func (c *fakeChain) tipLocked() *repository.Tip {
	tip := &repository.Tip{Sequence: manifest.Sequence(len(c.list)), Epoch: 1}
	for _, m := range c.list {
		if m.Epoch > tip.Epoch {
			tip = &repository.Tip{Sequence: tip.Sequence, Epoch: m.Epoch}
		}
		switch {
		case m.Etcd != nil && m.Etcd.Revision >= tip.Base:
			tip.Base, tip.BaseTime, tip.ClusterID, tip.Full = m.Etcd.Revision, m.Created, m.Etcd.ClusterID, m.Etcd
			if tip.Base > tip.Last {
				tip.Last, tip.LastTime, tip.Mark = tip.Base, m.Created, m.Etcd.Mark
			}
		case m.Span != nil:
			tip.Writer = m.Writer
			if m.Span.First <= tip.Last+1 && m.Span.Last >= tip.Last {
				tip.Last, tip.Mark = m.Span.Last, m.Span.Mark
				if m.Span.LastTime.After(tip.LastTime) {
					tip.LastTime = m.Span.LastTime
				}
			}
			if tip.Recorded == 0 && m.Span.First <= tip.Base+1 || m.Span.First <= tip.Recorded+1 {
				tip.Recorded = max(tip.Recorded, m.Span.Last)
			}
		}
	}
	return tip
}

func (c *fakeChain) Head(context.Context) (*repository.Tip, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return nil, c.dead
	}
	return c.tipLocked(), nil
}

func (c *fakeChain) Put(_ context.Context, name string, body io.Reader, _ time.Time) error {
	content, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return c.dead
	}
	c.objects[name] = content
	return nil
}

func (c *fakeChain) Commit(_ context.Context, draft *manifest.Manifest) (*repository.Committed, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return nil, c.dead
	}
	tip := c.tipLocked()
	if draft.Epoch != tip.Epoch {
		return nil, repository.ErrReplaced
	}
	if !draft.Span.RollUp && draft.Span.Last <= tip.Recorded && !draft.Span.LastTime.After(tip.LastTime) {
		return nil, repository.ErrCovered
	}
	m := *draft
	m.Sequence = manifest.Sequence(len(c.list) + 1)
	c.list = append(c.list, &m)
	c.commits++
	if c.lies != nil {
		return nil, c.lies
	}
	return &repository.Committed{Manifest: &m, Sequence: m.Sequence}, nil
}

func (c *fakeChain) Prune(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prunes++
	return c.dead
}

func (c *fakeChain) Sweep(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweeps++
	return c.sweep
}

func (c *fakeChain) firstFull() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(c.list[0].Etcd.Revision)
}

func (c *fakeChain) segments(rollUps bool) (list []*manifest.Manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.list {
		if m.Span != nil && m.Span.RollUp == rollUps {
			list = append(list, m)
		}
	}
	return list
}

// world is one etcd, its stores, and the keys.
type world struct {
	t        testing.TB
	etcd     *fakeEtcd
	chains   []*fakeChain
	identity *age.X25519Identity
	signer   *manifest.Signer
	dir      string
	rank     int
	prepare  func(*Recorder) // before it runs
	node     string

	mu   sync.Mutex
	asks []reason
	told []string
}

func newWorld(t testing.TB, stores int) *world {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := manifest.GenerateSigner(rand.Reader, "cp1")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, etcd: newFakeEtcd(), identity: identity, signer: signer, dir: filepath.Join(t.TempDir(), "spool"), node: "cp1"}
	for range stores {
		w.chains = append(w.chains, newFakeChain())
	}
	return w
}

// another is a second node of the same cluster.
func (w *world) another(node string, rank int) *world {
	signer, err := manifest.GenerateSigner(rand.Reader, node)
	if err != nil {
		w.t.Fatal(err)
	}
	return &world{
		t: w.t, etcd: w.etcd, chains: w.chains, identity: w.identity, signer: signer,
		dir: filepath.Join(w.t.TempDir(), "spool-"+node), node: node, rank: rank,
	}
}

func (w *world) options() Options {
	return Options{
		Etcd: etcd.Config{Name: "main"}, Signer: w.signer, Recipients: []age.Recipient{w.identity.Recipient()}, RecipientNames: []string{"r"},
		Writer: manifest.Writer{Node: w.node, Version: "test"}, SpoolDir: w.dir, Rank: func() int { return w.rank },
		AskFull: w.ask, Prune: true, Rand: rand.Reader, Events: w.listen,
	}
}

func (w *world) listen(e events.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := e.(type) {
	case events.Warning:
		w.told = append(w.told, e.Subject+": "+e.Message)
	case events.StoreFailed:
		w.told = append(w.told, e.Store+": "+e.Err.Error())
	}
}

func (w *world) ask(why string, epoch uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asks = append(w.asks, reason{why, epoch})
}

func (w *world) all() []reason {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.asks)
}

func (w *world) warnings() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.told)
}

func (w *world) asked(part string) (epoch uint64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.asks {
		if strings.Contains(r.why, part) {
			return r.epoch, true
		}
	}
	return 0, false
}

// start runs a recorder; stop ends it and waits.
func (w *world) start(change ...func(*Options)) (r *Recorder, stop func()) {
	o := w.options()
	for i := range w.chains {
		o.Stores = append(o.Stores, backup.Store{URL: fmt.Sprintf("store %d", i), Err: errors.New("a fake")})
	}
	for _, c := range change {
		c(&o)
	}
	r = New(o)
	r.members = w.etcd.members
	for i, c := range w.chains {
		r.committers[i].chain, r.committers[i].err = c, nil
	}
	if w.prepare != nil {
		w.prepare(r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return r, stop
}
