// Package fault is a store that misbehaves on command, for tests.
//
// It wraps another store, numbers and records the operations on it, and fails
// the ones it is told to: before they took effect, after, or halfway. It can
// crash, after which nothing works until Reset, and it can lie. A test that
// must hold at every point counts the operations of one good run and then
// crashes each in turn:
//
//	f := fault.New(memory.New())
//	work(f)
//	for n := 1; n <= count; n++ {
//		for _, when := range fault.Moments {
//			f := fault.New(memory.New())
//			f.CrashAt(n, when)
//			work(f)    // fails
//			check(f.Inner())
//		}
//	}
package fault

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"lifeboat/storage"
)

// Op is a kind of operation.
type Op string

// The operations that are counted: each call of Store and storage.Versioned is
// one, however many bytes are read or names listed.
const (
	Put         Op = "put"
	Open        Op = "open"
	List        Op = "list"
	Delete      Op = "delete"
	Versions    Op = "versions"
	OpenVersion Op = "open-version"
)

// When says how far a failing operation gets.
type When int

// An operation fails Before anything happened; After it was done whole, as when
// the answer is lost; or Partial: a Put whose source was read halfway and that
// left nothing, a reader that breaks off with an error halfway, a list that
// breaks off halfway. A Delete has no half: Partial is Before.
const (
	Before When = iota
	After
	Partial
)

// Moments are all values of When.
var Moments = []When{Before, After, Partial}

func (w When) String() string {
	return [...]string{"before", "after", "partial"}[w]
}

// ErrInjected is the failure when the test named no other; ErrCrashed is every
// failure from a crash on.
var (
	ErrInjected = errors.New("injected failure")
	ErrCrashed  = errors.New("store crashed")
)

// Call is one recorded operation.
type Call struct {
	N        int // counted from 1 in the order of arrival
	Op       Op
	Name     string // or the prefix of a List
	IfAbsent bool
	Fault    string // what was done to it; empty for nothing
}

func (c Call) String() string {
	s := fmt.Sprintf("%d %s %s", c.N, c.Op, c.Name)
	if c.IfAbsent {
		s += " if-absent"
	}
	if c.Fault != "" {
		s += " ! " + c.Fault
	}
	return s
}

// Store implements storage.Store and storage.Versioned around another store.
// All methods are safe for concurrent use.
type Store struct {
	inner storage.Store

	mu      sync.Mutex
	calls   []Call
	counts  map[Op]int
	plans   []plan
	crashed bool
	lies    lies
}

// plan is a failure to come.
type plan struct {
	op    Op  // empty: any
	n     int // the n-th of op
	when  When
	err   error
	crash bool
}

// New wraps inner. Until told otherwise it behaves.
func New(inner storage.Store) *Store {
	return &Store{inner: inner, counts: map[Op]int{}}
}

// Inner is the wrapped store: what is really there.
func (s *Store) Inner() storage.Store { return s.inner }

// FailAt makes the n-th operation fail with err (ErrInjected if nil), counted
// from 1 since New or the last Reset.
func (s *Store) FailAt(n int, when When, err error) { s.plan(plan{"", n, when, err, false}) }

// FailOn makes the n-th operation of one kind fail with err.
func (s *Store) FailOn(op Op, n int, when When, err error) { s.plan(plan{op, n, when, err, false}) }

// CrashAt makes the n-th operation fail and every later one too, also what is
// being read or written by others at that moment.
func (s *Store) CrashAt(n int, when When) { s.plan(plan{"", n, when, ErrCrashed, true}) }

func (s *Store) plan(p plan) {
	if p.err == nil {
		p.err = ErrInjected
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plans = append(s.plans, p)
}

// Crash makes everything fail from now on.
func (s *Store) Crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashed = true
}

// Crashed reports whether the store is down.
func (s *Store) Crashed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crashed
}

// Reset is a new start over what the crash left: no failures planned, no lies,
// nothing counted.
func (s *Store) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls, s.plans, s.crashed, s.lies = nil, nil, false, lies{}
	clear(s.counts)
}

// Count is the number of operations since New or Reset.
func (s *Store) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

// Trace is a copy of what was recorded, in the order of arrival.
func (s *Store) Trace() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// begin records an operation and returns what shall happen to it, or nil.
func (s *Store) begin(op Op, name string, ifAbsent bool) *plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[op]++
	call := Call{N: len(s.calls) + 1, Op: op, Name: name, IfAbsent: ifAbsent}
	defer func() { s.calls = append(s.calls, call) }()
	if s.crashed {
		call.Fault = "down"
		return &plan{when: Before, err: ErrCrashed}
	}
	for _, p := range s.plans {
		if p.op == "" && p.n == call.N || p.op == op && p.n == s.counts[op] {
			call.Fault = p.when.String() + ": " + p.err.Error()
			// While the operation that crashes still runs, others may finish;
			// it ends with everything down.
			return &p
		}
	}
	return nil
}

// end is called when the operation is over: it carries out a crash, and gives
// the error that the caller sees.
func (s *Store) end(p *plan, op Op, name string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case p != nil:
		s.crashed = s.crashed || p.crash
		return fmt.Errorf("%s %s: %w", op, name, p.err)
	case s.crashed:
		return fmt.Errorf("%s %s: %w", op, name, ErrCrashed)
	}
	return err
}
