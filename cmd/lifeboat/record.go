package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"lifeboat/backup"
	"lifeboat/backup/record"
	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/session"
)

func newRecord(a *app) *cobra.Command {
	var etcd string
	cmd := &cobra.Command{
		Use:   "record",
		Short: "Record every change of etcd, until Ctrl-C",
		Long: `Watches one etcd cluster and commits every change to every configured store a
few seconds later, as segments between the full backups. With them a restore can
aim at any revision and any time: see "lifeboat list --points". The agent does
the same by itself; this is for trying it, and for a machine without one.

Nothing is written to etcd. What a store has not taken yet waits in a spool on
this machine's disk, below the state folder and not encrypted there; the
configuration's "segments" bounds it and says how often segments are committed.
Once an hour the small ones are replaced by one that holds them all.

Where there is no full backup to begin from, or changes were lost, it takes one
by itself. While another recorder of the same etcd works, it stands by and takes
over when that one stops. Ctrl-C commits what is left and ends.

On a terminal one line shows how far it is; elsewhere only what changes is told,
on standard error.`,
		Example: `  lifeboat record
  lifeboat record --etcd events`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.record(cmd.Context(), etcd) },
	}
	cmd.Flags().StringVar(&etcd, "etcd", "main", "which etcd cluster of the configuration")
	return cmd
}

// recording is a recorder in the foreground.
type recording struct {
	app    *app
	etcd   config.Etcd
	rec    *record.Recorder
	line   io.Writer // a terminal; nil: none
	runner *backup.Runner
	limits *session.Session

	mu      sync.Mutex
	running bool // a full
	taken   asked
	fulls   sync.WaitGroup
}

// asked is why a full was taken that did not fail.
type asked struct {
	reason string
	epoch  uint64
	ended  time.Time
}

// askedPause is the least time between two fulls for one reason, as in the agent:
// a disk that stays full must not stream etcd's database without an end.
const askedPause = 10 * time.Minute

// holdsBack reports whether a full that is asked for is one too many.
func (t asked) holdsBack(reason string, epoch uint64, now time.Time) bool {
	return t.reason == reason && t.epoch == epoch && now.Sub(t.ended).Abs() < askedPause
}

func (a *app) record(ctx context.Context, name string) error {
	c, err := a.readConfig()
	if err != nil {
		return err
	}
	if c, _, err = session.Discovered(c); err != nil {
		a.warn("%v", err)
	}
	r := &recording{app: a}
	found := false
	for _, e := range c.Etcd {
		if e.Name == name {
			r.etcd, found = e, true
		}
	}
	if !found {
		return fmt.Errorf("%w: %s names no etcd %q", config.ErrInvalid, a.configPath, name)
	}
	if r.limits, err = session.OpenToWrite(ctx, c, a.options()); err != nil {
		return err
	}
	defer a.remember(r.limits)
	if r.runner, err = r.limits.Runner(); err != nil {
		return err
	}
	options, err := r.limits.Recording(r.etcd)
	if err != nil {
		return err
	}
	if err := anyStore(r.limits); err != nil {
		return err
	}
	options.AskFull = func(reason string, epoch uint64) { r.full(ctx, reason, epoch) }
	all := options.Events
	options.Events = func(e events.Event) {
		if _, ok := e.(events.StoreFailed); !ok { // tell says it
			all.Emit(e)
		}
	}
	r.rec = record.New(options)
	if f, ok := a.err.(*os.File); ok && !a.quiet && term.IsTerminal(int(f.Fd())) {
		r.line = f
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var telling sync.WaitGroup
	telling.Go(func() { r.tell(watching) })
	err = r.rec.Run(ctx)
	r.fulls.Wait()
	stop()
	telling.Wait()
	if err != nil {
		return err
	}
	r.last()
	return nil
}

// anyStore fails when no store could be opened.
func anyStore(s *session.Session) error {
	var errs []error
	for _, o := range s.Stores {
		if o.Err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("store %s: %w", o.URL, o.Err))
	}
	return errors.Join(errs...)
}

