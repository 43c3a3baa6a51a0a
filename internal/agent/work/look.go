package work

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/agent"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/internal/status"
	"lifeboat/storage"
)

const (
	// lookLimit is how long a store may take to show what it holds.
	lookLimit = time.Minute

	// lookAgain is how long a chain whose names in the store stay the same is
	// taken as it was read.
	lookAgain = time.Hour

	// mostFailures bounds what is kept of one chain's failures, of which a hostile
	// store makes as many as it likes.
	mostFailures = 100

	// chainsAtOnce bounds the chains of a store that are read side by side; each
	// reads its manifests in parallel.
	chainsAtOnce = 2
)

// seen is what the last Look read in one store.
type seen struct {
	mu      sync.Mutex // held while looking: two Looks at one store gain nothing
	cluster string
	chains  map[manifest.Chain]*seenChain
}

// seenChain is one chain as it was read, for as long as the names of its
// manifests stay the same.
type seenChain struct {
	print   [sha256.Size]byte // of the names, sizes and times of its manifests
	read    time.Time
	in      status.InStore // without what the clock and the data objects say
	objects []storedObject // that the backups name
}

type storedObject struct {
	name string
	size int64
}

// Look reads what the stores hold: the names of all objects, and the manifests
// of the chains whose names changed since the last Look.
func (w *Work) Look(ctx context.Context) (*agent.Picture, error) {
	c := w.current()
	trust, err := session.LoadTrust(c.Signing.TrustFile, c.Cluster)
	if err != nil {
		return nil, agent.Because(status.Config, err)
	}
	s, err := session.Open(ctx, c, trust, nil, "", w.forgetful())
	if err != nil {
		return nil, agent.Because(status.Config, err)
	}
	picture := &agent.Picture{Stores: make([]agent.StorePicture, len(s.Stores))}
	var running sync.WaitGroup
	for i, o := range s.Stores {
		running.Go(func() { picture.Stores[i] = w.lookAt(ctx, s, o) })
	}
	running.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w.remember(s)
	w.noteNodes(picture)
	return picture, nil
}

// noteNodes keeps the nodes whose agents work, for the order of turns beside
// an etcd that runs elsewhere.
func (w *Work) noteNodes(p *agent.Picture) {
	var nodes []string
	for _, store := range p.Stores {
		for chain, in := range store.Chains {
			if node, ok := strings.CutPrefix(string(chain), "hosts/"); ok && !in.Expected.IsZero() && in.Late.IsZero() {
				nodes = append(nodes, node)
			}
		}
	}
	if len(nodes) == 0 {
		return // no store answers: what was known is the better guess
	}
	slices.Sort(nodes)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes = slices.Compact(nodes)
}

func (w *Work) lookAt(ctx context.Context, s *session.Session, o session.Store) agent.StorePicture {
	picture := agent.StorePicture{URL: o.URL, Err: o.Err}
	if o.Err != nil {
		return picture
	}
	type shown struct {
		chains map[manifest.Chain]status.InStore
		skew   time.Duration
		known  bool
	}
	result := make(chan shown, 1)
	err := w.session.Ledger.Within(ctx, o.URL, lookLimit, patience.Farewell, func(ctx context.Context) error {
		var it shown
		var err error
		if it.chains, err = w.glance(ctx, s, o); err != nil {
			return err
		}
		before := w.session.Now()
		at, known, err := storage.NowOf(ctx, o.Backend)
		if err != nil {
			return fmt.Errorf("ask for its time: %w", err)
		}
		if known { // half of the way there and back is ours
			it.skew, it.known = at.Sub(before.Add(w.session.Now().Sub(before)/2)), true
		}
		result <- it
		return nil
	})
	if err != nil {
		picture.Err = err
		return picture
	}
	it := <-result
	picture.Chains, picture.Skew, picture.SkewKnown = it.chains, it.skew, it.known
	return picture
}

// names is what a store lists of one chain.
type names struct {
	print   hash.Hash
	any     bool             // there is a manifest
	objects map[string]int64 // sizes of the data objects, by name
}

