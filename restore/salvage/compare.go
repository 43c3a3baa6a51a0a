package salvage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"

	"lifeboat/internal/segment"
	"lifeboat/internal/snapdb"
)

// Compared says what holding recorded changes to a database has shown.
type Compared struct {
	Events  int64 // of revisions that both have
	Last    int64 // the last such revision; 0: they have none in common
	Differs int64 // the first revision that is another one in the database; 0: none
}

// Compare holds a segment's changes to the database: those behind its compact
// revision and up to its last. Found is the source's own, whose pages are whole by it.
func (s *Source) Compare(ctx context.Context, f *Found, plain io.Reader) (c *Compared, err error) {
	r, err := segment.NewReader(plain)
	if err != nil {
		return nil, err
	}
	db, err := bbolt.Open(s.db.Name(), 0o600, &bbolt.Options{ReadOnly: true, Timeout: 10 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.db.Name(), err)
	}
	defer db.Close()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: read %s: %v", snapdb.ErrCorrupt, s.db.Name(), r)
		}
	}()
	tx, err := db.Begin(false)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	keys := tx.Bucket([]byte("key"))
	if keys == nil {
		return nil, fmt.Errorf("%w: %s has no keys", snapdb.ErrCorrupt, s.db.Name())
	}
	c = &Compared{}
	main, sub := int64(0), int64(0)
	for n := 0; ; n++ {
		if n&0xfff == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return nil, err
		}
		if !rec.IsEvent() {
			continue
		}
		if sub++; rec.Main != main {
			main, sub = rec.Main, 0
		}
		if main <= f.Database.CompactRevision || main > f.Database.Revision || c.Differs != 0 {
			continue
		}
		// As etcd writes a revision (server/storage/mvcc/revision.go).
		key := binary.BigEndian.AppendUint64(nil, uint64(main))
		key = binary.BigEndian.AppendUint64(append(key, '_'), uint64(sub))
		if rec.Kind == segment.KindDelete {
			key = append(key, 't')
		}
		if !bytes.Equal(keys.Get(key), rec.KV) {
			c.Differs = main
			continue
		}
		c.Events, c.Last = c.Events+1, main
	}
}