// full takes a full backup, unless one is being taken, or was a little while ago
// for the same reason. The recorder asks again for as long as it needs one.
func (r *recording) full(ctx context.Context, reason string, epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running || ctx.Err() != nil || r.taken.holdsBack(reason, epoch, r.app.now()) {
		return
	}
	r.running = true
	r.say("a full backup is needed: %s", reason)
	r.fulls.Go(func() {
		runner := *r.runner
		runner.Epoch = epoch
		result, err := runner.Etcd(ctx, session.EtcdConfig(r.etcd), session.Limits(r.limits.Config))
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running = false
		if err == nil {
			r.taken = asked{reason, epoch, r.app.now()}
		}
		switch {
		case ctx.Err() != nil:
		case err != nil:
			r.say("the full backup failed and is tried again: %v", err)
		case result.Manifest != nil:
			r.say("full backup %s, revision %d", result.Manifest.ID, result.Manifest.Etcd.Revision)
		}
	})
}

// say writes a line, over the one that shows how far it is.
func (r *recording) say(format string, args ...any) {
	if r.app.quiet {
		return
	}
	if r.line != nil {
		fmt.Fprint(r.line, "\r\x1b[K")
	}
	fmt.Fprintf(r.app.err, "%s: %s\n", r.rec.Status().Chain, fmt.Sprintf(format, args...))
}

// tell says what changes, and on a terminal how far it is.
func (r *recording) tell(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	doing, down, gap := "", outages{}, time.Time{}
	for {
		s := r.rec.Status()
		r.mu.Lock()
		if s.Doing != doing && s.Doing != "" {
			doing = s.Doing
			r.say("%s", doing)
		}
		for _, in := range s.Stores {
			if news := down.news(in); news != "" {
				r.say("%s", news)
			}
		}
		for _, g := range s.Gaps { // newest last
			if g.At.After(gap) {
				gap = g.At
				r.say("a gap in %s from revision %d on: %s", g.Store, g.From, g.Why)
			}
		}
		if r.line != nil && !r.running {
			fmt.Fprintf(r.line, "\r\x1b[K%s", r.progress(s))
		}
		r.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// outages are the stores that take nothing, each with the time since when.
type outages map[string]time.Time

// news is what to say of a store: once per outage that it takes nothing, whatever
// each try then fails with, and once that it works again.
func (o outages) news(in record.StoreStatus) string {
	since, down := o[in.URL]
	switch {
	case in.Err == "" && down:
		delete(o, in.URL)
		return in.URL + " takes segments again"
	case in.Err == "", down && since.Equal(in.Since):
		return ""
	}
	o[in.URL] = in.Since
	return in.URL + " takes no segments now: " + in.Err
}

// progress is how far it is, in a line.
func (r *recording) progress(s record.Status) string {
	segments := int64(0)
	for _, in := range s.Stores {
		segments += in.Segments
	}
	safe := "nothing is safe yet"
	if !s.RecoveryPoint.IsZero() {
		safe = "safe up to " + humanAge(r.app.now().Sub(s.RecoveryPoint)) + " ago"
	}
	return fmt.Sprintf("%s: revision %d, %s, %d segments, spool %s of %s", s.Chain, s.Revision, safe, segments, humanBytes(s.SpoolBytes), humanBytes(s.SpoolLimit))
}

// last says what has been recorded.
func (r *recording) last() {
	if r.line != nil {
		fmt.Fprint(r.line, "\r\x1b[K")
	}
	for _, in := range r.rec.Status().Stores {
		until := "nothing"
		if !in.RecoveryPoint.IsZero() {
			until = fmt.Sprintf("every change up to revision %d, all until %s", in.Revision, in.RecoveryPoint.UTC().Format(time.RFC3339))
		}
		fmt.Fprintf(r.app.out, "%s: %s: recorded %s, in %d segments\n", r.rec.Status().Chain, in.URL, until, in.Segments)
	}
}
