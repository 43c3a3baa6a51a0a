package datadir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

const (
	// blockBytes is how much one step of the pipeline carries, and blocks how
	// many there are: enough that reader and disk each find work while the
	// other is slow.
	blockBytes = 1 << 20
	blocks     = 8

	// writebackBytes is how much is handed to the disk at a time while the
	// stream still runs. Left to itself the kernel would begin only seconds
	// later, and the last fsync would wait for the whole file.
	writebackBytes = 8 << 20

	trailerBytes = sha256.Size
)

// Receive streams a snapshot from r into the new file path, without its hash
// trailer, and checks the trailer: the SHA-256 of all bytes before it, which
// etcd puts in the last 32 bytes. r is read once. The file is not synced; its
// writeback is under way. Size is what the snapshot must have with its
// trailer, 0 for any. It returns the bytes written and their SHA-256.
//
// A snapshot whose length is not 32 beyond a multiple of 512 has no trailer
// (etcdutl goes by the same rule) and is refused like a wrong one, with
// ErrDamaged.
func Receive(ctx context.Context, path string, r io.Reader, size int64, progress func(done int64)) (int64, [sha256.Size]byte, error) {
	v, err := receive(ctx, path, r, size, progress)
	if err != nil {
		return 0, [sha256.Size]byte{}, err
	}
	return v.bytes, [sha256.Size]byte(v.trailer), v.wait()
}

// receive is Receive that does not wait for the hash: where the processor has
// no instructions for SHA-256, hashing takes longer than all else together, so
// it follows the written file at its own pace. The caller must call wait and
// act on nothing before that has returned nil.
func receive(ctx context.Context, path string, r io.Reader, size int64, progress func(done int64)) (*received, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the database file: %w", err)
	}
	h := newFollower(f)
	w := &fileWriter{f: f, pool: make(chan []byte, blocks), queue: make(chan []byte, blocks), wrote: h.grow}
	for range blocks {
		w.pool <- make([]byte, blockBytes)
	}
	var writing sync.WaitGroup
	writing.Go(w.run)
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		h.run()
		f.Close()
	}()

	trailer, err := pump(ctx, w, r, size, progress)
	close(w.queue)
	writing.Wait()
	if err == nil && w.err() != nil {
		err = fmt.Errorf("write the database file: %w", w.err())
	}
	h.end(err != nil)
	if err != nil {
		<-hashed
		return nil, err
	}
	return &received{bytes: w.off, trailer: trailer, follower: h, hashed: hashed}, nil
}

// received is a snapshot that is written, but not hashed to its end.
type received struct {
	bytes    int64 // without the trailer
	trailer  []byte
	follower *follower
	hashed   <-chan struct{}
}

// wait returns nil once the whole file is hashed and its trailer right.
func (v *received) wait() error {
	<-v.hashed
	if err := v.follower.err; err != nil {
		return fmt.Errorf("hash the database file: %w", err)
	}
	if !bytes.Equal(v.follower.hash.Sum(nil), v.trailer) {
		return fmt.Errorf("%w: the SHA-256 at its end is not that of its bytes", ErrDamaged)
	}
	return nil
}

// stop ends the hashing; wait then fails, if it was not done.
func (v *received) stop() {
	v.follower.end(true)
	<-v.hashed
}

// pump reads r to its end, hands all but the trailer to w, and returns the
// trailer. One block is held back, since the trailer is whatever comes last.
func pump(ctx context.Context, w *fileWriter, r io.Reader, size int64, progress func(int64)) ([]byte, error) {
	var total int64
	var held []byte
	for {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("receive the snapshot: %w", context.Cause(ctx))
		}
		if w.err() != nil {
			return nil, nil // the caller reports it
		}
		b := <-w.pool
		n, err := io.ReadFull(r, b)
		b = b[:n]
		total += int64(n)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return nil, fmt.Errorf("read the snapshot: %w", err)
		}
		if size > 0 && total > size {
			return nil, fmt.Errorf("%w: more than the %d bytes it should have", ErrDamaged, size)
		}
		if progress != nil {
			progress(total)
		}
		if err == nil {
			if held != nil {
				w.queue <- held
			}
			held = b
			continue
		}
		if size > 0 && total != size {
			return nil, fmt.Errorf("%w: ends after %d of %d bytes", ErrDamaged, total, size)
		}
		if total%512 != trailerBytes {
			return nil, fmt.Errorf("%w: %d bytes long, so it has no hash at its end (cut short, or not made by etcd's snapshot call)", ErrDamaged, total)
		}
		cut := max(0, trailerBytes-len(b)) // what of the trailer is in the block before
		trailer := make([]byte, 0, trailerBytes)
		if held != nil {
			trailer = append(trailer, held[len(held)-cut:]...)
			w.queue <- held[:len(held)-cut]
		}
		trailer = append(trailer, b[len(b)-(trailerBytes-cut):]...)
		w.queue <- b[:len(b)-(trailerBytes-cut)]
		return trailer, nil
	}
}

// fileWriter appends what is queued to a file and gives the blocks back to the
// pool. After a failure it goes on giving them back.
type fileWriter struct {
	f           *os.File
	pool, queue chan []byte
	wrote       func(off int64) // told after each block how long the file is
	off         int64
	failure     atomic.Pointer[error]
}

func (w *fileWriter) err() error {
	if p := w.failure.Load(); p != nil {
		return *p
	}
	return nil
}

func (w *fileWriter) run() {
	var started int64
	for b := range w.queue {
		if w.err() == nil {
			n, err := w.f.WriteAt(b, w.off)
			if err != nil {
				w.failure.Store(&err)
			}
			w.off += int64(n)
			w.wrote(w.off)
			if w.off-started >= writebackBytes {
				startWriteback(w.f, started, w.off-started)
				started = w.off
			}
		}
		w.pool <- b[:cap(b)]
	}
	startWriteback(w.f, started, w.off-started)
}

// follower hashes a file while it grows.
type follower struct {
	f    *os.File
	hash hash.Hash // of the whole file once run has returned with err nil
	err  error

	mu          sync.Mutex
	change      sync.Cond
	have        int64
	ended, stop bool
}

func newFollower(f *os.File) *follower {
	h := &follower{f: f, hash: sha256.New()}
	h.change.L = &h.mu
	return h
}

func (h *follower) grow(have int64) {
	h.mu.Lock()
	h.have = have
	h.mu.Unlock()
	h.change.Signal()
}

// end says that the file will not grow any more; with stop, that its hash is
// of no interest.
func (h *follower) end(stop bool) {
	h.mu.Lock()
	h.ended, h.stop = true, stop
	h.mu.Unlock()
	h.change.Signal()
}

func (h *follower) run() {
	buf := make([]byte, blockBytes/4)
	var off int64
	for {
		h.mu.Lock()
		for h.have == off && !h.ended {
			h.change.Wait()
		}
		have, stop := h.have, h.stop
		h.mu.Unlock()
		if have == off {
			return
		}
		if stop {
			h.err = errors.New("stopped")
			return
		}
		n, err := h.f.ReadAt(buf[:min(int64(len(buf)), have-off)], off)
		if err != nil {
			h.err = err
			return
		}
		h.hash.Write(buf[:n])
		off += int64(n)
	}
}
