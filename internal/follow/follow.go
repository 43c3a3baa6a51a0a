// Package follow is a file that one goroutine appends to while others read it
// from the beginning, each at its own pace. It lets a snapshot be sealed while
// it is still arriving, without a second pass over the disk afterwards.
//
// A reader that has caught up waits. It sees io.EOF only after Finish(nil), so
// whoever calls Finish decides whether what was read counts.
package follow

import (
	"context"
	"io"
	"os"
	"sync"
)

// File is the shared file. Write and Finish belong to one goroutine.
type File struct {
	f *os.File

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	size     int64         // bytes that readers may read
	finished bool
	err      error // what readers get at the end instead of io.EOF
}

// New wraps f, which must be empty and open for reading and writing. The
// caller still owns f and closes it after all readers are done.
func New(f *os.File) *File {
	return &File{f: f, changed: make(chan struct{})}
}

// Write appends p and wakes the readers.
func (w *File) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.mu.Lock()
	w.size += int64(n)
	w.wake()
	w.mu.Unlock()
	return n, err
}

// Finish ends the file: readers that come to the end get err, or io.EOF when
// err is nil. The first call counts.
func (w *File) Finish(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finished {
		return
	}
	w.finished, w.err = true, err
	w.wake()
}

func (w *File) wake() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// Reader returns a reader from the beginning. Reads end with the context's
// cause when ctx does.
func (w *File) Reader(ctx context.Context) io.Reader {
	return &reader{ctx: ctx, file: w}
}

type reader struct {
	ctx  context.Context
	file *File
	off  int64
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		r.file.mu.Lock()
		ready, finished, end, changed := r.file.size-r.off, r.file.finished, r.file.err, r.file.changed
		r.file.mu.Unlock()
		switch {
		case finished && end != nil:
			return 0, end
		case ready > 0:
			n, err := r.file.f.ReadAt(p[:min(int64(len(p)), ready)], r.off)
			r.off += int64(n)
			if n > 0 {
				return n, nil
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF // somebody cut the file short
			}
			return 0, err
		case finished:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}
