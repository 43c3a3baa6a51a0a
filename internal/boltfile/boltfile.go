// Package boltfile edits a bbolt database in place, without the walk over all of
// its pages that opening one to write costs, and without a crash where a page is
// damaged. It is for files that nobody else has open and that count only when
// the whole work is done: nothing here is synced.
package boltfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"
)

// ErrDamaged: the file is no bbolt database, or not a whole one.
var ErrDamaged = errors.New("damaged database file")

// The parts of bbolt's file format (bbolt internal/common/{meta,page}.go,
// version 2) that forgoFreelist needs. Integers are in the machine's order.
const (
	boltMagic        = 0xED0CDAED
	boltVersion      = 2
	pageHeaderBytes  = 16 // id uint64, flags uint16, count uint16, overflow uint32
	metaPageFlag     = 0x04
	freelistPageFlag = 0x10
	metaBytes        = 64 // see meta
)

// meta is bbolt's meta page behind the page header, field by field.
type meta struct {
	Magic, Version, PageSize, Flags uint32
	Root, RootSequence              uint64
	Freelist                        uint64
	HighWater                       uint64 // the first page id beyond the used part of the file
	Txid                            uint64
	Checksum                        uint64 // FNV-64a of the bytes before it
}

func parseMeta(b []byte) (meta, error) {
	var m meta
	if _, err := binary.Decode(b[:metaBytes], binary.NativeEndian, &m); err != nil {
		return m, err
	}
	switch {
	case m.Magic != boltMagic:
		return m, errors.New("not a bolt database")
	case m.Version != boltVersion:
		return m, fmt.Errorf("bolt format version %d", m.Version)
	case m.Checksum != checksum(b):
		return m, errors.New("checksum of the meta page")
	case m.PageSize < 512 || m.PageSize > 1<<20 || m.PageSize&(m.PageSize-1) != 0:
		return m, fmt.Errorf("page size %d", m.PageSize)
	}
	return m, nil
}

func checksum(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b[:metaBytes-8])
	return h.Sum64()
}

func (m meta) bytes() []byte {
	b, _ := binary.Append(nil, binary.NativeEndian, m)
	binary.NativeEndian.PutUint64(b[metaBytes-8:], checksum(b))
	return b
}

func pageHeader(id uint64, flags uint16) []byte {
	b, _ := binary.Append(nil, binary.NativeEndian, struct {
		ID           uint64
		Flags, Count uint16
		Overflow     uint32
	}{ID: id, Flags: flags})
	return b
}

// newestMeta finds the meta page that counts: the valid one with the higher
// transaction id, as bbolt does.
func newestMeta(f *os.File) (meta, error) {
	page := make([]byte, pageHeaderBytes+metaBytes)
	if _, err := f.ReadAt(page, 0); err != nil {
		return meta{}, fmt.Errorf("%w: read the first page: %v", ErrDamaged, err)
	}
	newest, err0 := parseMeta(page[pageHeaderBytes:])
	found := err0 == nil
	sizes := []uint32{newest.PageSize}
	if !found {
		// Where the second page begins only the broken first one knows.
		sizes = []uint32{4096, 8192, 16384, 32768, 65536}
	}
	for _, size := range sizes {
		if _, err := f.ReadAt(page, int64(size)); err != nil {
			break
		}
		m, err := parseMeta(page[pageHeaderBytes:])
		if err == nil && m.PageSize == size && (!found || m.Txid > newest.Txid) {
			newest, found = m, true
		}
	}
	if !found {
		return meta{}, fmt.Errorf("%w: no valid meta page: %v", ErrDamaged, err0)
	}
	return newest, nil
}

// wholeMeta is newestMeta of a file that holds all the pages it should.
func wholeMeta(f *os.File) (meta, error) {
	m, err := newestMeta(f)
	if err != nil {
		return m, err
	}
	info, err := f.Stat()
	if err != nil {
		return m, err
	}
	if have := uint64(info.Size()) / uint64(m.PageSize); m.HighWater < 4 || m.HighWater > have {
		return m, fmt.Errorf("%w: the database has %d pages, the file %d", ErrDamaged, m.HighWater, have)
	}
	return m, nil
}

// forgoFreelist gives the database an empty list of free pages.
//
// etcd keeps no free list in the file, so that bbolt, opening it to write,
// walks every page, keeps a map entry for each and panics on the first that is
// damaged: by far the largest cost of a small edit. With an empty list on
// record it opens at once; new pages then go to the end of the file. The last
// commit of Edit drops the list again, and etcd, opening the file,
// finds by its own walk which pages are free. Until then nothing is lost but
// the few pages that the edit replaced.
func forgoFreelist(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := wholeMeta(f)
	if err != nil {
		return err
	}
	list := make([]byte, m.PageSize)
	copy(list, pageHeader(m.HighWater, freelistPageFlag))
	if _, err := f.WriteAt(list, int64(m.HighWater)*int64(m.PageSize)); err != nil {
		return fmt.Errorf("write a free list: %w", err)
	}
	m.Freelist = m.HighWater
	m.HighWater++
	m.Txid++
	slot := m.Txid % 2
	page := append(pageHeader(slot, metaPageFlag), m.bytes()...)
	if _, err := f.WriteAt(page, int64(slot)*int64(m.PageSize)); err != nil {
		return fmt.Errorf("write the meta page: %w", err)
	}
	return nil
}

// Edit opens the database at path and gives it to fn, which runs in the caller's
// goroutine and must have ended its transactions when it returns. What they
// commit is not synced: the caller syncs the file once. A damaged page met on
// the way is ErrDamaged, not a crash; the file is of no use then. mapped is how
// large the file may become before it must be mapped anew, a matter of speed; 0
// is its present size.
func Edit(path string, mapped int64, fn func(db *bbolt.DB) error) (err error) {
	if err := forgoFreelist(path); err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		// The database stays open then: closing it would wait for ever for a
		// lock that the transaction may still hold.
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: edit %s: %v", ErrDamaged, path, r)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		NoSync:     true,
		NoGrowSync: true,
		// While the file holds a list, be it one of our own free pages alone,
		// bbolt does not walk all pages to undo a failed transaction. That walk
		// ends the process where a page is damaged, in a goroutine of its own.
		NoFreelistSync:  false,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: int(mapped),
	})
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err = fn(db); err == nil {
		db.NoFreelistSync = true
		err = db.Update(func(*bbolt.Tx) error { return nil }) // drops the list: it lacks the pages that were free before
	}
	if cerr := db.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close: %w", cerr)
	}
	if err != nil {
		return fmt.Errorf("edit %s: %w", path, err)
	}
	return padToHighWater(path)
}

// padToHighWater makes the file as long as its pages need. bbolt leaves that to
// its writes when told not to sync, and the last page it set aside may be one
// that it did not write.
func padToHighWater(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := newestMeta(f)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if need := int64(m.HighWater) * int64(m.PageSize); info.Size() < need {
		if err := f.Truncate(need); err != nil {
			return fmt.Errorf("extend %s to %d bytes: %w", path, need, err)
		}
	}
	return nil
}
