// Package salvage takes etcd's state from a data directory that has survived its
// cluster, as the start of a new one.
//
// Open finds the database and the write-ahead log and keeps every other process
// from writing to them; nothing of the directory is ever written. Inspect says
// what they hold. etcd commits its database ten times a second, and the log has
// each change before it is acknowledged: so the newest changes are often in the
// log alone. Apply brings a copy of the database to the log's end, with the code
// by which etcd itself does it when it starts.
//
// What a member's log holds beyond the commit index that it knew is told apart
// (Log.Uncertain): of a sole member all of it counts, of one among several it may
// or may not have been acknowledged.
package salvage

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/snapdb"
)

// What a caller may branch on.
var (
	ErrNoMember = errors.New("not the data directory of an etcd member")
	ErrInUse    = errors.New("the data directory is in use")
	ErrChanged  = errors.New("the data directory has changed")
	ErrDamaged  = errors.New("the write-ahead log is damaged")
	ErrUnknown  = errors.New("a change that this version does not know")
)

// Source is an open data directory. As long as it is open, no etcd can start on it.
type Source struct {
	Dir string // absolute, with member below it

	db    *os.File
	logs  []*os.File // in order; empty: there is no log
	locks []*os.File // those and the database, as locked
}

// Found is what a data directory holds.
type Found struct {
	Dir      string        `json:"dir"`
	Database *snapdb.Facts `json:"-"`
	Log      Log           `json:"log"`

	// Written is when the newest of its files was: the member lived until then.
	Written time.Time `json:"written"`

	id identity
}

// identity is what a file is known again by.
type identity struct {
	size  int64
	mtime time.Time
	logs  string
}

// Voters counts the members that the database names, or the log adds, and that
// are no learners.
func (f *Found) Voters() int {
	all := map[uint64]bool{}
	for _, m := range f.Database.Members {
		if !m.Learner {
			all[m.ID] = true
		}
	}
	for _, id := range f.Log.joined {
		all[id] = true
	}
	return len(all)
}

// Sole says that the member was alone: whatever it has acknowledged is in its log,
// and nobody else had a say in it.
func (f *Found) Sole() bool { return f.Voters() == 1 }

