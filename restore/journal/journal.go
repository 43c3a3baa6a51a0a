// Package journal keeps on disk how far a restore of a whole machine has come,
// so that one that is killed at any moment can be gone on with or undone.
//
// Each restore has a folder of its own, <folder>/<id>, with the file
// journal.json: written anew, synced and renamed into place at every step. A step
// is noted before it changes anything and after it is done; one that was begun
// and is not done may have been done in any part. Doing and undoing a step must
// therefore come out right whatever was there before. That it is to be undone is
// noted before the first step is. A lock on the folder lets one process at a time
// have it.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
)

// What a caller may want to tell apart.
var (
	// ErrBusy says that another process has a restore under way.
	ErrBusy = errors.New("another restore runs on this machine")
	// ErrDamaged says that a journal can't be read.
	ErrDamaged = errors.New("the restore's journal is damaged")
	// ErrNewer says that a newer lifeboat wrote it.
	ErrNewer = errors.New("the restore was begun by a newer lifeboat")
)

// FileName is the journal's in the restore's own folder.
const FileName = "journal.json"

const (
	format    = 1
	lockName  = "lock"
	mostBytes = 16 << 20 // of a journal
)

// Outcome is how a restore ended.
type Outcome string

// The outcomes.
const (
	UnderWay Outcome = ""        // or killed
	Done     Outcome = "done"    // all steps are
	Aborted  Outcome = "aborted" // all that were begun are undone
)

// Record is what is kept of a restore.
type Record struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Outcome Outcome   `json:"outcome"`
	// AbortBegun is when it was begun to be undone; from then on steps that say they
	// are done may be undone in any part.
	AbortBegun *time.Time      `json:"abortBegun,omitempty"`
	Order      json.RawMessage `json:"order"` // what was asked for, by whoever began it; the same again goes on
	Steps      []Step          `json:"steps"` // in the order in which they were begun
}

// Step is what is kept of one step.
type Step struct {
	Name   string          `json:"name"`
	Begun  time.Time       `json:"begun"`
	Done   *time.Time      `json:"done,omitempty"`
	Undone *time.Time      `json:"undone,omitempty"`
	Note   json.RawMessage `json:"note,omitempty"` // what undoing it needs to know
}

// Folder holds the journals of a machine. It is locked until Close.
type Folder struct {
	path string
	lock *os.File
	now  func() time.Time
}

// Open makes the folder where it is missing and locks it. ErrBusy if another
// process has it.
func Open(path string, now func() time.Time) (*Folder, error) {
	if err := durable.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of restores: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the folder of restores: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is locked", ErrBusy, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Folder{path: path, lock: lock, now: now}, nil
}

// Close gives the folder free.
func (f *Folder) Close() error { return f.lock.Close() }

// List reads all journals, the newest first. Those that can't be read are in
// the error, and do not hide the others.
func (f *Folder) List() (list []*Journal, err error) {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return nil, fmt.Errorf("list the restores: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		j, err := f.load(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist): // killed before the first word
		case err != nil:
			errs = append(errs, err)
		default:
			list = append(list, j)
		}
	}
	slices.SortFunc(list, func(a, b *Journal) int { return b.record.Created.Compare(a.record.Created) })
	return list, errors.Join(errs...)
}

// Begin writes a new journal. The id becomes a folder's name.
func (f *Folder) Begin(id string, order any) (*Journal, error) {
	if id == "" || id[0] == '.' || id != filepath.Base(id) {
		return nil, fmt.Errorf("begin a restore: %q can't be its id", id)
	}
	text, err := json.Marshal(order)
	if err != nil {
		return nil, fmt.Errorf("begin a restore: %w", err)
	}
	j := &Journal{folder: f, record: Record{Format: format, ID: id, Created: f.now().UTC(), Order: text}}
	if _, err := os.Lstat(filepath.Join(j.Dir(), FileName)); err == nil {
		return nil, fmt.Errorf("begin a restore: there is one with the id %s", id)
	}
	if err := durable.MkdirAll(j.Dir(), 0o700); err != nil {
		return nil, fmt.Errorf("begin a restore: %w", err)
	}
	return j, j.write()
}