// glance lists a store and reads the chains that changed.
func (w *Work) glance(ctx context.Context, s *session.Session, o session.Store) (map[manifest.Chain]status.InStore, error) {
	kept := w.seenOf(o.URL)
	kept.mu.Lock()
	defer kept.mu.Unlock()
	if kept.cluster != s.Trust.Cluster || kept.chains == nil {
		kept.cluster, kept.chains = s.Trust.Cluster, map[manifest.Chain]*seenChain{}
	}
	listed, err := list(ctx, o, s.Trust.Cluster)
	if err != nil {
		return nil, err
	}
	for _, head := range o.Repository.Heads() { // a chain that was seen must not vanish unnoticed
		if listed[head.Chain] == nil {
			listed[head.Chain] = newNames()
		}
	}
	if len(listed) == 0 { // nothing tells an empty store from a wrong one, until the first backup
		kept.chains = map[manifest.Chain]*seenChain{}
		return map[manifest.Chain]status.InStore{}, nil
	}
	now := w.session.Now()
	var mu sync.Mutex
	chains := map[manifest.Chain]*seenChain{}
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(chainsAtOnce)
	for chain, n := range listed {
		print := [sha256.Size]byte(n.print.Sum(nil))
		if old := kept.chains[chain]; old != nil && old.print == print && now.Sub(old.read).Abs() < lookAgain {
			mu.Lock()
			chains[chain] = old
			mu.Unlock()
			continue
		}
		group.Go(func() error {
			view, err := o.Repository.Load(loading, chain)
			if err != nil {
				return err
			}
			read := readChain(view)
			read.print, read.read = print, now
			mu.Lock()
			defer mu.Unlock()
			chains[chain] = read
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		for chain, old := range kept.chains { // what was read need not be read again
			if chains[chain] == nil && listed[chain] != nil {
				chains[chain] = old
			}
		}
		kept.chains = chains
		return nil, err
	}
	kept.chains = chains
	out := map[manifest.Chain]status.InStore{}
	for chain, c := range chains {
		in, lost := c.now(now, listed[chain].objects)
		if lost { // it may have been committed while the store was listed
			objects, err := listData(ctx, o, s.Trust.Cluster, chain)
			if err != nil {
				return nil, err
			}
			in, _ = c.now(now, objects)
		}
		out[chain] = in
	}
	return out, nil
}

func (w *Work) seenOf(url string) *seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stores[url] == nil {
		w.stores[url] = &seen{}
	}
	return w.stores[url]
}

func newNames() *names { return &names{print: sha256.New(), objects: map[string]int64{}} }

// list reads the names of all that the cluster has in the store, by chain.
func list(ctx context.Context, o session.Store, cluster string) (map[manifest.Chain]*names, error) {
	listed := map[manifest.Chain]*names{}
	for info, err := range o.Backend.List(ctx, cluster+"/") {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", cluster, err)
		}
		chain, place, ok := split(strings.TrimPrefix(info.Name, cluster+"/"))
		if !ok {
			continue
		}
		n := listed[chain]
		if n == nil {
			n = newNames()
			listed[chain] = n
		}
		if strings.HasPrefix(place, "data/") {
			n.objects[strings.TrimPrefix(info.Name, cluster+"/")] = info.Size
			continue
		}
		n.any = true
		n.print.Write([]byte(info.Name))
		n.print.Write(binary.BigEndian.AppendUint64(make([]byte, 1, 17), uint64(info.Size)))
		n.print.Write(binary.BigEndian.AppendUint64(nil, uint64(info.Modified.UnixNano())))
	}
	for chain, n := range listed {
		if !n.any { // data whose manifest is still to come, or never will
			delete(listed, chain)
		}
	}
	return listed, nil
}

// listData lists a chain's data objects.
func listData(ctx context.Context, o session.Store, cluster string, chain manifest.Chain) (map[string]int64, error) {
	objects := map[string]int64{}
	for info, err := range o.Backend.List(ctx, cluster+"/"+string(chain)+"/data/") {
		if err != nil {
			return nil, fmt.Errorf("list the data of %s: %w", chain, err)
		}
		objects[strings.TrimPrefix(info.Name, cluster+"/")] = info.Size
	}
	return objects, nil
}

// split takes the chain off an object's name below the cluster's folder.
func split(name string) (chain manifest.Chain, place string, ok bool) {
	for _, folder := range []string{"manifests/", "data/"} {
		if before, after, found := strings.Cut(name, "/"+folder); found {
			chain = manifest.Chain(before)
			if chain.Check() == nil {
				return chain, folder + after, true
			}
		}
	}
	return "", "", false
}

// readChain makes of a chain what an agent wants to know.
func readChain(view *repository.View) *seenChain {
	c := &seenChain{}
	in := &c.in
	if view.Head != nil {
		in.Head = uint64(view.Head.Sequence)
	}
	backups := view.Backups()
	_, in.RecoveryPoint = repository.Latest(backups)
	slices.SortStableFunc(backups, func(a, b repository.Backup) int { return a.Created.Compare(b.Created) })
	in.Backups = len(backups)
	for _, b := range backups { // oldest first
		in.Previous, in.PlainBytes, in.StoredBytes = in.StoredBytes, 0, 0
		for _, o := range b.Objects {
			in.PlainBytes += o.PlainSize
			in.StoredBytes += o.Size
			c.objects = append(c.objects, storedObject{o.Name, o.Size})
		}
		in.TotalBytes += in.StoredBytes
		in.Newest, in.RetainUntil = b.Created, time.Time{}
		if b.RetainUntil != nil {
			in.RetainUntil = *b.RetainUntil
		}
		if len(b.Degraded) == 0 {
			in.NewestWhole = b.Created
		}
		if b.Proved {
			in.NewestProved = b.Created
		}
		if b.Etcd != nil {
			in.Revision, in.Keys = int64(b.Etcd.Revision), b.Etcd.Keys
			if b.Etcd.HashKV == 0 { // it was streamed without scratch: nobody read it
				in.Keys = -1
			}
		}
	}
	for _, m := range slices.Backward(view.Manifests) {
		if m.NextExpectedBy != nil {
			in.Expected = *m.NextExpectedBy
			break
		}
	}
	for _, p := range view.Failures() {
		in.Regressed = in.Regressed || p.Kind == repository.RolledBack
		in.Failures = append(in.Failures, p.String())
	}
	return c
}

// now adds what the clock says and what is listed of the data objects. lost
// tells that one is missing.
func (c *seenChain) now(now time.Time, objects map[string]int64) (in status.InStore, lost bool) {
	in = c.in
	in.Failures = slices.Clone(c.in.Failures)
	if !in.Expected.IsZero() && now.After(in.Expected) {
		in.Late = in.Expected
	}
	for _, o := range c.objects {
		switch size, there := objects[o.name]; {
		case !there:
			lost = true
			in.Failures = append(in.Failures, o.name+": it is not in the store, and a backup names it")
		case size != o.size:
			lost = true
			in.Failures = append(in.Failures, fmt.Sprintf("%s: %d bytes in the store, a backup says %d", o.name, size, o.size))
		}
	}
	in.Valid = len(in.Failures) == 0
	if n := len(in.Failures); n > mostFailures {
		in.Failures = append(in.Failures[:mostFailures:mostFailures], fmt.Sprintf("and %d more: `lifeboat verify` lists all", n-mostFailures))
	}
	return in, lost
}
