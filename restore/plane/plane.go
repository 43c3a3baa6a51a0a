// Package plane rebuilds the control plane of one node: its files and its etcd
// member from their backups, with kubelet and the static pods stopped meanwhile
// and started again in order.
//
// Prepare finds out what to restore and checks what can be checked; it returns a
// plan that prints itself. Execute fetches, unseals and checks everything before
// it changes anything, and then takes the changes one after the other. Each is
// written to a journal before and after (package journal), can be taken again
// after it was interrupted anywhere, and can be undone: run with the same order
// again, an interrupted restore goes on; Abort puts the old state back.
//
// A change is a step with a name. What it does is in steps.go, what undoes it
// in undo.go; the two share nothing but the step's note in the journal, since a
// restore may be aborted by another process than the one that began it.
package plane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"filippo.io/age"

	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/journal"
	"lifeboat/restore/node"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/salvage"
	"lifeboat/restore/topology"
)

// ErrUnfinished says that another restore was begun on this machine and has
// neither ended nor been aborted.
var ErrUnfinished = errors.New("another restore was begun here and is not finished")

// Members says which members the restored etcd will have.
type Members string

// The choices. All nodes of one restore need the same.
const (
	One Members = "one" // this one alone; the others join it later, as new ones
	All Members = "all" // those of the backup, each restored in the same way before any of them can serve
)

// Order is what a restore is asked to do. With the same order, an interrupted one
// goes on.
type Order struct {
	Node      string           `json:"node"`    // whose files, by the name in the backup
	Members   Members          `json:"members"` //
	Rename    []string         `json:"rename"`  // old=new node names
	Address   []string         `json:"address"` // old=new node addresses
	Endpoint  []string         `json:"endpoint"`
	Aim       string           `json:"aim"`   // the point in the words of who asked for it; empty: the latest
	Point     repository.Point `json:"point"` // of etcd, as found out
	FilesID   manifest.ID      `json:"filesID"`
	Token     string           `json:"token"`
	Bump      uint64           `json:"bump"`
	RestoreID string           `json:"restoreID"`

	// FromDataDir is a data directory that survived, from which etcd's state is taken
	// and not from a backup; Point then is what has come of it. Log is how much of its
	// write-ahead log counts.
	FromDataDir string       `json:"fromDataDir"`
	Log         salvage.Take `json:"wal"`

	// Events is the chain from which the etcd that holds events alone is restored;
	// empty: it begins empty.
	Events      manifest.Chain   `json:"events"`
	EventsPoint repository.Point `json:"eventsPoint"` // of it, as found out
	EventsBump  uint64           `json:"eventsBump"`  // 0: it is left as it is
}

// Health tells how the restored control plane does, and tidies what only a
// running one can be told. Each wait ends when its context does.
type Health interface {
	Etcd(ctx context.Context) error                            // the member serves
	Events(ctx context.Context) error                          // so does the separate etcd for events
	API(ctx context.Context) error                             // the API server is ready
	Node(ctx context.Context, since time.Time) error           // kubelet has told of itself since
	Tidy(ctx context.Context) (done, left []string, err error) // what belongs to machines that are gone
	Backup(ctx context.Context) (id manifest.ID, err error)    // a full, since a new history begins
}

// Options say what to restore where.
type Options struct {
	Repo       *repository.Repository
	Chain      manifest.Chain // of etcd
	Files      manifest.Chain // of the node's files
	Identities []age.Identity
	Order      Order
	Shared     *Shared       // another node's, which this one must do alike; may be nil. Then Order names the node alone
	Without    []manifest.ID // segments whose data is known to be lost or damaged; see restore.EtcdOptions
	Quota      *int64        // see restore.EtcdOptions

	Root     string // of the machine; "/" but in tests
	StateDir string // where journals, staged files and what is replaced lie
	Machine  node.Machine
	Health   func(*nodefiles.Staged) (Health, error)
	Inspect  func(context.Context, topology.Inputs) (*topology.Host, error) // default topology.Inspect
	Limit    time.Duration                                                  // for each wait; default 10 min
	Version  func(ctx context.Context, program string) (string, error)      // of an etcd program; default: it is asked

	Now  func() time.Time
	Rand io.Reader

	at func(point string) error // tests end the restore there
}

// The folders of a restore, below StateDir.
func (o *Options) journals() string { return filepath.Join(o.StateDir, "restores") }
func (o *Options) aside() string    { return filepath.Join(o.StateDir, "aside") }

// Plan is what a restore of a node will do. Close it after use.
type Plan struct {
	*restore.Plan
	Order Order // with all that was found out: another node's restore, or this one again, takes it as it is
	Facts *hostfacts.Facts
	Etcd  *restore.EtcdPlan
	Files *nodefiles.Staged

	Host *topology.Host // what the machine is and what else lives; nil where an interrupted restore goes on

	// Begun is what an earlier run has done of this restore; nil if this one is new.
	Begun *journal.Record

	// What the last steps have found.
	Tidied    []string
	Left      []string // for a person to look at
	NewBackup manifest.ID

	opts    Options
	folder  *journal.Folder
	journal *journal.Journal // of an interrupted restore that this one goes on with; nil before Execute
	scratch *durable.Scratch // of files that are staged and not yet the journal's; may be nil
	steps   []step
	listen  events.Listener
	health  Health

	filesBackup *manifest.Manifest
	secret      []byte // from which the MAC of a shared order is made
	id          string // of the restore on this machine; it names the journal and what is kept aside
	fetched     bool   // all that comes from the store is here and checked
	here        string // the machine's host name
	dataDir     string // of etcd, as this process sees it
	etcdDetail  string
	installed   bool // the new member is in its place
	member      member
	events      *apart   // nil: there is none, or it is left as it is
	doubts      []string // what a person should see of all this
}

// ID names the restore on this machine: its journal's folder and what it keeps aside.
func (p *Plan) ID() string { return p.id }

// Node is what the node will be called.
func (p *Plan) Node() string {
	if to, ok := pairs(p.Order.Rename)[p.Order.Node]; ok {
		return to
	}
	return p.Order.Node
}

// FilesBackup is the backup of the node's files; nil where an interrupted restore
// goes on with what it had staged.
func (p *Plan) FilesBackup() *manifest.Manifest { return p.filesBackup }

// Fetched says whether Execute has got all that it needs from the store. Before
// that it has changed nothing, and the same order may be prepared anew with another
// store's repository.
func (p *Plan) Fetched() bool { return p.fetched }

// Record is what the journal says; the zero value before the first change.
func (p *Plan) Record() journal.Record {
	if p.journal == nil {
		return journal.Record{}
	}
	return p.journal.Record()
}

// Changing says whether the machine is changed already, by this run or an
// earlier one.
func (p *Plan) Changing() bool { return p.journal != nil }

// Close gives up what the plan holds. What an interrupted restore needs stays.
func (p *Plan) Close() error {
	var errs []error
	if p.Etcd != nil {
		errs = append(errs, p.Etcd.Discard())
	}
	errs = append(errs, p.events.discard())
	if p.scratch != nil {
		errs = append(errs, p.scratch.Close())
	}
	if p.folder != nil {
		errs = append(errs, p.folder.Close())
	}
	return errors.Join(errs...)
}

// refuse is a safety check's no, before anything was changed.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", restore.ErrRefused, fmt.Sprintf(format, args...))
}
