package datadir

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

const (
	// blockBytes is how much one step of the pipeline carries, and blocks how
	// many there are: enough that the reader, the hash and the disk each find
	// work while another is slow, and few enough to stay in a cache.
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
// etcd puts in the last 32 bytes. It reads r once and nothing twice. The file
// is not synced; its writeback is under way. Size is what the snapshot must
// have with its trailer, 0 for any. It returns the bytes written.
//
// A snapshot whose length is not 32 beyond a multiple of 512 has no trailer
// (etcdutl goes by the same rule) and is refused like a wrong one, with
// ErrDamaged.
func Receive(ctx context.Context, path string, r io.Reader, size int64, progress func(done int64)) (n int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, fmt.Errorf("create the database file: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close %s: %w", path, cerr)
		}
	}()
	n, err = receive(ctx, f, r, size, progress)
	if err != nil {
		return n, err
	}
	return n, nil
}

type block struct {
	buf  []byte
	n    int
	refs atomic.Int32
}

// receive is a pipeline of three: the caller reads, one goroutine hashes, one
// writes. A block goes back to the pool when both are done with it.
func receive(ctx context.Context, f *os.File, r io.Reader, size int64, progress func(int64)) (int64, error) {
	pool := make(chan *block, blocks)
	for range blocks {
		pool <- &block{buf: make([]byte, blockBytes)}
	}
	done := func(b *block) {
		if b.refs.Add(-1) == 0 {
			pool <- b
		}
	}
	toHash, toWrite := make(chan *block, blocks), make(chan *block, blocks)
	var wg sync.WaitGroup
	hash := sha256.New()
	wg.Go(func() {
		for b := range toHash {
			hash.Write(b.buf[:b.n])
			done(b)
		}
	})
	var writeErr atomic.Pointer[error]
	wg.Go(func() {
		var off, started int64
		for b := range toWrite {
			if writeErr.Load() == nil {
				if _, err := f.WriteAt(b.buf[:b.n], off); err != nil {
					writeErr.Store(&err)
				}
				off += int64(b.n)
				if off-started >= writebackBytes {
					startWriteback(f, started, off-started)
					started = off
				}
			}
			done(b)
		}
		startWriteback(f, started, off-started)
	})

	var total int64
	send := func(b *block) {
		if b.n == 0 {
			pool <- b
			return
		}
		b.refs.Store(2)
		toHash <- b
		toWrite <- b
	}
	// One block is held back, since the trailer is whatever comes last.
	var held *block
	var trailer [trailerBytes]byte
	readErr := func() error {
		for {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("receive the snapshot: %w", context.Cause(ctx))
			}
			if p := writeErr.Load(); p != nil {
				return fmt.Errorf("write the database file: %w", *p)
			}
			b := <-pool
			n, err := io.ReadFull(r, b.buf)
			b.n = n
			total += int64(n)
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return fmt.Errorf("read the snapshot: %w", err)
			}
			if size > 0 && total > size {
				return fmt.Errorf("%w: more than the %d bytes it should have", ErrDamaged, size)
			}
			if progress != nil {
				progress(total)
			}
			if err == nil {
				if held != nil {
					send(held)
				}
				held = b
				continue
			}
			// The end: cut the trailer off the last one or two blocks.
			if size > 0 && total != size {
				return fmt.Errorf("%w: ends after %d of %d bytes", ErrDamaged, total, size)
			}
			if total%512 != trailerBytes {
				return fmt.Errorf("%w: %d bytes long, so it has no hash at its end (cut short, or not made by etcd's snapshot call)", ErrDamaged, total)
			}
			fromB := min(b.n, trailerBytes)
			copy(trailer[trailerBytes-fromB:], b.buf[b.n-fromB:b.n])
			b.n -= fromB
			if rest := trailerBytes - fromB; held != nil {
				copy(trailer[:rest], held.buf[held.n-rest:held.n])
				held.n -= rest
				send(held)
			}
			send(b)
			return nil
		}
	}()
	close(toHash)
	close(toWrite)
	wg.Wait()
	if readErr != nil {
		return 0, readErr
	}
	if p := writeErr.Load(); p != nil {
		return 0, fmt.Errorf("write the database file: %w", *p)
	}
	if [trailerBytes]byte(hash.Sum(nil)) != trailer {
		return 0, fmt.Errorf("%w: the SHA-256 at its end is not that of its bytes", ErrDamaged)
	}
	return total - trailerBytes, nil
}
