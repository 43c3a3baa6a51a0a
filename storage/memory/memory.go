// Package memory is a store in memory, for tests and demonstrations. With
// versioning it keeps earlier contents as a versioned bucket does.
package memory

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"lifeboat/storage"
)

// Store implements storage.Store and storage.Versioned.
type Store struct {
	now        func() time.Time
	versioning bool

	mu      sync.Mutex
	objects map[string][]object // versions, oldest first; a deleted one keeps its versions when versioning is on
	next    int
}

type object struct {
	id       string
	data     []byte
	modified time.Time
	retain   time.Time
	deleted  bool // a delete marker
}

// Option changes a new store.
type Option func(*Store)

// WithClock sets the clock behind Modified and retention; time.Now by default.
func WithClock(now func() time.Time) Option { return func(s *Store) { s.now = now } }

// WithVersioning keeps earlier contents: replacing adds a version and deleting
// a marker, as in a versioned bucket. Without it, RetainUntil refuses both.
func WithVersioning() Option { return func(s *Store) { s.versioning = true } }

// New returns an empty store.
func New(options ...Option) *Store {
	s := &Store{now: time.Now, objects: map[string][]object{}}
	for _, option := range options {
		option(s)
	}
	return s
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	if err := storage.CheckName(name); err != nil {
		return err
	}
	if ctx.Err() == nil && opts.IfAbsent && s.exists(name) {
		return fmt.Errorf("put %s: %w", name, storage.ErrExist) // and the source is not read in vain
	}
	data, err := io.ReadAll(&contextReader{ctx, r})
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, visible := s.current(name)
	switch {
	case visible && opts.IfAbsent:
		return fmt.Errorf("put %s: %w", name, storage.ErrExist)
	case visible && !s.versioning:
		if err := s.protected("put", name, old); err != nil {
			return err
		}
	}
	s.append(name, object{data: data, retain: opts.RetainUntil})
	return nil
}

func (s *Store) exists(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, visible := s.current(name)
	return visible
}

func (s *Store) append(name string, o object) {
	s.next++
	o.id, o.modified = strconv.Itoa(s.next), s.now()
	if !s.versioning {
		s.objects[name] = nil
	}
	s.objects[name] = append(s.objects[name], o)
}

func (s *Store) current(name string) (object, bool) {
	versions := s.objects[name]
	if len(versions) == 0 {
		return object{}, false
	}
	last := versions[len(versions)-1]
	return last, !last.deleted
}

func (o object) info(name string) storage.Info {
	return storage.Info{Name: name, Size: int64(len(o.data)), Modified: o.modified}
}

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	if err := cmp.Or(ctx.Err(), storage.CheckName(name)); err != nil {
		return nil, storage.Info{}, err
	}
	if rng.Offset < 0 || rng.Length < 0 {
		return nil, storage.Info{}, fmt.Errorf("open %s: negative range %d+%d", name, rng.Offset, rng.Length)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, visible := s.current(name)
	if !visible {
		return nil, storage.Info{}, fmt.Errorf("open %s: %w", name, storage.ErrNotExist)
	}
	data := o.data[min(rng.Offset, int64(len(o.data))):]
	if rng.Length > 0 {
		data = data[:min(rng.Length, int64(len(data)))]
	}
	return io.NopCloser(&contextReader{ctx, bytes.NewReader(data)}), o.info(name), nil
}

// List implements storage.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return s.ListAfter(ctx, prefix, "")
}

// ListAfter implements storage.Ranger.
func (s *Store) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		s.mu.Lock()
		var infos []storage.Info
		for name := range s.objects {
			if o, visible := s.current(name); visible && strings.HasPrefix(name, prefix) && name > after {
				infos = append(infos, o.info(name))
			}
		}
		s.mu.Unlock()
		slices.SortFunc(infos, func(a, b storage.Info) int { return cmp.Compare(a.Name, b.Name) })
		for _, info := range infos {
			if err := ctx.Err(); err != nil {
				yield(storage.Info{}, err)
				return
			}
			if !yield(info, nil) {
				return
			}
		}
	}
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := cmp.Or(ctx.Err(), storage.CheckName(name)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, visible := s.current(name)
	switch {
	case !visible:
	case s.versioning:
		s.append(name, object{deleted: true})
	default:
		if err := s.protected("delete", name, o); err != nil {
			return err
		}
		delete(s.objects, name)
	}
	return nil
}

func (s *Store) protected(doing, name string, o object) error {
	if s.now().Before(o.retain) {
		return fmt.Errorf("%s %s: %w until %s", doing, name, storage.ErrProtected, o.retain.UTC().Format(time.RFC3339))
	}
	return nil
}

// Versions implements storage.Versioned.
func (s *Store) Versions(ctx context.Context, name string) iter.Seq2[storage.Version, error] {
	return func(yield func(storage.Version, error) bool) {
		if !s.versioning {
			return
		}
		s.mu.Lock()
		versions := slices.Clone(s.objects[name])
		s.mu.Unlock()
		for _, o := range slices.Backward(versions) {
			if !o.deleted && !yield(storage.Version{Info: o.info(name), ID: o.id}, ctx.Err()) {
				return
			}
		}
	}
}

// OpenVersion implements storage.Versioned.
func (s *Store) OpenVersion(ctx context.Context, v storage.Version) (io.ReadCloser, storage.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects[v.Name] {
		if o.id == v.ID && !o.deleted {
			return io.NopCloser(&contextReader{ctx, bytes.NewReader(o.data)}), o.info(v.Name), nil
		}
	}
	return nil, storage.Info{}, fmt.Errorf("open version %s of %s: %w", v.ID, v.Name, storage.ErrNotExist)
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
