// Package status is what an agent knows about a cluster's backups at one
// moment, as plain data. The agent fills it in; the metrics, the status page
// and the dead-man switch read it. It decides nothing.
package status

import "time"

// Status is one moment. Lists are in a fixed order and never nil.
type Status struct {
	Cluster string    `json:"cluster"` // full name
	Node    string    `json:"node"`
	Version string    `json:"version"` // of lifeboat
	Now     time.Time `json:"now"`     // by the agent's wall clock
	Started time.Time `json:"started"`

	// Loaded says that the configuration was read and that every store was
	// asked at least once since the start, well or badly: before that the
	// numbers below are not the truth yet, and metrics leave them out.
	Loaded bool `json:"loaded"`

	Chains       []Chain       `json:"chains"`       // that this agent's configuration backs up, and all others that a store holds; by name
	Stores       []Store       `json:"stores"`       // in the configured order
	Jobs         []Job         `json:"jobs"`         // by kind, then target
	Recorders    []Recorder    `json:"recorders"`    // of this agent, by chain
	Runs         []Run         `json:"runs"`         // newest first, at most MaxRuns
	Certificates []Certificate `json:"certificates"` // of this node, soonest to expire first
	Problems     []Problem     `json:"problems"`     // worst first
}

// MaxRuns bounds Status.Runs.
const MaxRuns = 200

// Chain is one chain, over all stores.
type Chain struct {
	Name          string        `json:"name"`          // etcd/main, hosts/cp1
	Ours          bool          `json:"ours"`          // this agent's configuration backs it up
	Interval      time.Duration `json:"interval"`      // between two scheduled backups, nanoseconds; 0: none is scheduled
	RecoveryPoint time.Time     `json:"recoveryPoint"` // the latest state that a restore gives back, from the best store; zero: nothing
	InStores      []InStore     `json:"inStores"`      // one a store, in the configured order
}

// InStore is one chain in one store, as last read. After a store stopped
// answering the fields keep what was true when it last did.
type InStore struct {
	Store         string    `json:"store"`         // URL without credentials
	Read          time.Time `json:"read"`          // when the store last answered; zero: never since the start
	Head          uint64    `json:"head"`          // sequence; 0: empty
	RecoveryPoint time.Time `json:"recoveryPoint"` // the latest state that a restore gives back; before Newest where that is of a member that lags; zero: none
	Newest        time.Time `json:"newest"`        // capture time of the newest backup; zero: none
	NewestWhole   time.Time `json:"newestWhole"`   // of the newest that is not degraded
	NewestProved  time.Time `json:"newestProved"`  // of the newest that is proved
	Revision      int64     `json:"revision"`      // of the newest full; 0 for files
	Keys          int64     `json:"keys"`          // live keys in the newest full; -1: not counted
	PlainBytes    int64     `json:"plainBytes"`    // of the newest backup
	StoredBytes   int64     `json:"storedBytes"`   // of the newest backup
	Previous      int64     `json:"previous"`      // StoredBytes of the backup before it; 0: none
	Backups       int       `json:"backups"`       // how many can be restored
	TotalBytes    int64     `json:"totalBytes"`    // stored bytes of all of them
	RetainUntil   time.Time `json:"retainUntil"`   // Object Lock of the newest; zero: none
	Expected      time.Time `json:"expected"`      // the head's nextExpectedBy; zero: nobody promised another
	Late          time.Time `json:"late"`          // Expected, if that is over; zero: in time
	Valid         bool      `json:"valid"`         // no failure in signatures, links and witnesses
	Regressed     bool      `json:"regressed"`     // a head seen earlier is gone: rolled back
	Failures      []string  `json:"failures"`      // what is wrong, for people
}

// Store is one configured store.
type Store struct {
	URL       string        `json:"url"` // without credentials
	Answered  time.Time     `json:"answered"`
	Error     string        `json:"error"`     // why it does not answer now; empty: it does
	Skew      time.Duration `json:"skew"`      // store's clock less ours, nanoseconds
	SkewKnown bool          `json:"skewKnown"` // false: the store does not tell its time
}

// Kind says what a job does. Its text is stable: metrics carry it.
type Kind string

// The kinds of job.
const (
	Full   Kind = "full"
	Files  Kind = "files"
	Verify Kind = "verify"
	Prune  Kind = "prune"
	Drill  Kind = "drill"
)

// Job is one scheduled job of this agent.
type Job struct {
	Kind        Kind          `json:"kind"`
	Target      string        `json:"target"`   // the chain; empty where the job is about the whole repository
	Schedule    string        `json:"schedule"` // as configured
	Interval    time.Duration `json:"interval"` // the longest between two runs, nanoseconds
	Running     bool          `json:"running"`
	Due         time.Time     `json:"due"`         // when it is served next, by the wall clock
	LastAttempt time.Time     `json:"lastAttempt"` // of this agent; zero: none that it remembers
	LastSuccess time.Time     `json:"lastSuccess"` // of this agent; a run that was overtaken counts
	Why         string        `json:"why"`         // what it waits for, for people: "due", "the turn of cp2", "retry"
}

