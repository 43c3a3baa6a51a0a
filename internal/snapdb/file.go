package snapdb

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// trailerSize is the length of the SHA-256 that the maintenance API appends to
// a snapshot. A database file is a whole number of pages, so a remainder of 32
// bytes is what tells the two apart (etcdutl: snapshot/v3_snapshot.go).
const trailerSize = sha256.Size

func hasTrailer(size int64) bool { return size%512 == trailerSize }

// withFile maps the file at path and calls f with its bytes, without the
// trailer. The size is what it was at opening. A page that can't be read then
// (a failing disk, a file cut short by someone else meanwhile) is an error and
// not the end of the process.
func withFile(path string, f func(data []byte, size int64) error) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if !info.Mode().IsRegular() || size != int64(int(size)) {
		return fmt.Errorf("%s is not a file of a size that can be mapped", path)
	}
	length := size
	if hasTrailer(size) {
		length -= trailerSize
	}
	if length == 0 {
		return corruptf("the file has %d bytes", size)
	}
	data, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(data)) }()

	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // a memory fault: see debug.SetPanicOnFault
			err = fmt.Errorf("read %s: a page of the file could not be read", path)
		default:
			panic(r)
		}
	}()
	return f(data[:length:length], size)
}

// VerifyTrailer checks the SHA-256 at the end of a snapshot file against all
// that is before it. A file without one, such as a copy of a member's database
// file, is ErrNoTrailer; a wrong one is ErrCorrupt. A backup hashes while it
// streams and does not need this.
func VerifyTrailer(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("verify the hash of a snapshot: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("verify the hash of %s: %w", path, err)
	}
	if !hasTrailer(info.Size()) {
		return fmt.Errorf("verify the hash of %s: %w", path, ErrNoTrailer)
	}
	h := sha256.New()
	left := info.Size() - trailerSize
	buf := make([]byte, 1<<20)
	for left > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(file, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return fmt.Errorf("verify the hash of %s: %w", path, err)
		}
		h.Write(buf[:n])
		left -= int64(n)
	}
	var want [trailerSize]byte
	if _, err := io.ReadFull(file, want[:]); err != nil {
		return fmt.Errorf("verify the hash of %s: %w", path, err)
	}
	if [trailerSize]byte(h.Sum(nil)) != want {
		return fmt.Errorf("verify the hash of %s: %w", path, corruptf("the SHA-256 at its end does not match"))
	}
	return nil
}
