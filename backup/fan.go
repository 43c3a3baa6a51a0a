package backup

import (
	"errors"
	"io"
	"sync"
	"time"

	"lifeboat/internal/patience"
)

// branchDepth is how many chunks a store may lag behind the others before it
// slows them down. A chunk is one write of the sealer, about 64 KiB.
const branchDepth = 16

// fan copies what is written to it to several branches, one a store. A branch
// that is abandoned or takes nothing for the stall limit no longer counts; the
// fan fails only when no branch is left.
type fan struct {
	stall    time.Duration
	branches []*branch
}

// branch is one store's reader. Its Put ends with an error when it is
// abandoned, so nothing half-written becomes visible.
type branch struct {
	chunks chan *sharedChunk
	err    error     // what the reader gets after the last chunk; set before chunks is closed
	ended  sync.Once // closes chunks
	gone   chan struct{}
	left   sync.Once   // closes gone: the reader is done, well or badly
	stop   func(error) // ends the Put's context; may be nil

	current *sharedChunk
	unread  []byte
}

type sharedChunk struct {
	data []byte
	mu   sync.Mutex
	refs int
}

var chunkPool = sync.Pool{New: func() any { return new(sharedChunk) }}

func (c *sharedChunk) release() {
	c.mu.Lock()
	c.refs--
	free := c.refs == 0
	c.mu.Unlock()
	if free {
		chunkPool.Put(c)
	}
}

func newFan(branches int, stall time.Duration) *fan {
	f := &fan{stall: stall}
	for range branches {
		f.branches = append(f.branches, &branch{chunks: make(chan *sharedChunk, branchDepth), gone: make(chan struct{}), err: io.EOF})
	}
	return f
}

// errNoneLeft ends a sealing whose every store failed.
var errNoneLeft = errors.New("no store is left to write to")

// Write hands p to every living branch.
func (f *fan) Write(p []byte) (int, error) {
	chunk := chunkPool.Get().(*sharedChunk)
	chunk.data = append(chunk.data[:0], p...)
	chunk.refs = len(f.branches) + 1 // and ours
	defer chunk.release()
	living := 0
	for _, b := range f.branches {
		if b.send(chunk, f.stall) {
			living++
		} else {
			chunk.release()
		}
	}
	if living == 0 {
		return 0, errNoneLeft
	}
	return len(p), nil
}

// Close ends all branches: with io.EOF when err is nil, else with err, which
// makes their Puts fail.
func (f *fan) Close(err error) {
	for _, b := range f.branches {
		b.end(err)
	}
}

func (b *branch) send(chunk *sharedChunk, stall time.Duration) bool {
	select {
	case <-b.gone:
		return false
	default:
	}
	select {
	case b.chunks <- chunk:
		return true
	default:
	}
	timer := time.NewTimer(stall)
	defer timer.Stop()
	select {
	case b.chunks <- chunk:
		return true
	case <-b.gone:
	case <-timer.C:
		b.drop(patience.StalledFor(stall))
	}
	return false
}

// drop ends a Put that may not even be reading.
func (b *branch) drop(err error) {
	b.end(err)
	b.abandon()
	if b.stop != nil {
		b.stop(err)
	}
}

func (b *branch) end(err error) {
	b.ended.Do(func() {
		if err != nil {
			b.err = err
		}
		close(b.chunks)
	})
}

// abandon tells the writer that nobody reads any more.
func (b *branch) abandon() { b.left.Do(func() { close(b.gone) }) }

// Read implements io.Reader for the store's Put.
func (b *branch) Read(p []byte) (int, error) {
	for len(b.unread) == 0 {
		if b.current != nil {
			b.current.release()
			b.current = nil
		}
		chunk, ok := <-b.chunks
		if !ok {
			return 0, b.err
		}
		b.current, b.unread = chunk, chunk.data
	}
	n := copy(p, b.unread)
	b.unread = b.unread[n:]
	return n, nil
}
