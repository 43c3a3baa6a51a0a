package repository

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// slot is what was found in one manifest's place.
type slot struct {
	seq      manifest.Sequence
	absent   bool
	m        *manifest.Manifest // nil: not a manifest that counts
	hash     manifest.Hash      // of m's text
	stored   manifest.Hash      // of the stored bytes; of the current version
	modified time.Time          // by the store's clock
	kind     Kind               // why m is nil, or Overwritten when m came from an older version
	err      error              // the same in words
}

// fault is a reason that a slot does not hold a manifest.
type fault struct {
	kind Kind
	err  error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// budget bounds the bytes of manifests that one load holds unparsed.
const budget = manifest.MaxNoteSize

// reader reads the manifests of one chain.
type reader struct {
	r     *Repository
	chain manifest.Chain
	bytes *semaphore.Weighted
}

func (r *Repository) reader(chain manifest.Chain) *reader {
	return &reader{r: r, chain: chain, bytes: semaphore.NewWeighted(budget)}
}

// readAll reads many places at once. With a hash in want, a manifest is
// believed because a verified one vouches for the hash of its text, which
// saves checking its signature.
func (rd *reader) readAll(ctx context.Context, seqs []manifest.Sequence, want map[manifest.Sequence]manifest.Hash) ([]*slot, error) {
	slots := make([]*slot, len(seqs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, seq := range seqs {
		group.Go(func() (err error) {
			slots[i], err = rd.read(ctx, seq, want[seq])
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slots, nil
}

// rereads bounds how often a place is read that does not verify.
const rereads = 5

// read fetches one place. What does not verify is condemned only when it reads
// the same twice running, since a bit that flipped on the way must not take a
// good manifest out of its chain. Then an earlier version is looked for.
func (rd *reader) read(ctx context.Context, seq manifest.Sequence, want manifest.Hash) (*slot, error) {
	var last manifest.Hash
	for range rereads {
		s, err := rd.readOnce(ctx, seq, want)
		if err != nil || s.m != nil || s.absent {
			return s, err
		}
		if s.stored == last {
			return rd.fallBack(ctx, s, want)
		}
		last = s.stored
	}
	return nil, fmt.Errorf("read %s: the store gave other bytes each of %d times", ref(rd.chain, seq), rereads)
}

func (rd *reader) readOnce(ctx context.Context, seq manifest.Sequence, want manifest.Hash) (*slot, error) {
	name := rd.r.stored(ManifestName(rd.chain, seq))
	body, info, err := rd.r.store.Open(ctx, name, storage.Range{})
	if errors.Is(err, storage.ErrNotExist) {
		return &slot{seq: seq, absent: true}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", ref(rd.chain, seq), err)
	}
	s, err := rd.parse(ctx, body, info, seq, want)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", ref(rd.chain, seq), err)
	}
	return s, nil
}

// parse reads and judges one object's bytes, and closes body.
func (rd *reader) parse(ctx context.Context, body io.ReadCloser, info storage.Info, seq manifest.Sequence, want manifest.Hash) (*slot, error) {
	defer body.Close()
	s := &slot{seq: seq, modified: info.Modified}
	weight := min(max(info.Size, 0), budget)
	if err := rd.bytes.Acquire(ctx, weight); err != nil {
		return nil, err
	}
	defer rd.bytes.Release(weight)

	data := make([]byte, 0, weight+bytes.MinRead)
	buf := bytes.NewBuffer(data)
	if _, err := buf.ReadFrom(io.LimitReader(body, manifest.MaxNoteSize+1)); err != nil {
		return nil, err
	}
	data = buf.Bytes()
	if len(data) > manifest.MaxNoteSize {
		sum := sha256.New()
		sum.Write(data)
		n, err := io.Copy(sum, body)
		if err != nil {
			return nil, err
		}
		s.kind, s.err = Damaged, fmt.Errorf("%d bytes, more than any manifest", int64(len(data))+n)
		sum.Sum(s.stored[:0])
		return s, nil
	}
	var err error
	s.m, s.hash, err = rd.judge(data, seq, want)
	if err != nil {
		s.m, s.kind, s.err = nil, Damaged, err
		var f *fault
		if errors.As(err, &f) {
			s.kind = f.kind
		}
	}
	if s.m == nil || want == (manifest.Hash{}) { // else nobody asks: an index vouches for it
		s.stored = sha256.Sum256(data)
	}
	return s, nil
}

// judge decides whether data is the manifest of this place.
func (rd *reader) judge(data []byte, seq manifest.Sequence, want manifest.Hash) (*manifest.Manifest, manifest.Hash, error) {
	if want != (manifest.Hash{}) {
		return rd.judgeVouched(data, want)
	}
	m, err := manifest.Open(data, rd.r.opts.Trust)
	if err != nil {
		return nil, manifest.Hash{}, &fault{faultKind(err), err}
	}
	if m.Chain != rd.chain || m.Sequence != seq {
		return nil, manifest.Hash{}, &fault{Misplaced, fmt.Errorf("it is %s", ref(m.Chain, m.Sequence))}
	}
	hash, err := manifest.TextHash(data)
	return m, hash, err
}

// judgeVouched reads a manifest whose text's hash a verified manifest of this
// chain names for this place: the text was checked, as a whole, by the writer
// that signed that one.
func (rd *reader) judgeVouched(data []byte, want manifest.Hash) (*manifest.Manifest, manifest.Hash, error) {
	hash, err := manifest.TextHash(data)
	if err != nil {
		return nil, manifest.Hash{}, &fault{Damaged, err}
	}
	if hash != want {
		return nil, manifest.Hash{}, &fault{Damaged, fmt.Errorf("the SHA-256 of its text is %s; the chain names %s", hash, want)}
	}
	m := new(manifest.Manifest)
	text := data[:bytes.LastIndex(data, []byte("\n\n"))]
	if err := json.Unmarshal(text, &vouched{Manifest: m}); err != nil {
		return nil, manifest.Hash{}, &fault{Damaged, err}
	}
	return m, hash, nil
}

// vouched reads a manifest without its index: that of an older manifest says
// nothing that a newer one does not, and is most of its bytes.
type vouched struct {
	*manifest.Manifest
	Index ignored `json:"index"`
}

type ignored struct{}

// UnmarshalJSON reads nothing.
func (ignored) UnmarshalJSON([]byte) error { return nil }

func faultKind(err error) Kind {
	switch {
	case errors.Is(err, manifest.ErrUnsigned):
		return Unsigned
	case errors.Is(err, manifest.ErrOtherCluster):
		return Misplaced
	case errors.Is(err, manifest.ErrUnknownFormat):
		return NewerFormat
	}
	return Damaged
}

// fallBack looks for an earlier version of a place that verifies. On a store
// without versions it returns s as it is.
func (rd *reader) fallBack(ctx context.Context, s *slot, want manifest.Hash) (*slot, error) {
	versioned, ok := rd.r.store.(storage.Versioned)
	if !ok || s.kind == NewerFormat {
		return s, nil
	}
	name := rd.r.stored(ManifestName(rd.chain, s.seq))
	for version, err := range versioned.Versions(ctx, name) {
		if err != nil {
			return nil, fmt.Errorf("list versions of %s: %w", ref(rd.chain, s.seq), err)
		}
		body, info, err := versioned.OpenVersion(ctx, version)
		if errors.Is(err, storage.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open an older version of %s: %w", ref(rd.chain, s.seq), err)
		}
		old, err := rd.parse(ctx, body, info, s.seq, want)
		if err != nil {
			return nil, fmt.Errorf("read an older version of %s: %w", ref(rd.chain, s.seq), err)
		}
		if old.m == nil {
			continue
		}
		how := "was deleted"
		if !s.absent {
			how = fmt.Sprintf("was replaced by what is no manifest (%v)", s.err)
		}
		old.stored, old.kind = s.stored, Overwritten
		old.err = fmt.Errorf("it %s; the store's version %s of it verifies and is used", how, version.ID)
		return old, nil
	}
	return s, nil
}
