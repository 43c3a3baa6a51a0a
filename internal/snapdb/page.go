package snapdb

import (
	"encoding/binary"
	"hash/fnv"
	"math"
)

// The format of a bbolt file: go.etcd.io/bbolt, internal/common/{page,meta,
// bucket}.go. Integers are in the byte order of the machine that wrote it,
// which is the byte order of the machine that may open it.
var order = binary.NativeEndian

const (
	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16 // branch: pos 4, ksize 4, page 8; leaf: flags 4, pos 4, ksize 4, vsize 4
	metaSize    = 64 // magic 4, version 4, page size 4, flags 4, root 16, freelist 8, pages 8, txid 8, checksum 8
	bucketSize  = 16 // root page 8, sequence 8

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10

	bucketElement = 0x01 // flag of a leaf element that is a bucket

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	noFreelist  = math.MaxUint64 // etcd stores no free list: it is found anew when the file is opened

	minPageSize = 1 << 10
	maxPageSize = 1 << 24
)

// meta is what of a meta page matters for reading.
type meta struct {
	pageSize uint64
	root     uint64 // page of the root bucket
	freelist uint64
	pages    uint64 // high water mark: pages in use have smaller ids
	txid     uint64
}

// readMeta decodes the meta page at offset off, if a valid one is there.
func readMeta(data []byte, off uint64) (meta, bool) {
	if off > uint64(len(data)) || uint64(len(data))-off < pageHeader+metaSize {
		return meta{}, false
	}
	b := data[off+pageHeader:][:metaSize]
	sum := fnv.New64a()
	sum.Write(b[:56])
	m := meta{
		pageSize: uint64(order.Uint32(b[8:])),
		root:     order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]),
		pages:    order.Uint64(b[40:]),
		txid:     order.Uint64(b[48:]),
	}
	ok := order.Uint32(b) == metaMagic && order.Uint32(b[4:]) == metaVersion &&
		order.Uint64(b[56:]) == sum.Sum64() &&
		order.Uint16(data[off+8:]) == flagMeta &&
		m.pageSize >= minPageSize && m.pageSize <= maxPageSize && m.pageSize&(m.pageSize-1) == 0
	return m, ok
}

// chooseMeta returns the valid meta page of the latest transaction, as bbolt
// does, and how many of the two are damaged.
func chooseMeta(data []byte) (m meta, damaged int, err error) {
	first, ok0 := readMeta(data, 0)
	var second meta
	ok1 := false
	if ok0 {
		second, ok1 = readMeta(data, first.pageSize)
		ok1 = ok1 && second.pageSize == first.pageSize
	} else {
		// The second one lies at the page size, which only it can tell.
		for size := uint64(minPageSize); size <= maxPageSize && !ok1; size <<= 1 {
			second, ok1 = readMeta(data, size)
			ok1 = ok1 && second.pageSize == size
		}
	}
	switch {
	case !ok0 && !ok1:
		return meta{}, 2, corruptf("neither meta page is valid: not an etcd database, or its beginning is damaged")
	case ok0 && (!ok1 || first.txid > second.txid):
		m = first
	default:
		m = second
	}
	if !ok0 || !ok1 {
		damaged = 1
	}
	if m.pages > uint64(len(data))/m.pageSize {
		return meta{}, damaged, corruptf("the file is cut short: %d pages of %d bytes in %d bytes", m.pages, m.pageSize, len(data))
	}
	if m.pages < 3 {
		return meta{}, damaged, corruptf("%d pages", m.pages)
	}
	return m, damaged, nil
}

// page is one page with its overflow pages, or an inline bucket's.
type page struct {
	id    uint64
	flags uint16
	count int
	data  []byte // from the header on
}

// An element of a page. Slices point into the file.
type element struct {
	flags uint32
	child uint64 // branch
	key   []byte
	value []byte // leaf
}

// element decodes element i; checkElements has passed.
func (p *page) element(i int) element {
	off := pageHeader + i*elementSize
	h := p.data[off : off+elementSize : off+elementSize]
	if p.flags == flagBranch {
		k := off + int(order.Uint32(h))
		return element{child: order.Uint64(h[8:]), key: p.data[k : k+int(order.Uint32(h[4:]))]}
	}
	k := off + int(order.Uint32(h[4:]))
	v := k + int(order.Uint32(h[8:]))
	end := v + int(order.Uint32(h[12:]))
	return element{flags: order.Uint32(h), key: p.data[k:v:end], value: p.data[v:end:end]}
}

// checkElements makes sure that every element's key and value lie inside the
// page, behind the headers and in order without overlap. The last is what
// bbolt writes, and what bounds the work on a hostile file by its size.
func (p *page) checkElements() error {
	if p.flags != flagBranch && p.flags != flagLeaf {
		return corruptf("page %d: flags %#x where a branch or a leaf belongs", p.id, p.flags)
	}
	size := uint64(len(p.data))
	end := uint64(pageHeader + p.count*elementSize)
	if end > size {
		return corruptf("page %d: %d elements do not fit", p.id, p.count)
	}
	if p.flags == flagBranch && p.count == 0 {
		return corruptf("page %d: an empty branch", p.id)
	}
	for i := range p.count {
		off := uint64(pageHeader + i*elementSize)
		h := p.data[off:][:elementSize]
		var start, klen, vlen uint64
		if p.flags == flagBranch {
			start, klen = off+uint64(order.Uint32(h)), uint64(order.Uint32(h[4:]))
		} else {
			start, klen, vlen = off+uint64(order.Uint32(h[4:])), uint64(order.Uint32(h[8:])), uint64(order.Uint32(h[12:]))
		}
		if klen == 0 {
			return corruptf("page %d: element %d has an empty key", p.id, i)
		}
		if start < end || start+klen+vlen > size {
			return corruptf("page %d: element %d lies outside its place", p.id, i)
		}
		end = start + klen + vlen
	}
	return nil
}
