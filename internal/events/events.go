// Package events carries what the core reports to whoever listens: the log,
// the metrics, a progress bar, a test. The core never logs; it emits.
package events

import "time"

// Listener receives events, possibly from several goroutines at once. It must
// return quickly. A nil Listener is silent.
type Listener func(Event)

// Emit hands e to the listener if there is one.
func (l Listener) Emit(e Event) {
	if l != nil {
		l(e)
	}
}

// Both returns a Listener that hands every event to l and then to other.
func (l Listener) Both(other Listener) Listener {
	return func(e Event) {
		l.Emit(e)
		other.Emit(e)
	}
}

// Event is one of this package's types.
type Event interface{ isEvent() }

// StageStarted says that a stage of a backup, a verification or a restore has begun.
type StageStarted struct {
	Stage string // "snapshot", "prove", "seal", "commit", "fetch", ...
	Chain string
	Total int64 // bytes expected; 0 if unknown
}

// StageProgress says how far the newest stage of that name has come.
type StageProgress struct {
	Stage string
	Chain string
	Done  int64 // bytes since the start of the stage
}

// StageDone ends a stage, well or badly.
type StageDone struct {
	Stage    string
	Chain    string
	Duration time.Duration
	Bytes    int64
	Err      error // nil when the stage succeeded
}

// Warning is something that a person should know and that did not stop the work.
type Warning struct {
	Chain   string // empty when no chain is concerned
	Subject string // what it is about: a store's URL, a file, a member
	Message string
}

// Committed says that a backup became visible in a store.
type Committed struct {
	Store    string
	Chain    string
	Sequence uint64
	ID       string
	Created  time.Time
	Bytes    int64 // as stored
	Segment  bool  // recorded changes, of which one comes every few seconds; else a backup, or what is about backups
}

// StoreFailed says that one store did not take a backup.
type StoreFailed struct {
	Store string
	Chain string
	Err   error
}

func (StageStarted) isEvent()  {}
func (StageProgress) isEvent() {}
func (StageDone) isEvent()     {}
func (Warning) isEvent()       {}
func (Committed) isEvent()     {}
func (StoreFailed) isEvent()   {}
