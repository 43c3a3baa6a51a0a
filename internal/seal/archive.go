package seal

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"time"
)

// Type is what an archive's entry is.
type Type byte

// The only types that an archive holds.
const (
	TypeFile    Type = '0'
	TypeDir     Type = '5'
	TypeSymlink Type = '2'
)

// Header describes one entry.
type Header struct {
	Name     string      // relative, slash-separated, clean: see CheckName
	Type     Type        // set by AddFile, AddDir and AddSymlink
	Mode     fs.FileMode // permissions; on directories also ModeSetgid and ModeSticky
	UID, GID int         // numeric; names are not kept
	ModTime  time.Time   // to the nanosecond
	Size     int64       // bytes; 0 unless a file
	Linkname string      // a symlink's target, verbatim
}

// RefusedError says why an entry may not be in an archive.
type RefusedError struct {
	Name   string // of the entry
	Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("archive entry %q refused: %s", e.Name, e.Reason)
}

func refuse(name, format string, args ...any) error {
	return &RefusedError{Name: name, Reason: fmt.Sprintf(format, args...)}
}

// ArchiveWriter writes a POSIX tar that any tar extracts. What its reader
// would refuse, it refuses to write, with a *RefusedError and nothing written:
// the caller may leave such an entry out and go on.
type ArchiveWriter struct {
	tar   *tar.Writer
	names names
	buf   []byte
	err   error // sticky: a half-written entry can't be repaired
}

// NewArchiveWriter begins an archive on w.
func NewArchiveWriter(w io.Writer) *ArchiveWriter {
	return &ArchiveWriter{tar: tar.NewWriter(w), names: make(names), buf: make([]byte, bufferSize)}
}

// AddFile adds a regular file of exactly h.Size bytes from r. Fewer or more
// are an error, which spoils the archive.
func (a *ArchiveWriter) AddFile(h Header, r io.Reader) error {
	h.Type = TypeFile
	if err := a.add(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{a.tar}, struct{ io.Reader }{io.LimitReader(r, h.Size)}, a.buf)
	if err == nil && n < h.Size {
		err = fmt.Errorf("%d bytes, want %d: %w", n, h.Size, io.ErrUnexpectedEOF)
	}
	if err == nil {
		var one [1]byte
		if n, _ := io.ReadFull(r, one[:]); n > 0 {
			err = fmt.Errorf("more than %d bytes", h.Size)
		}
	}
	if err != nil {
		a.err = fmt.Errorf("archive %s: %w", h.Name, err)
	}
	return a.err
}

// AddDir adds a directory.
func (a *ArchiveWriter) AddDir(h Header) error {
	h.Type = TypeDir
	return a.add(h)
}

// AddSymlink adds a symbolic link to h.Linkname, which is not judged: whether
// to follow or create such a link is for whoever restores it.
func (a *ArchiveWriter) AddSymlink(h Header) error {
	h.Type = TypeSymlink
	return a.add(h)
}

// Close ends the archive. It does not close the writer below.
func (a *ArchiveWriter) Close() error {
	if a.err != nil {
		return a.err
	}
	if err := a.tar.Close(); err != nil {
		a.err = fmt.Errorf("end archive: %w", err)
	}
	return a.err
}

func (a *ArchiveWriter) add(h Header) error {
	if a.err != nil {
		return a.err
	}
	if err := h.check(); err != nil {
		return err
	}
	if err := a.names.add(h.Name, h.Type); err != nil {
		return err
	}
	if err := a.tar.WriteHeader(h.tar()); err != nil {
		a.err = fmt.Errorf("archive %s: %w", h.Name, err)
	}
	return a.err
}

// check holds what must be true of one entry alone.
func (h *Header) check() error {
	if err := CheckName(h.Name); err != nil {
		return err
	}
	special := h.Mode &^ fs.ModePerm
	if h.Type == TypeDir {
		special &^= fs.ModeSetgid | fs.ModeSticky
	}
	switch {
	case special != 0:
		return refuse(h.Name, "mode %v has special bits", h.Mode)
	case h.UID < 0 || h.GID < 0 || h.UID > math.MaxUint32-1 || h.GID > math.MaxUint32-1:
		return refuse(h.Name, "owner %d:%d is out of range", h.UID, h.GID)
	case h.Size < 0 || h.Size > 0 && h.Type != TypeFile:
		return refuse(h.Name, "size %d", h.Size)
	case h.Type == TypeSymlink && (h.Linkname == "" || len(h.Linkname) > maxPath || !printable(h.Linkname)):
		return refuse(h.Name, "link target %.80q", h.Linkname)
	case h.Type != TypeSymlink && h.Linkname != "":
		return refuse(h.Name, "a link target on what is not a link")
	case h.ModTime.Year() < 1 || h.ModTime.Year() > 9999:
		return refuse(h.Name, "time of modification in year %d", h.ModTime.Year())
	}
	return nil
}

