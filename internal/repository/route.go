package repository

import (
	"errors"
	"fmt"
	"time"

	"lifeboat/internal/manifest"
)

// Route is how to come to a point: a full, and the segments to apply to it.
type Route struct {
	Point Point
	Chain manifest.Chain
	Epoch uint64
	Base  Backup // its own signature was checked

	// Segments cover every revision from the base's to Revision, ascending, with
	// as few as there are; roll-ups come before small ones. Each one's own signature
	// was checked. They may overlap. None: the base is the point.
	Segments []Segment

	// Revision is the one that the point means: changes behind it, which the last
	// segment may hold, are no part of it. 0: a node's files.
	Revision manifest.Revision

	// At is the time as of which Revision holds all that etcd had acknowledged, as
	// far as that was recorded, and never after the time that was asked for. Of a
	// full it is when its capture began.
	At time.Time

	Hashes   []manifest.HashKV // recorded ones at or below Revision and above the base's, ascending
	After    After
	Problems []Problem // what is lost or damaged, and made up for by others
}

// Segment is one segment of a route.
type Segment struct {
	*manifest.Manifest
	Hash manifest.Hash // of the manifest's text
}

// After is what lies behind a route's revision in the same epoch and can be
// restored, too.
type After struct {
	Revisions int64             // how many; 0: the route ends with what is recorded
	Revision  manifest.Revision // the last one; the route's own if there are none
	Until     time.Time         // as of when that one is known
	Epoch     uint64            // the chain's newest epoch; higher than the route's where a new history began
}

// ErrUnreachable: the chain can't give back the point that was asked for.
var ErrUnreachable = errors.New("this point can't be restored")

// NearPoint is a point that can be restored.
type NearPoint struct {
	Epoch    uint64            `json:"epoch"`
	Revision manifest.Revision `json:"revision"`
	Time     time.Time         `json:"time"`             // as of which it is known
	Backup   manifest.ID       `json:"backup,omitempty"` // the full that it is, if it is one
}

// Flags are what to give on a command line to restore exactly this point.
func (n NearPoint) Flags() string {
	if n.Backup != "" {
		return "--backup " + string(n.Backup)
	}
	return fmt.Sprintf("--revision %d --epoch %d", n.Revision, n.Epoch)
}

func (n NearPoint) String() string { return n.in(time.UTC) }

// in says it with its time in a zone.
func (n NearPoint) in(zone *time.Location) string {
	return fmt.Sprintf("revision %d of epoch %d as of %s (%s)", n.Revision, n.Epoch, n.Time.In(zone).Format(time.RFC3339), n.Flags())
}

// UnreachableError is an ErrUnreachable with the nearest points that can be
// restored. It is also an ErrVerification if the point lies in a gap, and an
// ErrNothing if it lies before the oldest base or after all that is recorded.
type UnreachableError struct {
	Chain  manifest.Chain
	Point  Point
	Before *NearPoint // nil: nothing is before it
	After  *NearPoint // nil: nothing is after it
	Why    string
}

// Gap reports whether the point lies between two that can be restored.
func (e *UnreachableError) Gap() bool { return e.Before != nil && e.After != nil }

// Error does not name the point, which Route does, and says times in the zone of
// the one that was asked for.
func (e *UnreachableError) Error() string {
	zone := time.UTC
	if !e.Point.Time.IsZero() {
		zone = e.Point.Time.Location()
	}
	s := fmt.Sprintf("%s: %s", ErrUnreachable, e.Why)
	if e.Before != nil {
		s += "; the nearest before it is " + e.Before.in(zone)
	}
	if e.After != nil {
		s += "; the nearest after it is " + e.After.in(zone)
	}
	return s
}

// Is makes errors.Is true for ErrUnreachable and for what the exit code says.
func (e *UnreachableError) Is(target error) bool {
	return target == ErrUnreachable || target == ErrVerification && e.Gap() || target == ErrNothing && !e.Gap()
}
