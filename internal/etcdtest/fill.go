package etcdtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// streams is the number of independent sequences of operations that a fill
// consists of. It is fixed so that the outcome does not depend on how many
// clients write.
const streams = 64

// FillOptions say what Fill writes. The zero value writes 1,000 objects of
// about 1.5 kB and deletes and updates some of them.
type FillOptions struct {
	Objects    int    // how many are created; 1000 when 0
	ValueBytes int    // mean size of a value; 1500 when 0; each is between 200 B and 8 KiB
	Seed       uint64 // same seed, same keys and values
	First      int    // number of the first object, to add to what an earlier fill wrote
	Clients    int    // parallel writers; 16 when 0. With 1 the revisions are reproducible too
	Batch      int    // objects created in one transaction; 1 when 0, as kube-apiserver does. More is faster
	LeaseTTL   int64  // seconds, for the leases of events and masterleases; 3600 when 0
	CreateOnly bool   // no updates, deletes and transactions
}

// FillResult says what Fill wrote.
type FillResult struct {
	Revision int64 // etcd's revision after the last write
	Live     int64 // keys that Fill created and did not delete
	Puts     int64
	Deletes  int64
	Bytes    int64 // of values
}

// Fill writes objects shaped like those of Kubernetes below /registry: of ten
// objects about three are updated later and one is deleted, some in
// transactions of several operations; events and masterleases hang on leases.
func Fill(ctx context.Context, c *clientv3.Client, opts FillOptions) (*FillResult, error) {
	if opts.Objects == 0 {
		opts.Objects = 1000
	}
	if opts.ValueBytes == 0 {
		opts.ValueBytes = 1500
	}
	if opts.Clients == 0 {
		opts.Clients = 16
	}
	opts.Batch = max(opts.Batch, 1)
	if opts.LeaseTTL == 0 {
		opts.LeaseTTL = 3600
	}
	f := &filler{client: c, opts: opts}
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int, streams)
	for s := range streams {
		next <- s
	}
	close(next)
	for range min(opts.Clients, streams) {
		g.Go(func() error {
			for s := range next {
				if err := f.stream(ctx, s); err != nil {
					return fmt.Errorf("fill etcd: %w", err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// Every create and every deletion concerns a key of its own.
	f.result.Live = int64(opts.Objects) - f.result.Deletes
	return &f.result, nil
}

type filler struct {
	client *clientv3.Client
	opts   FillOptions

	mu     sync.Mutex
	result FillResult
}

// stream writes the objects s, s+streams, s+2*streams, ... in order, and goes
// back to update or delete some of them. All its decisions come from the seed
// and the numbers, none from time or from the other streams.
func (f *filler) stream(ctx context.Context, s int) error {
	var (
		lease   clientv3.LeaseID
		batch   []clientv3.Op
		pending []object // created in the batch
		alive   []object // created and not deleted
		buf     []byte
	)
	rng := rand.New(rand.NewPCG(f.opts.Seed, mix(uint64(f.opts.First)<<8|uint64(s))))
	flush := func() error {
		err := f.commit(ctx, batch)
		alive = append(alive, pending...)
		batch, pending = batch[:0], pending[:0]
		return err
	}
	for n := s; n < f.opts.Objects; n += streams {
		o := object{f.opts.Seed, uint64(f.opts.First + n)}
		var opts []clientv3.OpOption
		if o.leased() {
			if lease == 0 {
				var err error
				if lease, err = f.grant(ctx, s); err != nil {
					return err
				}
			}
			opts = append(opts, clientv3.WithLease(lease))
		}
		buf = o.value(buf[:0], 1, f.opts.ValueBytes)
		batch = append(batch, clientv3.OpPut(o.key(), string(buf), opts...))
		pending = append(pending, o)
		if len(batch) < f.opts.Batch {
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		if f.opts.CreateOnly {
			continue
		}
		for range f.opts.Batch {
			var err error
			if alive, err = f.change(ctx, rng, alive); err != nil {
				return err
			}
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return flush()
}

// change does what befalls existing objects after one was created: of ten
// times three updates, one deletion, and now and then both in one transaction.
func (f *filler) change(ctx context.Context, rng *rand.Rand, alive []object) ([]object, error) {
	if len(alive) < 4 {
		return alive, nil
	}
	update := func(o object) clientv3.Op {
		version := 2 + int(rng.Uint32N(1<<16))
		return clientv3.OpPut(o.key(), string(o.value(nil, version, f.opts.ValueBytes)), clientv3.WithIgnoreLease())
	}
	pick := func() int { return rng.IntN(len(alive)) }
	drop := func(i int) clientv3.Op {
		o := alive[i]
		alive[i] = alive[len(alive)-1]
		alive = alive[:len(alive)-1]
		return clientv3.OpDelete(o.key())
	}
	switch roll := rng.IntN(100); {
	case roll < 28:
		return alive, f.commit(ctx, []clientv3.Op{update(alive[pick()])})
	case roll < 37:
		op := drop(pick())
		return alive, f.commit(ctx, []clientv3.Op{op})
	case roll < 40:
		gone := drop(pick())
		i := rng.IntN(len(alive) - 1)
		return alive, f.commit(ctx, []clientv3.Op{update(alive[i]), gone, update(alive[i+1])})
	}
	return alive, nil
}

// commit runs the operations at one revision. Nothing in Fill deletes a key
// that is not there, so a deletion counts without asking.
func (f *filler) commit(ctx context.Context, ops []clientv3.Op) error {
	var header *pb.ResponseHeader
	if len(ops) == 1 {
		resp, err := f.client.Do(ctx, ops[0])
		if err != nil {
			return err
		}
		if put := resp.Put(); put != nil {
			header = put.Header
		} else {
			header = resp.Del().Header
		}
	} else {
		resp, err := f.client.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return err
		}
		header = resp.Header
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.result.Revision = max(f.result.Revision, header.Revision)
	for _, op := range ops {
		if op.IsDelete() {
			f.result.Deletes++
			continue
		}
		f.result.Puts++
		f.result.Bytes += int64(len(op.ValueBytes()))
	}
	return nil
}

// grant makes the stream's lease. Its id is chosen here, since one chosen by
// the server would be random and with it the bytes of all that hang on it.
func (f *filler) grant(ctx context.Context, s int) (clientv3.LeaseID, error) {
	id := int64(mix(f.opts.Seed^mix(uint64(f.opts.First)<<8|uint64(s)))>>1) | 1
	_, err := pb.NewLeaseClient(f.client.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: f.opts.LeaseTTL})
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", err)
	}
	return clientv3.LeaseID(id), nil
}
