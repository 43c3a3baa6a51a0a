// Package doctor looks at everything that a backup depends on, before it is
// needed: the configuration and the files it names, etcd, the stores, the
// clocks, the scratch space. Each finding says what is wrong and what to do.
//
// It changes nothing but one small object in each store, which it creates and
// deletes again. Start at Run.
package doctor

import (
	"context"
	"fmt"
	"io"
	"time"

	"lifeboat/backup/host"
	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/storage"
)

// Level says how bad a finding is.
type Level string

// The levels. A Problem keeps backups or restores from working; a Warning
// will, or makes them worth less.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Problem Level = "problem"
)

// Finding is what one check found.
type Finding struct {
	Check   string `json:"check"` // "etcd main", "store s3://bucket/prefix", ...
	Level   Level  `json:"level"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"` // what to do; empty when all is well
}

// Options says what to look at. All fields but Vanished and KeyCoverage are required.
type Options struct {
	Config      *config.Config
	ConfigDir   string // where init left its files
	OpenStore   func(context.Context, config.Store) (storage.Store, error)
	Vanished    func(context.Context, config.Store, storage.Store) error                           // why an empty store is not the one that this machine knows; optional
	KeyCoverage func(context.Context, config.Store, storage.Store) (repository.KeyCoverage, error) // encryption keys in use that backups of files lack; optional
	Now         func() time.Time
	Rand        io.Reader
	UID         int           // who would back up
	Report      func(Finding) // hears every finding as it is made
}

// doctor collects findings and what later checks need of earlier ones.
type doctor struct {
	Options
	findings []Finding
	dbBytes  int64        // of the largest etcd database
	server   *host.Server // of k3s, rke2 or k0s; nil: this is none
}

// Run makes all checks and returns their findings, in order. When the context
// ends, those that were made so far are all.
func Run(ctx context.Context, opts Options) []Finding {
	d := &doctor{Options: opts}
	d.ok("configuration", "cluster %s, node %s, %d store(s)", opts.Config.Cluster, opts.Config.Node, len(opts.Config.Stores))
	trust := d.trust()
	d.signer(trust)
	d.recipients()
	d.distribution()
	for _, e := range opts.Config.Etcd {
		d.etcd(ctx, e)
		if ctx.Err() != nil {
			return d.findings
		}
	}
	if len(opts.Config.Etcd) == 0 {
		d.warn("etcd", "name etcd's endpoints in the configuration, unless only files are wanted", "none is configured")
	}
	d.host()
	d.stores(ctx)
	if ctx.Err() != nil {
		return d.findings
	}
	d.scratch()
	return d.findings
}

func (d *doctor) add(f Finding) {
	f.Message, f.Remedy = manifest.Line(f.Message), manifest.Line(f.Remedy)
	d.findings = append(d.findings, f)
	d.Report(f)
}

func (d *doctor) ok(check, format string, args ...any) {
	d.add(Finding{check, OK, fmt.Sprintf(format, args...), ""})
}

func (d *doctor) warn(check, remedy, format string, args ...any) {
	d.add(Finding{check, Warning, fmt.Sprintf(format, args...), remedy})
}

func (d *doctor) problem(check, remedy, format string, args ...any) {
	d.add(Finding{check, Problem, fmt.Sprintf(format, args...), remedy})
}
