package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"lifeboat/backup/etcd"
	"lifeboat/internal/manifest"
	"lifeboat/internal/snapdb"
)

// Import adopts an etcd snapshot that another tool made, as a full of the
// chain. It is committed unproved, since no live member can vouch for it. A
// plain database file without a hash trailer is taken too and given one.
func (r *Runner) Import(ctx context.Context, chain manifest.Chain, path string) (*Result, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	facts, err := snapdb.Inspect(ctx, path, snapdb.Options{})
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	unproved := []string{"imported: no live member was compared"}
	plain := io.Reader(file)
	switch info.Size() % 512 { // databases are whole pages
	case sha256.Size:
		if err := snapdb.VerifyTrailer(ctx, path); err != nil {
			return nil, fmt.Errorf("import %s: %w", path, err)
		}
	case 0:
		plain = &trailing{r: file, hash: sha256.New()}
		unproved = append(unproved, "the imported file had no hash trailer")
	default:
		return nil, fmt.Errorf("import %s: %w: its size of %d bytes is neither whole pages nor those and a hash trailer: it was cut off", path, snapdb.ErrCorrupt, info.Size())
	}

	id, err := manifest.NewID(r.Rand)
	if err != nil {
		return nil, err
	}
	data, err := r.spread(ctx, chain, id, manifest.RoleSnapshot, snapshotFile, plain)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	draft := r.draft(chain, manifest.KindFull, id, r.now())
	draft.Imported = manifest.Line(filepath.Base(path))
	draft.Etcd = importedFacts(facts)
	draft.Unproved = unproved
	return r.commit(ctx, draft, data)
}

// importedFacts is all that can be known of an etcd that is not there.
func importedFacts(facts *snapdb.Facts) *manifest.Etcd {
	known := &manifest.Etcd{}
	etcd.FileFacts(known, facts)
	for _, m := range facts.Members {
		known.Members = append(known.Members, etcd.StoredMember(m))
	}
	return known
}

// trailing appends the SHA-256 of all that was read.
type trailing struct {
	r    io.Reader
	hash hash.Hash
	tail []byte
	done bool
}

func (t *trailing) Read(p []byte) (int, error) {
	if !t.done {
		n, err := t.r.Read(p)
		t.hash.Write(p[:n])
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		t.done, t.tail = true, t.hash.Sum(nil)
		if n > 0 {
			return n, nil
		}
	}
	if len(t.tail) == 0 {
		return 0, io.EOF
	}
	n := copy(p, t.tail)
	t.tail = t.tail[n:]
	return n, nil
}
