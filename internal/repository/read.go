package repository

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// slot is what was found in one manifest's place.
type slot struct {
	seq      manifest.Sequence
	absent   bool
	m        *manifest.Manifest  // nil: not a manifest that counts
	hash     manifest.Hash       // of m's text
	stored   manifest.Hash       // of the stored bytes; of the current version
	oversize bool                // longer than any manifest
	modified time.Time           // by the store's clock
	lists    bool                // m lists recent segments, and may
	signers  []manifest.Verifier // trusted keys that signed m and may; nil: an index vouches for m
	kind     Kind                // why m is nil, or Overwritten when m came from an older version
	err      error               // the same in words
}

// fault is a reason that a slot does not hold a manifest.
type fault struct {
	kind Kind
	err  error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// budget bounds the bytes of manifests that a repository holds unparsed.
const budget = manifest.MaxNoteSize

// reader reads the manifests of one chain.
type reader struct {
	r     *Repository
	chain manifest.Chain
}

func (r *Repository) reader(chain manifest.Chain) *reader { return &reader{r: r, chain: chain} }

// claim is what an index says of a place: the hash of its manifest's text, by
// the word of the keys that signed the index. The zero claim says nothing.
type claim struct {
	hash manifest.Hash
	by   []manifest.Verifier
}

// readAll reads many places at once. With a claim, a manifest is believed
// because a verified one vouches for the hash of its text, which saves checking
// its signature.
func (rd *reader) readAll(ctx context.Context, seqs []manifest.Sequence, want map[manifest.Sequence]claim) ([]*slot, error) {
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
func (rd *reader) read(ctx context.Context, seq manifest.Sequence, want claim) (*slot, error) {
	var last manifest.Hash
	for range rereads {
		s, err := rd.readOnce(ctx, seq, want)
		if err != nil || s.m != nil || s.absent {
			return s, err
		}
		if s.stored == last || s.oversize { // one reading of that much is enough: it is no manifest either way
			return rd.fallBack(ctx, s, want)
		}
		last = s.stored
	}
	return nil, fmt.Errorf("read %s: the store gave other bytes each of %d times", ref(rd.chain, seq), rereads)
}

func (rd *reader) readOnce(ctx context.Context, seq manifest.Sequence, want claim) (*slot, error) {
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
func (rd *reader) parse(ctx context.Context, body io.ReadCloser, info storage.Info, seq manifest.Sequence, want claim) (*slot, error) {
	defer body.Close()
	s := &slot{seq: seq, modified: info.Modified}
	if info.Size > manifest.MaxNoteSize {
		return s, s.sumOversize(body)
	}
	weight := max(info.Size, 0)
	if err := rd.r.unparsed.Acquire(ctx, weight); err != nil {
		return nil, err
	}
	defer rd.r.unparsed.Release(weight)

	buf := bytes.NewBuffer(make([]byte, 0, weight+bytes.MinRead))
	if _, err := buf.ReadFrom(io.LimitReader(body, manifest.MaxNoteSize+1)); err != nil {
		return nil, err
	}
	data := buf.Bytes()
	if len(data) > manifest.MaxNoteSize {
		return s, s.sumOversize(buf)
	}
	var err error
	s.m, s.hash, s.signers, err = rd.judge(data, seq, want)
	if err != nil {
		s.m, s.kind, s.err = nil, Damaged, err
		var f *fault
		if errors.As(err, &f) {
			s.kind = f.kind
		}
	}
	if s.m != nil {
		s.lists = listsFulls(s.m, s.signers)
	}
	if s.m == nil || want.hash == (manifest.Hash{}) { // else nobody asks: an index vouches for it
		s.stored = sha256.Sum256(data)
	}
	return s, nil
}

// sumOversize condemns what is longer than any manifest by its first
// MaxNoteSize+1 bytes, of which it keeps none. Junk of any length costs a reader
// no more than that, and is named by that hash where it is skipped.
func (s *slot) sumOversize(body io.Reader) error {
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(body, manifest.MaxNoteSize+1))
	if err != nil {
		return err
	}
	sum.Sum(s.stored[:0])
	s.oversize = n > manifest.MaxNoteSize
	s.kind, s.err = Damaged, fmt.Errorf("it is longer than any manifest: more than %d bytes", manifest.MaxNoteSize)
	return nil
}

// judge decides whether data is the manifest of this place, and by whose
// signatures; none means that an index vouches for it.
func (rd *reader) judge(data []byte, seq manifest.Sequence, want claim) (*manifest.Manifest, manifest.Hash, []manifest.Verifier, error) {
	hash, err := manifest.TextHash(data)
	if err != nil {
		return nil, manifest.Hash{}, nil, &fault{Damaged, err}
	}
	if want.hash != (manifest.Hash{}) {
		m, err := rd.judgeVouched(data, hash, seq, want)
		if m != nil || err != nil {
			return m, hash, nil, err
		}
	}
	m, signers, err := manifest.OpenSigned(data, rd.r.opts.Trust)
	if err != nil {
		var newer *manifest.FormatError
		if errors.As(err, &newer) && (newer.Chain != rd.chain || newer.Sequence != seq) {
			err = fmt.Errorf("it is %s, in format %d", ref(newer.Chain, newer.Sequence), newer.Format)
			return nil, manifest.Hash{}, nil, &fault{Misplaced, err}
		}
		return nil, manifest.Hash{}, nil, &fault{faultKind(err), err}
	}
	if m.Chain != rd.chain || m.Sequence != seq {
		return nil, manifest.Hash{}, nil, &fault{Misplaced, fmt.Errorf("it is %s", ref(m.Chain, m.Sequence))}
	}
	return m, hash, signers, nil
}

// judgeVouched reads a manifest for whose hash a verified manifest of this
// chain vouches: its writer checked the text as a whole. A writer's word is
// worth no more than its signature, so it returns nil, for the signature to
// decide, if none of its keys may sign such a manifest itself.
func (rd *reader) judgeVouched(data []byte, hash manifest.Hash, seq manifest.Sequence, want claim) (*manifest.Manifest, error) {
	if hash != want.hash {
		return nil, &fault{Damaged, fmt.Errorf("the SHA-256 of its text is %s; the chain names %s", hash, want.hash)}
	}
	m := new(manifest.Manifest)
	if err := json.Unmarshal(withoutIndex(data[:bytes.LastIndex(data, []byte("\n\n"))]), m); err != nil {
		return nil, &fault{Damaged, err}
	}
	if m.Format != manifest.FormatVersion || m.Cluster != rd.r.cluster || m.Chain != rd.chain || m.Sequence != seq {
		return nil, nil
	}
	may := func(v manifest.Verifier) bool { return v.Allows(m) == nil }
	if !slices.ContainsFunc(want.by, may) {
		return nil, nil
	}
	return m, nil
}

// withoutIndex cuts the index out of a canonical text: that of an older manifest
// says nothing that a newer one does not, and is most of its bytes. Inside a
// string the quotes of the field's name would be escaped, and an entry holds no
// bracket.
func withoutIndex(text []byte) []byte {
	from := bytes.Index(text, []byte(`,"index":[`))
	if from < 0 {
		return text
	}
	length := bytes.IndexByte(text[from:], ']')
	if length < 0 {
		return text
	}
	return append(text[:from:from], text[from+length+1:]...)
}

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
func (rd *reader) fallBack(ctx context.Context, s *slot, want claim) (*slot, error) {
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
