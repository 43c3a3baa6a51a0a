package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"lifeboat/internal/durable"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// journalName is the journal's file in the state folder.
const journalName = "agent.json"

// maxJournal is far above what maxMessage and status.MaxRuns allow.
const maxJournal = 8 << 20

// record is what an agent remembers over a restart: what it did. What there is
// to restore it learns from the stores.
type record struct {
	Format      int                       `json:"format"`
	Runs        []status.Run              `json:"runs"`        // newest first
	LastSuccess map[status.Kind]time.Time `json:"lastSuccess"` // of what leaves no backup: when the run began
}

// shelf is where the journal lies.
type shelf interface {
	load() (record, error) // fs.ErrNotExist: none
	save(record) error
	setAside() error // out of the way, where a person may look at it
}

// fileShelf is a file that is replaced whole.
type fileShelf string

func (f fileShelf) load() (record, error) {
	file, err := os.Open(string(f))
	if err != nil {
		return record{}, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxJournal+1))
	if err != nil {
		return record{}, err
	}
	if len(data) > maxJournal {
		return record{}, fmt.Errorf("larger than %d bytes", maxJournal)
	}
	return parseRecord(data)
}

func (f fileShelf) save(r record) error {
	r.Format = 1
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = durable.WriteFile(string(f), bytes.NewReader(append(data, '\n')), durable.Options{})
	return err
}

// setAside keeps one damaged journal, the last.
func (f fileShelf) setAside() error {
	return os.Rename(string(f), string(f)+".damaged")
}

// journal keeps the record on its shelf. Writing happens on a goroutine of its
// own: a disk that hangs or is full holds up no backup.
type journal struct {
	shelf shelf
	dirty chan struct{} // something to write

	mu      sync.Mutex
	record  record
	damaged string // what was wrong with the one found at the start
	failed  string // why the last write failed
}

func openJournal(s shelf) *journal {
	j := &journal{shelf: s, dirty: make(chan struct{}, 1)}
	var err error
	j.record, err = s.load()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.damaged = line(err.Error())
		if err := s.setAside(); err != nil {
			j.damaged += line("; and can't be set aside: " + err.Error())
		}
	}
	if j.record.LastSuccess == nil {
		j.record.LastSuccess = map[status.Kind]time.Time{}
	}
	return j
}

func parseRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, err
	}
	if r.Format != 1 {
		return record{}, fmt.Errorf("format %d, want 1", r.Format)
	}
	r.Runs = r.Runs[:min(len(r.Runs), status.MaxRuns)]
	return r, nil
}

// add remembers a run, and the success of one that leaves no backup.
func (j *journal) add(run status.Run, lasting bool) {
	j.mu.Lock()
	// A new slice each time: readers keep the old one.
	runs := make([]status.Run, 0, min(len(j.record.Runs)+1, status.MaxRuns))
	runs = append(runs, run)
	j.record.Runs = append(runs, j.record.Runs[:min(len(j.record.Runs), status.MaxRuns-1)]...)
	if lasting && run.Result == status.Succeeded {
		j.record.LastSuccess[run.Kind] = run.Started
	}
	j.mu.Unlock()
	j.poke()
}

// poke asks for a write.
func (j *journal) poke() {
	select {
	case j.dirty <- struct{}{}:
	default:
	}
}

// retry asks for a write if the last one failed.
func (j *journal) retry() {
	if j.trouble() != "" {
		j.poke()
	}
}

// runs is newest first and never changed afterwards.
func (j *journal) runs() []status.Run {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.record.Runs
}

func (j *journal) lastSuccess(kind status.Kind) time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.record.LastSuccess[kind]
}

func (j *journal) trouble() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// keep writes what is asked for until done is closed, and then what is left.
func (j *journal) keep(done <-chan struct{}) {
	for {
		select {
		case <-j.dirty:
			j.write()
		case <-done:
			select {
			case <-j.dirty:
				j.write()
			default:
			}
			return
		}
	}
}

func (j *journal) write() {
	j.mu.Lock()
	r := j.record
	r.LastSuccess = maps.Clone(r.LastSuccess)
	j.mu.Unlock()
	err := j.shelf.save(r)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failed = ""
	if err != nil {
		j.failed = line(err.Error())
	}
}

// flush writes what is left, for one who keeps no goroutine at it, and waits
// no longer than limit.
func (j *journal) flush(limit time.Duration) error {
	written, done := make(chan struct{}), make(chan struct{})
	close(done)
	go func() { defer close(written); j.keep(done) }()
	select {
	case <-written:
	case <-time.After(limit):
		return errors.New("the journal can't be written: its disk hangs")
	}
	return nil
}

// line makes a message fit for the journal and the page: one bounded line.
func line(s string) string { return manifest.Line(s) }

func journalIn(dir string) shelf { return fileShelf(filepath.Join(dir, journalName)) }