// The special bits of a tar header's mode.
const (
	tarSetuid = 0o4000
	tarSetgid = 0o2000
	tarSticky = 0o1000
)

func (h *Header) tar() *tar.Header {
	t := &tar.Header{
		Typeflag: byte(h.Type), Name: h.Name, Mode: int64(h.Mode.Perm()), Uid: h.UID, Gid: h.GID,
		ModTime: h.ModTime, Size: h.Size, Linkname: h.Linkname,
		Format: tar.FormatPAX, // for times below the second
	}
	if h.Type == TypeDir {
		t.Name += "/"
	}
	if h.Mode&fs.ModeSetgid != 0 {
		t.Mode |= tarSetgid
	}
	if h.Mode&fs.ModeSticky != 0 {
		t.Mode |= tarSticky
	}
	return t
}

// Limits bound an archive that is read.
type Limits struct {
	Files int   // entries of all types, and the folders that names imply; 0 means a million
	Bytes int64 // sum of the files' sizes; 0 means 1 TiB
}

// ArchiveReader reads an archive and trusts nothing in it.
type ArchiveReader struct {
	tar    *tar.Reader
	src    *zeroTail
	names  names
	limits Limits
	bytes  int64
	end    int64 // where the current entry's data ends in src
	err    error
}

// NewArchiveReader reads the archive that r holds, up to the end of r.
func NewArchiveReader(r io.Reader, limits Limits) *ArchiveReader {
	if limits.Files == 0 {
		limits.Files = 1 << 20
	}
	if limits.Bytes == 0 {
		limits.Bytes = 1 << 40
	}
	src := &zeroTail{src: r}
	return &ArchiveReader{tar: tar.NewReader(src), src: src, names: make(names), limits: limits}
}

// Next goes to the next entry, whose bytes Read then yields. An entry that
// may not be there is a *RefusedError, and ends the reading. io.EOF means that
// the archive is whole and that r, too, ended well.
func (a *ArchiveReader) Next() (*Header, error) {
	if a.err != nil {
		return nil, a.err
	}
	h, err := a.next()
	if err != nil {
		a.err = err
		return nil, err
	}
	return h, nil
}

func (a *ArchiveReader) next() (*Header, error) {
	t, err := a.tar.Next()
	if err == io.EOF {
		return nil, a.finish()
	}
	if err != nil {
		return nil, a.failed(err)
	}
	h, err := fromTar(t)
	if err != nil {
		return nil, err
	}
	if h.Size > a.limits.Bytes-a.bytes {
		return nil, refuse(h.Name, "more than %d bytes of files", a.limits.Bytes)
	}
	a.bytes += h.Size
	if err := a.names.add(h.Name, h.Type); err != nil {
		return nil, err
	}
	if len(a.names) > a.limits.Files {
		return nil, refuse(h.Name, "more than %d entries", a.limits.Files)
	}
	const block = 512
	a.end = a.src.read + (h.Size+block-1)/block*block
	return h, nil
}

// Read yields the current file's bytes, exactly as many as its header says.
func (a *ArchiveReader) Read(p []byte) (int, error) {
	if a.err != nil {
		return 0, a.err
	}
	n, err := a.tar.Read(p)
	if err != nil && err != io.EOF {
		a.err = a.failed(err)
		return n, a.err
	}
	return n, err
}

// finish requires what the tar package does not: both of the empty blocks at
// the archive's end, and only zeros after it. Reading src to its end makes a
// Reader below check its sums.
func (a *ArchiveReader) finish() error {
	if _, err := io.Copy(io.Discard, a.src); err != nil {
		return a.failed(err)
	}
	const trailer = 2 * 512
	tail := a.src.read - a.end
	if tail < trailer || a.src.zeros < tail {
		return a.failed(errors.New("it does not end in empty blocks"))
	}
	return io.EOF
}

func (a *ArchiveReader) failed(err error) error {
	if a.src.err != nil {
		return fmt.Errorf("read archive: %w", a.src.err)
	}
	return fmt.Errorf("read archive: %w: %w", ErrDamaged, hideEOF(err))
}

// zeroTail counts bytes, and how many zeros the last of them are.
type zeroTail struct {
	src   io.Reader
	read  int64
	zeros int64
	err   error // of src, other than io.EOF
}

func (z *zeroTail) Read(p []byte) (int, error) {
	n, err := z.src.Read(p)
	z.read += int64(n)
	i := n
	for i > 0 && p[i-1] == 0 {
		i--
	}
	if i > 0 {
		z.zeros = 0
	}
	z.zeros += int64(n - i)
	if err != nil && err != io.EOF {
		z.err = err
	}
	return n, err
}
