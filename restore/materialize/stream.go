package materialize

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync"

	"lifeboat/internal/segment"
)

const (
	ahead      = 4         // segments opened at a time: latency of the store, processors for unsealing
	batchBytes = 256 << 10 // of values; a larger one is a batch of its own
	batchSize  = 4096      // events, at most
)

// event is a put or delete.
type event struct {
	main      int64
	tombstone bool
	lease     int64
	kv        []byte
	// key and content are hashes of the key and of all of it; 0 beyond hashed.
	key, content uint64
}

// batch is some consecutive records of a segment. Its values live as long as
// it is not put back.
type batch struct {
	events []event
	leases []segment.Lease
	arena  []byte
}

// stream is one segment being read. batches ends with err set.
type stream struct {
	index   int
	header  segment.Header // once the first batch has come
	batches chan *batch
	err     error // once batches is closed; nil: it was read whole
	cancel  context.CancelFunc
}

// streams reads segments in order, some of them at a time.
type streams struct {
	opts   *Options
	hashed int64 // events up to this revision are hashed
	seed   maphash.Seed
	pool   *sync.Pool

	queue  chan *stream
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

func newPool() *sync.Pool {
	return &sync.Pool{New: func() any { return &batch{arena: make([]byte, 0, batchBytes)} }}
}

// start begins to read; the caller must call stop.
func (s *streams) start(ctx context.Context) {
	ctx, s.cancel = context.WithCancel(ctx)
	s.queue = make(chan *stream, ahead-2) // one is being read, one waits to be queued
	s.wait.Go(func() {
		defer close(s.queue)
		for i := range s.opts.Segments {
			one := &stream{index: i, batches: make(chan *batch, 2)}
			var sctx context.Context
			sctx, one.cancel = context.WithCancel(ctx)
			s.wait.Go(func() {
				defer one.cancel()
				defer close(one.batches)
				if one.err = s.read(sctx, one); one.err != nil {
					one.err = fmt.Errorf("segment %d of %d: %w", i+1, s.opts.Segments, one.err)
				}
			})
			select {
			case s.queue <- one:
			case <-ctx.Done():
				return
			}
		}
	})
}

// stop ends all reading and waits for it.
func (s *streams) stop() {
	s.cancel()
	s.wait.Wait()
}

func (s *streams) put(b *batch) {
	clear(b.events)
	b.events, b.leases, b.arena = b.events[:0], b.leases[:0], b.arena[:0]
	if cap(b.arena) <= batchBytes {
		s.pool.Put(b)
	}
}

// read reads one segment to its end.
func (s *streams) read(ctx context.Context, one *stream) (err error) {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	rc, err := s.opts.Open(ctx, one.index)
	if err != nil {
		return err
	}
	whole := false
	defer func() {
		if cerr := rc.Close(); err == nil && cerr != nil && whole {
			err = fmt.Errorf("close: %w", cerr)
		}
	}()
	r, err := segment.NewReader(rc)
	if err != nil {
		return broken(err)
	}
	one.header = r.Header()
	b := s.pool.Get().(*batch)
	send := func() error {
		select {
		case one.batches <- b:
			b = s.pool.Get().(*batch)
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := send(); err != nil { // the header
		return err
	}
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return broken(err)
		}
		switch rec.Kind {
		case segment.KindPut, segment.KindDelete:
			if len(b.arena) > 0 && len(b.arena)+len(rec.KV) > cap(b.arena) || len(b.events) == batchSize {
				if err := send(); err != nil {
					return err
				}
			}
			if err := s.take(b, &rec); err != nil {
				return err
			}
		case segment.KindLease:
			b.leases = append(b.leases, rec.Lease)
		}
	}
	// The format's reader has seen io.EOF; nothing may come behind it.
	if n, err := io.Copy(io.Discard, rc); err != nil || n > 0 {
		return broken(errors.Join(fmt.Errorf("%d bytes behind its end", n), err))
	}
	whole = true
	return send()
}

// take copies an event into the batch.
func (s *streams) take(b *batch, rec *segment.Record) error {
	f, err := segment.FieldsOf(rec.KV)
	e := event{main: rec.Main, tombstone: rec.Kind == segment.KindDelete, lease: f.Lease}
	switch {
	case err != nil:
		return fmt.Errorf("%w: revision %d: %w", ErrDamaged, rec.Main, err)
	case len(f.Key) == 0:
		return fmt.Errorf("%w: revision %d: an event without a key", ErrDamaged, rec.Main)
	case !e.tombstone && f.ModRevision != rec.Main:
		return fmt.Errorf("%w: revision %d: its event says %d", ErrDamaged, rec.Main, f.ModRevision)
	}
	if rec.Main <= s.hashed {
		e.key, e.content = maphash.Bytes(s.seed, f.Key), maphash.Bytes(s.seed, rec.KV)
		if e.tombstone {
			e.content = ^e.content
		}
	}
	start := len(b.arena)
	b.arena = append(b.arena, rec.KV...) // grows only when it was empty
	e.kv = b.arena[start:len(b.arena):len(b.arena)]
	b.events = append(b.events, e)
	return nil
}

// broken marks what the format refuses.
func broken(err error) error {
	if errors.Is(err, segment.ErrMalformed) || errors.Is(err, segment.ErrTruncated) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}
