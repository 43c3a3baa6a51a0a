package snapdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"go.etcd.io/bbolt"

	"lifeboat/internal/etcdtest"
)

// thin is how much less is tried under the race detector, which makes reading
// many times slower and has nothing to find in one goroutine.
var thin = 1

// built returns a small database file's bytes, without a trailer.
func built(t testing.TB, objects, changes int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if _, err := etcdtest.BuildDB(path, etcdtest.BuildOptions{Objects: objects, ValueBytes: 250, Changes: changes, Seed: 5}); err != nil {
		t.Fatal(err)
	}
	return readFile(t, path)
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// withFreelist rewrites the file as bbolt does by default, with a free list
// on disk and free pages to name in it.
func withFreelist(t testing.TB, data []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		c := tx.Bucket([]byte("key")).Cursor()
		for i := range 40 {
			if k, _ := c.First(); i == 0 && k == nil {
				t.Fatal("no keys")
			}
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return readFile(t, path)
}

// revisions returns where in the file each revision's key and value lie.
func revisions(t testing.TB, data []byte) (spans [][2]int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	base := db.Info().Data
	if err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).ForEach(func(k, v []byte) error {
			start := int(uintptr(unsafe.Pointer(unsafe.SliceData(k))) - base)
			spans = append(spans, [2]int{start, start + len(k) + len(v)})
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	return spans
}

// inspectBytes inspects bytes and makes sure that any error is ErrCorrupt.
func inspectBytes(t testing.TB, data []byte) (*Facts, error) {
	t.Helper()
	f, err := inspect(t.Context(), data, Options{})
	if err != nil && !errors.Is(err, ErrCorrupt) {
		t.Fatalf("an error that is not ErrCorrupt: %v", err)
	}
	return f, err
}

func TestNoFlippedByteGoesUnseenInRevisions(t *testing.T) {
	data := built(t, 60, -1)
	whole, err := inspectBytes(t, data)
	if err != nil {
		t.Fatal(err)
	}
	spans := revisions(t, data)
	if len(spans) != 60 {
		t.Fatalf("%d revisions", len(spans))
	}
	for _, s := range spans {
		for i := s[0]; i < s[1]; i += thin {
			bit := byte(1) << (i % 8)
			data[i] ^= bit
			if f, err := inspectBytes(t, data); err == nil && f.HashKV == whole.HashKV {
				t.Fatalf("a flipped bit of byte %d was not seen", i)
			}
			data[i] ^= bit
		}
	}
}

func TestFlippedBytesAnywhereAreHarmless(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, data := range map[string][]byte{
		"without a free list": built(t, 60, 20),
		"with a free list":    withFreelist(t, built(t, 120, 20)),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := inspectBytes(t, data); err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(data); i += 1 + rng.IntN(12*thin) {
				was := data[i]
				data[i] ^= byte(1 + rng.IntN(255))
				_, _ = inspectBytes(t, data)
				data[i] = was
			}
			for range 3000 / thin { // several at once, headers more often than not
				bad := bytes.Clone(data)
				for range 1 + rng.IntN(8) {
					i := rng.IntN(len(bad))
					if rng.IntN(2) == 0 {
						i = i/4096*4096 + rng.IntN(128)
					}
					bad[i%len(bad)] = byte(rng.Uint32())
				}
				fixMetas(bad)
				_, _ = inspectBytes(t, bad)
			}
		})
	}
}

func TestEveryTruncationIsSeen(t *testing.T) {
	data := built(t, 100, 10)
	path := filepath.Join(t.TempDir(), "cut.db")
	for n := 0; n < len(data); n += 397 * thin {
		for _, n := range []int{n, n / 512 * 512, n/512*512 + 32} {
			if n >= len(data) {
				continue
			}
			if err := os.WriteFile(path, data[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Inspect(t.Context(), path, Options{}); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("cut to %d of %d bytes: %v", n, len(data), err)
			}
		}
	}
}

// fixMetas makes the checksums of both meta pages right again, so that damage
// gets past them.
func fixMetas(data []byte) {
	for off := 0; off+4096 <= len(data) && off <= 4096; off += 4096 {
		b := data[off+pageHeader:]
		h := fnv.New64a()
		h.Write(b[:56])
		order.PutUint64(b[56:], h.Sum64())
	}
}

// patch helps to damage a file on purpose.
type patch struct {
	t    *testing.T
	data []byte
	m    meta
}

func (p *patch) page(id uint64) []byte { return p.data[id*p.m.pageSize:] }

// bucket returns where the element that names a bucket has its header.
func (p *patch) bucket(name string) []byte {
	root := page{id: p.m.root, flags: flagLeaf, data: p.page(p.m.root)}
	root.count = int(order.Uint16(root.data[10:]))
	for i := range root.count {
		if e := root.element(i); string(e.key) == name {
			return e.value
		}
	}
	p.t.Fatalf("no bucket %s", name)
	return nil
}

func (p *patch) keyRoot() uint64 { return order.Uint64(p.bucket("key")) }

// child returns where branch i of the page has the id of its page.
func (p *patch) child(id uint64, i int) []byte {
	b := p.page(id)
	if order.Uint16(b[8:]) != flagBranch || int(order.Uint16(b[10:])) <= i {
		p.t.Fatalf("page %d is no branch with %d children", id, i)
	}
	return b[pageHeader+i*elementSize+8:]
}

func TestDamageOfStructureIsSeen(t *testing.T) {
	plain := built(t, 300, 20)
	listed := withFreelist(t, built(t, 300, 20))
	for _, tt := range []struct {
		name string
		data []byte
		do   func(p *patch)
	}{
		{"a branch that leads to itself", plain, func(p *patch) {
			order.PutUint64(p.child(p.keyRoot(), 1), p.keyRoot())
		}},
		{"a branch that leads to the root bucket", plain, func(p *patch) {
			order.PutUint64(p.child(p.keyRoot(), 0), p.m.root)
		}},
		{"two branches that lead to one page", plain, func(p *patch) {
			copy(p.child(p.keyRoot(), 1)[:8], p.child(p.keyRoot(), 0)[:8])
		}},
		{"a branch that leads out of the file", plain, func(p *patch) {
			order.PutUint64(p.child(p.keyRoot(), 1), 1<<60)
		}},
		{"a branch that leads to a meta page", plain, func(p *patch) {
			order.PutUint64(p.child(p.keyRoot(), 1), 1)
		}},
		{"two branches that changed places", plain, func(p *patch) {
			a, b := p.child(p.keyRoot(), 0)[:8], p.child(p.keyRoot(), 1)[:8]
			x, y := bytes.Clone(a), bytes.Clone(b)
			copy(a, y)
			copy(b, x)
		}},
		{"a bucket whose root is the directory", plain, func(p *patch) {
			order.PutUint64(p.bucket("key"), p.m.root)
		}},
		{"a bucket whose root is beyond the end", plain, func(p *patch) {
			order.PutUint64(p.bucket("key"), p.m.pages)
		}},
		{"two buckets with one root", plain, func(p *patch) {
			copy(p.bucket("key")[:8], p.bucket("members_removed")[:8])
			order.PutUint64(p.bucket("members_removed"), p.keyRoot())
			order.PutUint64(p.bucket("authUsers"), p.keyRoot())
		}},
		{"overflow beyond the end", plain, func(p *patch) {
			order.PutUint32(p.page(p.keyRoot())[12:], 1<<31)
		}},
		{"overflow over other pages", plain, func(p *patch) {
			order.PutUint32(p.page(2)[12:], uint32(p.m.pages-3))
		}},
		{"more elements than fit", plain, func(p *patch) {
			order.PutUint16(p.page(p.keyRoot())[10:], 0xffff)
		}},
		{"an empty branch", plain, func(p *patch) {
			order.PutUint16(p.page(p.keyRoot())[10:], 0)
		}},
		{"a branch that has become a leaf", plain, func(p *patch) {
			order.PutUint16(p.page(p.keyRoot())[8:], flagLeaf)
		}},
		{"a page with another page's number", plain, func(p *patch) {
			order.PutUint64(p.page(p.keyRoot()), p.keyRoot()+1)
		}},
		{"a value that reaches into the next page", plain, func(p *patch) {
			leaf := order.Uint64(p.child(p.keyRoot(), 0))
			order.PutUint32(p.page(leaf)[pageHeader+12:], 1<<30)
		}},
		{"elements that overlap", plain, func(p *patch) {
			leaf := order.Uint64(p.child(p.keyRoot(), 0))
			second := p.page(leaf)[pageHeader+elementSize:]
			order.PutUint32(second[4:], order.Uint32(second[4:])-1)
		}},
		{"more pages than the file has", plain, func(p *patch) {
			for _, off := range []uint64{0, p.m.pageSize} {
				order.PutUint64(p.data[off+pageHeader+40:], p.m.pages*1000)
			}
			fixMetas(p.data)
		}},
		{"a free list that names a page in use", listed, func(p *patch) {
			order.PutUint64(p.page(p.m.freelist)[pageHeader:], p.keyRoot())
		}},
		{"a free list that names a page twice", listed, func(p *patch) {
			b := p.page(p.m.freelist)[pageHeader:]
			copy(b[8:16], b[:8])
		}},
		{"a free list that names a page outside", listed, func(p *patch) {
			order.PutUint64(p.page(p.m.freelist)[pageHeader:], p.m.pages)
		}},
		{"a free list that has lost a page", listed, func(p *patch) {
			b := p.page(p.m.freelist)
			order.PutUint16(b[10:], order.Uint16(b[10:])-1)
		}},
		{"a free list of more entries than fit", listed, func(p *patch) {
			b := p.page(p.m.freelist)
			order.PutUint16(b[10:], 0xffff)
			order.PutUint64(b[pageHeader:], 1<<61)
		}},
		{"a free list that is a leaf", listed, func(p *patch) {
			order.PutUint16(p.page(p.m.freelist)[8:], flagLeaf)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := bytes.Clone(tt.data)
			m, damaged, err := chooseMeta(data)
			if err != nil || damaged != 0 {
				t.Fatal(err, damaged)
			}
			tt.do(&patch{t, data, m})
			if _, err := inspectBytes(t, data); err == nil {
				t.Error("not seen")
			}
		})
	}
}

func TestOneDamagedMetaPageIsSurvivedAndSaid(t *testing.T) {
	data := built(t, 100, 10)
	want, err := inspectBytes(t, data)
	if err != nil {
		t.Fatal(err)
	}
	m, _, _ := chooseMeta(data)
	older := 4096 * int((m.txid+1)%2)
	data[older+pageHeader+50] ^= 1
	got, err := inspectBytes(t, data)
	if err != nil || !got.DamagedMeta || got.HashKV != want.HashKV || want.DamagedMeta {
		t.Errorf("%+v, %v", got, err)
	}
	data[4096-older+pageHeader+50] ^= 1
	if _, err := inspectBytes(t, data); err == nil {
		t.Error("two damaged meta pages were not seen")
	}
}

func TestAFileCutShortWhileItIsReadIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, built(t, 20_000, 10), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Inspect(t.Context(), path, Options{Progress: func(done, total int64) {
		if err := os.Truncate(path, 4096); err != nil {
			t.Error(err)
		}
	}})
	if err == nil {
		t.Error("not seen")
	}
}

func FuzzInspect(f *testing.F) {
	small := built(f, 30, 10)
	f.Add(small)
	f.Add(withFreelist(f, built(f, 120, 10)))
	f.Add(small[:len(small)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = inspectBytes(t, data)
		fixed := bytes.Clone(data)
		fixMetas(fixed)
		facts, err := inspectBytes(t, fixed)
		if err != nil {
			return
		}
		// Whatever passes gives the same hash by the other way.
		r, err := openDatabase(t.Context(), fixed, nil)
		if err != nil {
			t.Fatal(err)
		}
		h, err := r.hash(point{rev: facts.Revision, compact: facts.CompactRevision}, nil)
		if err != nil || h.sum() != facts.HashKV {
			t.Errorf("%v, %v; %v", h, err, facts)
		}
		// And from the middle on it is the second half.
		middle := facts.Revision / 2
		from := binary.BigEndian.AppendUint64(nil, uint64(middle))
		var all, half int
		if err := r.walkBucket(r.buckets["key"], newBitmap(r.pages), func(e element) error {
			if bytes.Compare(e.key, from) >= 0 {
				all++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		err = r.walkBucketFrom(r.buckets["key"], from, func(element) error { half++; return nil })
		if err != nil || half != all {
			t.Errorf("from revision %d on %d changes, %v, instead of %d", middle, half, err, all)
		}
	})
}
