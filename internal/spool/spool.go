// Package spool is a bounded log on disk: records wait in it between the one
// who must not be kept waiting and those who may be slow. It survives the death of
// the process, up to what was flushed, and a torn end; it is not durable against
// the loss of power, for nothing is ever synced: what it holds can be had again
// from where it came, and the disk is often etcd's.
//
// One goroutine appends, and several may read beside it, each with its own
// Reader. What all have done with is released.
package spool

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
)

// Position counts bytes since the log began. The ends of records are positions
// to read from and to release up to. They only grow, but for a crash: opened
// again, a log may end before what had not reached the disk, and goes on from
// there.
type Position int64

// MaxPayload bounds one record, in bytes.
const MaxPayload = 64 << 20

var (
	ErrFull     = errors.New("spool is full")                    // MaxBytes would be passed
	ErrReleased = errors.New("released from the spool")          // the reader came too late
	ErrDamaged  = errors.New("damaged spool")                    // the bytes are not what was appended
	ErrLocked   = errors.New("spool is in use by somebody else") // another process, or this one
)

// Options bound a log.
type Options struct {
	MaxBytes  int64 // that are kept; 0 is 1 GiB
	FileBytes int64 // begin a new file behind so many; 0 is 32 MiB, and an eighth of MaxBytes is the most
}

const (
	bufferBytes = 64 << 10
	suffix      = ".spool"
)

// Log is an open log. Its folder is locked until Close.
type Log struct {
	dir  string
	opts Options
	lock *os.File

	start, end atomic.Int64 // written with mu held; readable while a slow disk holds it

	mu      sync.Mutex
	files   []int64  // where each begins, ascending; start is files[0]
	active  *os.File // the last of them, open for writing
	flushed int64    // up to here the bytes are in files; always at the end of a record
	buffer  []byte   // and from here on in memory, up to end
	closed  bool
}

// Open opens the log in the folder dir, which is made (0700) if need be. What is
// torn or damaged there, and all that lies behind it, is removed. Errors wrap
// ErrLocked where another has it open.
func Open(dir string, opts Options) (*Log, error) {
	opts.MaxBytes = cmp.Or(opts.MaxBytes, 1<<30)
	opts.FileBytes = min(cmp.Or(opts.FileBytes, 32<<20), max(1, opts.MaxBytes/8))
	if opts.MaxBytes < 0 || opts.FileBytes < 0 {
		return nil, fmt.Errorf("open spool %s: negative size", dir)
	}
	l := &Log{dir: dir, opts: opts}
	if err := l.open(); err != nil {
		l.closeFiles()
		return nil, fmt.Errorf("open spool %s: %w", dir, err)
	}
	return l, nil
}

func (l *Log) open() (err error) {
	if err := durable.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	if l.lock, err = os.OpenFile(l.dir, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	if err := unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	} else if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	// The records are plain: a folder that was made by hand is closed to others.
	if err := l.lock.Chmod(0o700); err != nil {
		return err
	}
	return l.recover()
}

// Append adds a record and returns its end. It is in memory, or in the page
// cache, and readers see it at once. After an error it is not in the log and
// nothing else has changed: ErrFull until something is released, syscall.ENOSPC
// (wrapped) until the disk has room.
func (l *Log) Append(payload []byte) (Position, error) {
	if len(payload) == 0 || len(payload) > MaxPayload {
		return 0, fmt.Errorf("append %d bytes to the spool: a record has 1 to %d", len(payload), MaxPayload)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, l.errClosed()
	}
	var header [maxHeader]byte
	frame := appendHeader(header[:0], Position(l.end.Load()), payload)
	size := int64(len(frame) + len(payload))
	if l.end.Load()+size-l.start.Load() > l.opts.MaxBytes {
		return 0, fmt.Errorf("append %d bytes: %w: %d of %d bytes are taken", size, ErrFull, l.end.Load()-l.start.Load(), l.opts.MaxBytes)
	}
	if err := l.makeRoom(size); err != nil {
		return 0, err
	}
	before := len(l.buffer)
	l.buffer = append(append(l.buffer, frame...), payload...)
	if size > bufferBytes { // alone in the buffer, and not kept in memory
		if err := l.flush(); err != nil {
			l.buffer = l.buffer[:before]
			return 0, err
		}
	}
	return Position(l.end.Add(size)), nil
}

// makeRoom flushes if the next record does not fit into the buffer, and begins
// a new file if the last one is long enough.
func (l *Log) makeRoom(size int64) error {
	full := l.end.Load()-l.files[len(l.files)-1] >= l.opts.FileBytes
	if full || len(l.buffer) > 0 && int64(len(l.buffer))+size > bufferBytes {
		if err := l.flush(); err != nil {
			return err
		}
	}
	if cap(l.buffer) > 2*bufferBytes {
		l.buffer = nil
	}
	if l.buffer == nil {
		l.buffer = make([]byte, 0, bufferBytes)
	}
	if full {
		return l.begin(l.flushed)
	}
	return nil
}