func (f *Folder) load(id string) (*Journal, error) {
	path := filepath.Join(f.path, id, FileName)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > mostBytes {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrDamaged, path, info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	record, err := parse(text)
	if err == nil && record.ID != id {
		err = fmt.Errorf("%w: it is of restore %q", ErrDamaged, record.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Journal{folder: f, record: *record}, nil
}

func parse(text []byte) (*Record, error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if head.Format > format {
		return nil, fmt.Errorf("%w: format %d, this one knows %d", ErrNewer, head.Format, format)
	}
	var r Record
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	names := map[string]bool{}
	for _, s := range r.Steps {
		if s.Name == "" || names[s.Name] {
			return nil, fmt.Errorf("%w: step %q stands there twice", ErrDamaged, s.Name)
		}
		names[s.Name] = true
	}
	if r.Format != format || !slices.Contains([]Outcome{UnderWay, Done, Aborted}, r.Outcome) {
		return nil, fmt.Errorf("%w: format %d, outcome %q", ErrDamaged, r.Format, r.Outcome)
	}
	return &r, nil
}

// Journal is one restore's. It is for one goroutine.
type Journal struct {
	folder *Folder
	record Record
}

// Record is what is written by now. It is not to be changed.
func (j *Journal) Record() Record { return j.record }

// Dir is the restore's own folder, for what it keeps until it has ended.
func (j *Journal) Dir() string { return filepath.Join(j.folder.path, j.record.ID) }

// Step is what is known of a step; nil if it was never begun.
func (j *Journal) Step(name string) *Step {
	for i := range j.record.Steps {
		if s := &j.record.Steps[i]; s.Name == name {
			return s
		}
	}
	return nil
}

// Begin notes that a step is about to change something, with what undoing it
// will need to know. A step that was begun before keeps its first note: what
// was there before the first change is what counts.
func (j *Journal) Begin(name string, note any) error {
	if s := j.Step(name); s != nil {
		s.Done = nil
		return j.write()
	}
	text, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("note step %s: %w", name, err)
	}
	j.record.Steps = append(j.record.Steps, Step{Name: name, Begun: j.folder.now().UTC(), Note: text})
	return j.write()
}

// Done notes that a step is done.
func (j *Journal) Done(name string) error {
	return j.mark(name, func(s *Step, at *time.Time) { s.Done = at })
}

// BeginAbort notes that steps are about to be undone. It keeps the first time.
func (j *Journal) BeginAbort() error {
	if j.record.AbortBegun != nil {
		return nil
	}
	at := j.folder.now().UTC()
	j.record.AbortBegun = &at
	return j.write()
}

// Undone notes that what a step did is gone.
func (j *Journal) Undone(name string) error {
	return j.mark(name, func(s *Step, at *time.Time) { s.Undone = at })
}

func (j *Journal) mark(name string, set func(*Step, *time.Time)) error {
	s := j.Step(name)
	if s == nil {
		return fmt.Errorf("note step %s: it was never begun", name)
	}
	at := j.folder.now().UTC()
	set(s, &at)
	return j.write()
}

// End notes how the restore ended.
func (j *Journal) End(how Outcome) error {
	j.record.Outcome = how
	return j.write()
}

// Order decodes what the restore was begun with.
func (j *Journal) Order(into any) error {
	if err := json.Unmarshal(j.record.Order, into); err != nil {
		return fmt.Errorf("%s: %w: %w", j.Dir(), ErrDamaged, err)
	}
	return nil
}

func (j *Journal) write() error {
	text, err := json.MarshalIndent(j.record, "", "  ")
	if err != nil {
		return fmt.Errorf("write the restore's journal: %w", err)
	}
	path := filepath.Join(j.Dir(), FileName)
	if _, err := durable.WriteFile(path, bytes.NewReader(append(text, '\n')), durable.Options{Mode: 0o600}); err != nil {
		return fmt.Errorf("write the restore's journal: %w", err)
	}
	return nil
}