// Open opens a data directory, read-only. ErrInUse if a process has it open or
// the locks are taken, ErrNoMember with what it seems to be instead.
func Open(dir string) (_ *Source, err error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	if err := looksRight(path); err != nil {
		return nil, err
	}
	s := &Source{Dir: path}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.db, err = os.Open(filepath.Join(path, "member", "snap", "db")); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	s.locks = append(s.locks, s.db)
	if err := lockDatabase(s.db); err != nil {
		return nil, err
	}
	names, err := logNames(filepath.Join(path, "member", "wal"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("open the write-ahead log: %w", err)
		}
		s.locks, s.logs = append(s.locks, f), append(s.logs, f)
		if err := lockLog(f); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Close gives the directory free. It may be called again.
func (s *Source) Close() error {
	var errs []error
	for _, f := range s.locks {
		errs = append(errs, f.Close())
	}
	s.locks, s.logs, s.db = nil, nil, nil
	return errors.Join(errs...)
}

// looksRight says what a path is instead of a data directory.
func looksRight(path string) error {
	is := func(elem ...string) bool {
		_, err := os.Lstat(filepath.Join(append([]string{path}, elem...)...))
		return err == nil
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("open the data directory: %w", err)
	case !info.IsDir():
		return fmt.Errorf("%w: %s is a file. If it is a snapshot, \"lifeboat import\" takes it in as a backup; if it is a database file from a member, put it in DIR/member/snap/db and give DIR", ErrNoMember, path)
	case is("member", "snap", "db"):
		return nil
	case is("snap", "db"):
		return fmt.Errorf("%w: %s is the member folder in one: give %s", ErrNoMember, path, filepath.Dir(path))
	case is("db"):
		return fmt.Errorf("%w: %s holds a database without a member folder: move it to DIR/member/snap/db, with its write-ahead log in DIR/member/wal, and give DIR", ErrNoMember, path)
	case is("member"):
		return fmt.Errorf("%w: %s has no database", ErrNoMember, filepath.Join(path, "member", "snap"))
	}
	return fmt.Errorf("%w: %s has no folder \"member\"", ErrNoMember, path)
}

// logNames are the files of a write-ahead log, in order. What is broken or was only
// prepared has other names.
func logNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for the write-ahead log: %w", err)
	}
	var names []string
	for _, e := range entries {
		var seq, index uint64
		if n, err := fmt.Sscanf(e.Name(), "%016x-%016x.wal", &seq, &index); n == 2 && err == nil && len(e.Name()) == len("0000000000000000-0000000000000000.wal") {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Inspect reads the database once, every page of it, and the log twice. Damage to
// the database is snapdb.ErrCorrupt; what is wrong with the log is told in Found.
func (s *Source) Inspect(ctx context.Context, progress func(done, total int64)) (*Found, error) {
	f := &Found{Dir: s.Dir}
	var err error
	if f.id, f.Written, err = s.identify(); err != nil {
		return nil, err
	}
	if f.Database, err = snapdb.Inspect(ctx, s.db.Name(), snapdb.Options{Progress: progress}); err != nil {
		return nil, fmt.Errorf("the database in %s: %w", s.Dir, err)
	}
	if f.Database.HasTrailer {
		return nil, fmt.Errorf("%w: %s is a snapshot file, not a member's database: \"lifeboat import\" takes it in as a backup", ErrNoMember, s.db.Name())
	}
	log, err := s.readLog(ctx, f.Database.ConsistentIndex)
	if err != nil {
		return nil, err
	}
	f.Log = log.Log
	return f, nil
}

// Unchanged says that the directory is as it was inspected; ErrChanged if not.
func (s *Source) Unchanged(f *Found) error {
	id, _, err := s.identify()
	if err == nil && id != f.id {
		err = fmt.Errorf("%w since it was looked at: %s", ErrChanged, s.Dir)
	}
	return err
}

func (s *Source) identify() (id identity, written time.Time, err error) {
	info, err := s.db.Stat()
	if err != nil {
		return id, written, err
	}
	id.size, id.mtime, written = info.Size(), info.ModTime(), info.ModTime()
	for _, l := range s.logs {
		if info, err = l.Stat(); err != nil {
			return id, written, err
		}
		id.logs += fmt.Sprintf("%s %d %d\n", filepath.Base(l.Name()), info.Size(), info.ModTime().UnixNano())
		if info.ModTime().After(written) {
			written = info.ModTime()
		}
	}
	return id, written, nil
}

// Database is the path of the database, to be read.
func (s *Source) Database() string { return s.db.Name() }

// TrailerBytes is how much longer a Snapshot is than its database.
const TrailerBytes = sha256.Size

// Snapshot is the database as the maintenance API would stream it: with its
// SHA-256 behind it. size is how many bytes come.
func (s *Source) Snapshot() (r io.Reader, size int64, err error) {
	info, err := s.db.Stat()
	if err != nil {
		return nil, 0, err
	}
	sum := sha256.New()
	body := io.NewSectionReader(s.db, 0, info.Size())
	return io.MultiReader(io.TeeReader(body, sum), &trailer{of: sum}), info.Size() + sha256.Size, nil
}

// trailer reads a hash once all before it is read.
type trailer struct {
	of   hash.Hash
	rest []byte
	set  bool
}

func (t *trailer) Read(p []byte) (int, error) {
	if !t.set {
		t.rest, t.set = t.of.Sum(nil), true
	}
	if len(t.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// ClusterID is whose the directory is, by its log; 0: not known.
func (f *Found) ClusterID() manifest.EtcdID { return f.Log.ClusterID }