// begin makes the file that begins at a position and appends there from now on.
func (l *Log) begin(at int64) error {
	f, err := os.OpenFile(l.path(at), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if l.active != nil { // nothing of it is in memory
		// Where a failure left something behind its end, the next file would not
		// join on.
		if err := l.active.Truncate(at - l.files[len(l.files)-1]); err != nil {
			f.Close()
			return fmt.Errorf("spool: %w", err)
		}
		l.active.Close()
	}
	l.active = f
	l.files = append(l.files, at)
	return nil
}

// flush writes the buffer. After an error the file ends where it did, and the
// buffer is whole, to be tried again.
func (l *Log) flush() error {
	if len(l.buffer) == 0 {
		return nil
	}
	offset := l.flushed - l.files[len(l.files)-1]
	if _, err := l.active.WriteAt(l.buffer, offset); err != nil {
		// Should this fail too, then whole records may stay behind the end, and a
		// torn one: Open takes the former, and they were appended.
		l.active.Truncate(offset)
		return fmt.Errorf("spool: %w", err)
	}
	l.flushed += int64(len(l.buffer))
	l.buffer = l.buffer[:0]
	return nil
}

// Flush gives to the operating system what was appended, so that it outlives
// the process. After an error it is in memory still, and for readers.
func (l *Log) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.errClosed()
	}
	return l.flush()
}

// Start is where the oldest record kept begins, and End where the newest ends.
// Neither waits for the disk.
func (l *Log) Start() Position { return Position(l.start.Load()) }
func (l *Log) End() Position   { return Position(l.end.Load()) }

// Bytes is how many are kept, of MaxBytes.
func (l *Log) Bytes() int64 {
	start := l.start.Load() // first: it never passes end
	return l.end.Load() - start
}

// Release says that nobody needs what lies below the position any more. Whole
// files go; what is at the end of the log goes entirely.
func (l *Log) Release(upTo Position) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.errClosed()
	}
	if end := l.end.Load(); int64(upTo) > end {
		return fmt.Errorf("release the spool up to %d, behind its end %d", upTo, end)
	}
	for len(l.files) > 1 && l.files[1] <= int64(upTo) {
		if err := os.Remove(l.path(l.files[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("spool: %w", err)
		}
		l.files = l.files[1:]
		l.start.Store(l.files[0])
	}
	if int64(upTo) == l.end.Load() {
		return l.empty()
	}
	return nil
}

// Reset drops all records. Positions go on from End.
func (l *Log) Reset() error { return l.Release(l.End()) }

// empty makes the only file left an empty one that begins at the end. It needs
// no space on the disk, which may be full.
func (l *Log) empty() error {
	end, begins := l.end.Load(), l.files[0]
	if end == begins {
		return nil
	}
	if err := os.Rename(l.path(begins), l.path(end)); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	// The old bytes are wrong at the new position, so that a crash here, or a
	// failure, leaves nothing that counts; writing overwrites them.
	l.files[0], l.flushed, l.buffer = end, end, l.buffer[:0]
	l.start.Store(end)
	if err := l.active.Truncate(0); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// Close flushes and lets go of the folder. It does so even when it fails.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return errors.Join(l.flush(), l.closeFiles())
}

func (l *Log) closeFiles() error {
	var errs []error
	for _, f := range []*os.File{l.active, l.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

func (l *Log) errClosed() error { return fmt.Errorf("spool %s: %w", l.dir, fs.ErrClosed) }

func (l *Log) path(begins int64) string {
	return filepath.Join(l.dir, fmt.Sprintf("%020d%s", begins, suffix))
}

// A record is framed by its length as a varint, and a CRC-32C (big-endian) of
// its bytes that begins not with zero but with the record's position. So no bytes
// from elsewhere are a record, nor is a run of zeros, which a crash may leave.
const maxHeader = binary.MaxVarintLen64 + crc32.Size

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendHeader(dst []byte, at Position, payload []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(payload)))
	return binary.BigEndian.AppendUint32(dst, checksum(at, payload))
}

func checksum(at Position, payload []byte) uint32 {
	return crc32.Update(uint32(at)^uint32(at>>32), castagnoli, payload)
}

// list returns where the folder's files begin and end, ascending.
func (l *Log) list() (files [][2]int64, err error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		digits, ours := strings.CutSuffix(entry.Name(), suffix)
		begins, err := strconv.ParseInt(digits, 10, 64)
		if !ours || err != nil || filepath.Base(l.path(begins)) != entry.Name() || begins < 0 {
			continue // somebody else's
		}
		info, err := entry.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is not a regular file", entry.Name())
		}
		files = append(files, [2]int64{begins, begins + info.Size()})
	}
	slices.SortFunc(files, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	return files, nil
}
