package repository

import (
	"cmp"
	"fmt"
	"slices"

	"lifeboat/internal/manifest"
)

// Kind says what is wrong with an object. Its text is stable: JSON output and
// metrics carry it.
type Kind string

// Failures: something acknowledged is or may be lost, or somebody tampers.
const (
	Damaged       Kind = "damaged"        // a manifest's bytes are not a manifest, or not in canonical form
	Unsigned      Kind = "unsigned"       // no signature by a key that is trusted for it
	Misplaced     Kind = "misplaced"      // a genuine manifest of another place, chain or cluster: replayed, swapped, copied
	NewerFormat   Kind = "newer-format"   // signed, and in a format that this version does not know
	Hole          Kind = "hole"           // a manifest is missing and no prune manifest named it
	Unlinked      Kind = "unlinked"       // a manifest follows another one than the chain holds in that place
	Fork          Kind = "fork"           // a valid manifest that a later one skipped or does not count
	RolledBack    Kind = "rolled-back"    // a head seen earlier is gone
	Overwritten   Kind = "overwritten"    // replaced or hidden; an older version in the store verifies and is used
	Stray         Kind = "stray"          // far ahead of the head, and no manifest of that place by any trusted key
	Misfit        Kind = "misfit"         // a rekey that can't stand for the backup that it is of, and is not used
	NoBlob        Kind = "no-blob"        // images need a blob that no manifest of the chain holds
	Unknown       Kind = "unknown"        // an object that does not belong where it is
	ObjectMissing Kind = "object-missing" // a data object that a manifest names is not there
	ObjectSize    Kind = "object-size"    // a data object is shorter or longer than its manifest says
	ObjectDamaged Kind = "object-damaged" // a data object's SHA-256 is not the one in its manifest
	ReadmeChanged Kind = "readme-changed" // README.txt does not have its text
)

// Notes: worth knowing, and nothing is lost.
const (
	Skipped    Kind = "skipped"   // junk in a manifest's place, named by the manifest behind it
	Garbage    Kind = "garbage"   // a data object that no manifest names
	Leftover   Kind = "leftover"  // named by a prune manifest and not deleted yet
	Late       Kind = "late"      // the chain's next manifest is overdue
	NoReadme   Kind = "no-readme" // README.txt is not there
	Unrecorded Kind = "gap"       // segments lie on both sides of a gap in which nothing was recorded
)

// Note reports whether the kind is harmless.
func (k Kind) Note() bool {
	return k == Skipped || k == Garbage || k == Leftover || k == Late || k == NoReadme || k == Unrecorded
}

// foreign reports failures that anybody can cause who can write to the store,
// and that say nothing of what was committed: objects in no manifest's place,
// and junk ahead of the place where the next manifest goes. So do rekeys by keys
// that may not sign what they would replace. They must be looked at, and must keep nobody from restoring or deleting.
func (k Kind) foreign() bool { return k == Stray || k == Unknown || k == Misfit }

// Problem is one finding about one object.
type Problem struct {
	Object   string            `json:"object"` // the name in the store
	Chain    manifest.Chain    `json:"chain,omitempty"`
	Sequence manifest.Sequence `json:"sequence,omitempty"` // of the manifest concerned; 0 if none is
	Kind     Kind              `json:"kind"`
	Message  string            `json:"message"`
}

func (p Problem) String() string { return fmt.Sprintf("%s: %s: %s", p.Object, p.Kind, p.Message) }

// Failures returns the problems that are not notes.
func Failures(problems []Problem) []Problem {
	return slices.DeleteFunc(slices.Clone(problems), func(p Problem) bool { return p.Kind.Note() })
}

// sortProblems puts failures before notes and both in the order of names, and
// drops repetitions.
func sortProblems(problems []Problem) []Problem {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(boolCompare(a.Kind.Note(), b.Kind.Note()), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Kind, b.Kind))
	})
	return slices.CompactFunc(problems, func(a, b Problem) bool { return a.Object == b.Object && a.Kind == b.Kind })
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// VerificationError is an ErrVerification with its findings.
type VerificationError struct {
	Doing    string // what was being done
	Problems []Problem
}

func (e *VerificationError) Error() string {
	s := fmt.Sprintf("%s: %s", e.Doing, ErrVerification)
	if len(e.Problems) > 0 {
		s += ": " + e.Problems[0].String()
	}
	if more := len(e.Problems) - 1; more > 0 {
		s += fmt.Sprintf(" (and %d more)", more)
	}
	return s
}

// Is makes errors.Is(err, ErrVerification) true.
func (e *VerificationError) Is(target error) bool { return target == ErrVerification }
