package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"time"

	"filippo.io/age"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

// RekeyOptions says what to seal anew. Repository, Recipients, Writer, Now and
// Rand are required, and Identities unless DryRun is set.
type RekeyOptions struct {
	Repository *repository.Repository
	Backups    []repository.Backup // those to look at, blobs too

	Identities     []age.Identity  // that open what is stored
	Recipients     []age.Recipient // for whom it is sealed anew
	RecipientNames []string        // the same as text, for manifests

	RetainDays int // the store's Object Lock, from now; 0: none
	DryRun     bool

	Writer manifest.Writer
	Now    func() time.Time
	Rand   io.Reader
	Events events.Listener // may be nil
}

// Rekeyed is what became of one backup.
type Rekeyed struct {
	repository.Backup
	Wanted bool        // its recipients differ from those that are wanted
	ID     manifest.ID // of the rekey that was committed
	Err    error
}

// Rekey seals anew the data of those backups whose recipients differ, and
// commits a rekey behind each in its chain. It goes on past one that fails, and
// leaves out those that are done, so another run goes on where one ended. The
// plaintext passes through memory only. What the rekeys replace stays where it
// is until a prune names it.
func Rekey(ctx context.Context, o RekeyOptions) ([]Rekeyed, error) {
	var list []Rekeyed
	total := int64(0)
	for _, b := range o.Backups {
		if len(b.Objects) == 0 { // images: their data is in blobs
			continue
		}
		r := Rekeyed{Backup: b, Wanted: !sameSet(b.Recipients, o.RecipientNames)}
		if r.Wanted {
			total += b.Objects[0].PlainSize
			if err := o.Repository.MayRekey(b); err != nil && !o.DryRun {
				return nil, err
			}
		}
		list = append(list, r)
	}
	if o.DryRun {
		return list, nil
	}
	began, done := o.Now(), int64(0)
	o.Events.Emit(events.StageStarted{Stage: "rekey", Total: total})
	var errs []error
	for i := range list {
		r := &list[i]
		if !r.Wanted {
			continue
		}
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		before := done
		r.ID, r.Err = o.one(ctx, r.Backup, func(n int) {
			done += int64(n)
			o.Events.Emit(events.StageProgress{Stage: "rekey", Done: done})
		})
		done = before + r.Objects[0].PlainSize
		if r.Err != nil {
			r.Err = fmt.Errorf("rekey %s of %s: %w", r.Backup.ID, r.Chain, r.Err)
			errs = append(errs, r.Err)
		}
	}
	err := errors.Join(errs...)
	o.Events.Emit(events.StageDone{Stage: "rekey", Duration: o.Now().Sub(began), Bytes: done, Err: err})
	return list, err
}

// one seals one backup's data anew and commits that.
func (o RekeyOptions) one(ctx context.Context, b repository.Backup, progress func(int)) (manifest.ID, error) {
	id, err := manifest.NewID(o.Rand)
	if err != nil {
		return "", err
	}
	draft := &manifest.Manifest{
		Chain: b.Chain, Kind: manifest.KindRekey, ID: id, Created: o.Now().UTC().Truncate(time.Millisecond),
		Writer: o.Writer, Rekey: &manifest.Rekey{Of: b.ID}, Recipients: o.RecipientNames,
	}
	if o.RetainDays > 0 {
		until := draft.Created.AddDate(0, 0, o.RetainDays)
		draft.RetainUntil = &until
	}
	object, err := o.reseal(ctx, draft, b, progress)
	if err != nil {
		return "", err
	}
	draft.Objects = []manifest.Object{object}
	if _, err := o.Repository.CommitRekey(ctx, draft); err != nil {
		return "", err
	}
	return id, nil
}

// reseal opens an object and puts the same plaintext, sealed for others. The
// put ends well only after the old object was read whole, with the size and
// SHA-256 that its manifest names, and what it holds is what its role says.
func (o RekeyOptions) reseal(ctx context.Context, draft *manifest.Manifest, b repository.Backup, progress func(int)) (manifest.Object, error) {
	none, old := manifest.Object{}, b.Objects[0]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the old object's stream
	stored, err := o.Repository.OpenStored(ctx, old)
	if err != nil {
		return none, err
	}
	defer stored.Close()
	plain, err := seal.NewReader(stored, seal.Sums{PlainSize: old.PlainSize, StoredSize: old.Size, StoredSHA256: old.SHA256}, o.Identities...)
	if err != nil {
		return none, fmt.Errorf("%s: %w", old.Name, err)
	}
	defer plain.Close()
	var source io.Reader = plain
	switch old.Role {
	case manifest.RoleSnapshot:
		source = &trailed{r: source, sum: sha256.New()}
	case manifest.RoleBlob:
		source = oci.Verified(source, oci.Descriptor{Digest: oci.DigestOf(b.Blob.SHA256), Size: old.PlainSize})
	}

	name := repository.ObjectName(draft.Chain, draft.ID, path.Base(old.Name))
	retain := time.Time{}
	if draft.RetainUntil != nil {
		retain = *draft.RetainUntil
	}
	sums, err := seal.Into(o.Recipients, &counting{source, progress}, func(sealed io.Reader) error {
		return o.Repository.PutObject(ctx, name, sealed, retain)
	})
	if errors.Is(err, oci.ErrDamaged) {
		err = fmt.Errorf("%w: %w", repository.ErrVerification, err)
	}
	if err != nil {
		return none, err
	}
	return manifest.Object{
		Name: name, Role: old.Role, Size: sums.StoredSize, SHA256: manifest.Hash(sums.StoredSHA256), PlainSize: sums.PlainSize,
	}, nil
}

// counting tells of the bytes that are read through it.
type counting struct {
	io.Reader
	progress func(int)
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.progress(n)
	return n, err
}

// trailed checks, at its end, that a snapshot's last 32 bytes are the SHA-256 of
// those before them. What has passed before the io.EOF counts for nothing.
type trailed struct {
	r    io.Reader
	sum  hash.Hash // of all but held
	held []byte    // the last 32 bytes read
}

func (t *trailed) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.held = append(t.held, p[:n]...)
	if more := len(t.held) - sha256.Size; more > 0 {
		t.sum.Write(t.held[:more])
		t.held = append(t.held[:0], t.held[more:]...)
	}
	if err == io.EOF && (len(t.held) < sha256.Size || !bytes.Equal(t.sum.Sum(nil), t.held)) {
		return 0, fmt.Errorf("%w: the snapshot's hash trailer does not fit it", repository.ErrVerification)
	}
	return n, err
}

func sameSet(a, b []string) bool {
	norm := func(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }
	return slices.Equal(norm(a), norm(b))
}