// Recorder is this agent's recorder of one etcd cluster's changes.
type Recorder struct {
	Chain      string          `json:"chain"`
	Interval   time.Duration   `json:"interval"`   // longest time between two segments when there are changes, nanoseconds
	Running    bool            `json:"running"`    // it works or stands by; else it failed and is started again
	Active     bool            `json:"active"`     // it records; else another node's does, and it watches that one
	Why        string          `json:"why"`        // what it does, for people
	Error      string          `json:"error"`      // what went wrong last, of the watch or the spool; empty: nothing
	Revision   int64           `json:"revision"`   // all changes up to it are on this node's disk or in the stores
	Recorded   time.Time       `json:"recorded"`   // as of when that was all that etcd had acknowledged; zero: not known
	SpoolBytes int64           `json:"spoolBytes"` // on this node's disk
	SpoolLimit int64           `json:"spoolLimit"` // of them at most
	Gaps       int64           `json:"gaps"`       // since the agent's start, over all stores
	Wanted     string          `json:"wanted"`     // why it asks for a full; empty: it does not
	Stores     []RecorderStore `json:"stores"`     // in the configured order
}

// RecorderStore is what a recorder knows of one store.
type RecorderStore struct {
	Store         string    `json:"store"`         // URL without credentials
	Epoch         uint64    `json:"epoch"`         // of the history in it; 0: not known
	Revision      int64     `json:"revision"`      // every revision up to it can be restored, from a full on; 0: not known
	RecoveryPoint time.Time `json:"recoveryPoint"` // all that etcd acknowledged until then can be restored; zero: not known
	Behind        int64     `json:"behind"`        // bytes of the spool that it does not have yet
	Waiting       string    `json:"waiting"`       // why nothing is committed to it; empty: something is
	Error         string    `json:"error"`         // of the last request; empty: it went well
	Segments      int64     `json:"segments"`      // committed since the agent's start
	RollUps       int64     `json:"rollUps"`       // segments sealed again as one, likewise
	LastGap       time.Time `json:"lastGap"`       // when one was found; zero: none since the agent's start
	GapWhy        string    `json:"gapWhy"`
}

// RecoveryPoint is the latest of the stores'; zero: none is known.
func (r *Recorder) RecoveryPoint() time.Time {
	var best time.Time
	for _, in := range r.Stores {
		if in.RecoveryPoint.After(best) {
			best = in.RecoveryPoint
		}
	}
	return best
}

// Result says how a run ended. Its text is stable: metrics carry it.
type Result string

// The results of a run.
const (
	Succeeded Result = "success"
	Failed    Result = "failure"
	Overtaken Result = "overtaken" // another agent's newer backup made this one pointless
)

// Reason says why a run failed, in few stable words for metrics. The text of
// the error is for people only.
type Reason string

// The reasons.
const (
	None         Reason = ""
	EtcdDown     Reason = "etcd"         // no member gives a snapshot
	StoreDown    Reason = "store"        // fewer stores than configured took it
	Timeout      Reason = "timeout"      // the deadline passed
	Verification Reason = "verification" // stored bytes, signatures or a chain are not what they must be
	Clock        Reason = "clock"        // the store's clock and ours differ too much
	Config       Reason = "config"       // a key, certificate or setting can't be used
	Interrupted  Reason = "interrupted"  // the agent was told to stop
	Other        Reason = "other"
)

// Run is one run of a job that is over.
type Run struct {
	Kind        Kind          `json:"kind"`
	Target      string        `json:"target"`
	Started     time.Time     `json:"started"`
	Duration    time.Duration `json:"duration"` // nanoseconds
	Result      Result        `json:"result"`
	Reason      Reason        `json:"reason"`
	Message     string        `json:"message"` // the error or what was done, one line, for people
	ID          string        `json:"id"`      // of the backup; empty: none
	Revision    int64         `json:"revision"`
	PlainBytes  int64         `json:"plainBytes"`
	StoredBytes int64         `json:"storedBytes"`
	Degraded    []string      `json:"degraded"`
	Unproved    []string      `json:"unproved"`
	Mismatches  int           `json:"mismatches"` // etcd members whose HashKV differed from the majority's
}

// Certificate is one certificate of this node.
type Certificate struct {
	Name     string    `json:"name"` // its file, as the host sees it; for a kubeconfig's with "#" and the user's name
	Subject  string    `json:"subject"`
	NotAfter time.Time `json:"notAfter"`
	CA       bool      `json:"ca"`
}

// Severity of a problem.
type Severity string

// The severities.
const (
	Critical Severity = "critical" // a restore now would lose more than planned, or not work
	Warning  Severity = "warning"
)

// Problem is something that a person should act on.
type Problem struct {
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"` // chain, store, job or certificate
	Message  string   `json:"message"` // what is wrong and what to do
}
