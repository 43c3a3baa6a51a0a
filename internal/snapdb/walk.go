package snapdb

import (
	"bytes"
	"context"
	"errors"
	"math/bits"
)

// Limits on what no real database comes near: a tree of branches with two
// children each would hold 2^40 pages, and etcd nests no buckets.
const (
	maxTreeDepth   = 40
	maxBucketDepth = 4
)

// errStop ends a walk early without an error.
var errStop = errors.New("stop")

// database reads a bbolt file's pages and keeps account of them.
type database struct {
	meta
	data []byte

	ctx      context.Context
	progress func(done, total int64)
	steps    int
	reached  int64 // pages marked
}

// bitmap has one bit a page.
type bitmap []uint64

func newBitmap(pages uint64) bitmap { return make(bitmap, (pages+63)/64) }

// mark sets a page's bit; it returns false when it was set.
func (b bitmap) mark(id uint64) bool {
	word, bit := &b[id/64], uint64(1)<<(id%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

func (b bitmap) count() (n int64) {
	for _, w := range b {
		n += int64(bits.OnesCount64(w))
	}
	return n
}

// page returns page id with its overflow pages, each of which must not have
// been reached before. So no walk visits more pages than there are.
func (db *database) page(id uint64, seen bitmap) (p page, err error) {
	if db.steps++; db.steps&0x3ff == 0 {
		if err := db.ctx.Err(); err != nil {
			return p, err
		}
		if db.progress != nil {
			db.progress(db.reached*int64(db.pageSize), int64(db.pages*db.pageSize))
		}
	}
	if id < 2 || id >= db.pages {
		return p, corruptf("page %d is outside the file's %d pages", id, db.pages)
	}
	b := db.data[id*db.pageSize : db.pages*db.pageSize]
	if self := order.Uint64(b); self != id {
		return p, corruptf("page %d says that it is page %d", id, self)
	}
	p = page{id: id, flags: order.Uint16(b[8:]), count: int(order.Uint16(b[10:]))}
	overflow := uint64(order.Uint32(b[12:]))
	if overflow >= db.pages-id {
		return p, corruptf("page %d: %d overflow pages reach beyond the file's %d pages", id, overflow, db.pages)
	}
	p.data = b[:(overflow+1)*db.pageSize]
	for i := id; i <= id+overflow; i++ {
		if !seen.mark(i) {
			return p, corruptf("page %d is used twice", i)
		}
	}
	return p, nil
}

// walk calls f with every leaf element of the tree at root, in key order,
// and checks that the keys ascend and stay inside what the branches say.
func (db *database) walk(root uint64, seen bitmap, f func(element) error) error {
	w := walker{db: db, seen: seen, f: f}
	return w.tree(root, nil, nil, 0)
}

type walker struct {
	db   *database
	seen bitmap
	f    func(element) error
	last []byte // the key before
	from []byte // subtrees that end below it are left out; nil: none is
}

// tree walks the subtree at id, whose keys lie in [low, high); nil is no limit.
func (w *walker) tree(id uint64, low, high []byte, depth int) error {
	if depth > maxTreeDepth {
		return corruptf("page %d: deeper than %d pages", id, maxTreeDepth)
	}
	p, err := w.db.page(id, w.seen)
	if err != nil {
		return err
	}
	w.db.reached += int64(uint64(len(p.data)) / w.db.pageSize)
	if err := p.checkElements(); err != nil {
		return err
	}
	if p.flags == flagLeaf {
		return w.leaf(&p, low, high)
	}
	for i := range p.count {
		e := p.element(i)
		if bytes.Compare(e.key, low) < 0 || high != nil && bytes.Compare(e.key, high) >= 0 {
			return corruptf("page %d: the key of branch %d is not in its parent's range", id, i)
		}
		next := high
		if i+1 < p.count {
			next = p.element(i + 1).key
			if bytes.Compare(e.key, next) >= 0 {
				return corruptf("page %d: the keys of its branches do not ascend", id)
			}
		}
		if w.from != nil && next != nil && bytes.Compare(next, w.from) <= 0 {
			continue
		}
		if err := w.tree(e.child, e.key, next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) leaf(p *page, low, high []byte) error {
	for i := range p.count {
		e := p.element(i)
		if w.last != nil && bytes.Compare(w.last, e.key) >= 0 {
			return corruptf("page %d: the keys do not ascend", p.id)
		}
		w.last = e.key
		if err := w.f(e); err != nil {
			return err
		}
	}
	if p.count == 0 {
		return nil
	}
	if first := p.element(0).key; bytes.Compare(first, low) < 0 || high != nil && bytes.Compare(w.last, high) >= 0 {
		return corruptf("page %d: its keys are not in its parent's range", p.id)
	}
	return nil
}

// walkBack calls f with the leaf elements of the tree at root from the last to
// the first, until f returns errStop. It is safe on any input but does not
// check the order of keys: each walkBack is followed by a walk, which does.
func (db *database) walkBack(root uint64, f func(element) error) error {
	err := db.treeBack(root, newBitmap(db.pages), 0, f)
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

func (db *database) treeBack(id uint64, seen bitmap, depth int, f func(element) error) error {
	if depth > maxTreeDepth {
		return corruptf("page %d: deeper than %d pages", id, maxTreeDepth)
	}
	p, err := db.page(id, seen)
	if err != nil {
		return err
	}
	if err := p.checkElements(); err != nil {
		return err
	}
	for i := p.count - 1; i >= 0; i-- {
		e := p.element(i)
		if p.flags == flagLeaf {
			err = f(e)
		} else {
			err = db.treeBack(e.child, seen, depth+1, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bucket is one bucket's place: a page of its own or, when small, inline in
// the leaf element that names it.
type bucket struct {
	root   uint64
	inline []byte // the page, when root is 0
}

func parseBucket(name, value []byte) (bucket, error) {
	if len(value) < bucketSize {
		return bucket{}, corruptf("bucket %q: a header of %d bytes", name, len(value))
	}
	b := bucket{root: order.Uint64(value)}
	if b.root == 0 {
		b.inline = value[bucketSize:]
	}
	return b, nil
}

// walkBucket walks a bucket wherever it lies.
func (db *database) walkBucket(b bucket, seen bitmap, f func(element) error) error {
	if b.root != 0 {
		return db.walk(b.root, seen, f)
	}
	p, err := inlinePage(b.inline)
	if err != nil {
		return err
	}
	w := walker{db: db, f: f}
	return w.leaf(&p, nil, nil)
}

// walkBucketBack is walkBack for a bucket wherever it lies.
func (db *database) walkBucketBack(b bucket, f func(element) error) error {
	if b.root != 0 {
		return db.walkBack(b.root, f)
	}
	p, err := inlinePage(b.inline)
	if err != nil {
		return err
	}
	for i := p.count - 1; i >= 0; i-- {
		if err := f(p.element(i)); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
	}
	return nil
}

func inlinePage(b []byte) (p page, err error) {
	if len(b) < pageHeader {
		return p, corruptf("an inline bucket of %d bytes", len(b))
	}
	p = page{flags: order.Uint16(b[8:]), count: int(order.Uint16(b[10:])), data: b}
	if p.flags != flagLeaf {
		return p, corruptf("an inline bucket with flags %#x", p.flags)
	}
	return p, p.checkElements()
}

// checkTree reaches every page of a bucket that this package does not know.
func (db *database) checkTree(b bucket, seen bitmap, depth int) error {
	if depth > maxBucketDepth {
		return corruptf("buckets nested deeper than %d", maxBucketDepth)
	}
	return db.walkBucket(b, seen, func(e element) error {
		if e.flags&bucketElement == 0 {
			return nil
		}
		child, err := parseBucket(e.key, e.value)
		if err != nil {
			return err
		}
		return db.checkTree(child, seen, depth+1)
	})
}

// checkPages finishes the page check after all trees were walked: the free
// list, where one is stored, must name exactly the pages that no tree reached.
// It returns how many are free.
func (db *database) checkPages(seen bitmap) (free int64, err error) {
	if db.freelist == noFreelist {
		return int64(db.pages) - seen.count(), nil
	}
	p, err := db.page(db.freelist, seen)
	if err != nil {
		return 0, err
	}
	if p.flags != flagFreelist {
		return 0, corruptf("page %d: flags %#x where the free list belongs", p.id, p.flags)
	}
	ids, count := p.data[pageHeader:], uint64(p.count)
	if count == 0xffff { // too many for the header: the first entry is the count
		count, ids = order.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		return 0, corruptf("page %d: a free list of %d entries in %d bytes", p.id, count, len(p.data))
	}
	for i := range count {
		id := order.Uint64(ids[8*i:])
		if id < 2 || id >= db.pages {
			return 0, corruptf("the free list names page %d of %d", id, db.pages)
		}
		if !seen.mark(id) {
			return 0, corruptf("page %d is free and in use, or free twice", id)
		}
	}
	if lost := int64(db.pages) - seen.count(); lost != 0 {
		return 0, corruptf("%d pages are neither in use nor free", lost)
	}
	return int64(count), nil
}
