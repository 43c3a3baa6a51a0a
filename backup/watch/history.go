package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/snapdb"
)

// Where there is no follower to ask, lanes hold up the cluster's writes for as
// long as their one pass takes. A snapshot of the database holds up none: the
// member reads it from a transaction of its own. Its key bucket is etcd's
// history, down to the compact revision, in the very form that segments have.
// So from some distance on, what was missed is taken from a copy of the
// database, and the watch begins behind it.
const (
	// worthSnapshot is from how many missed revisions on. The pass for fewer is
	// over before one write in a hundred of two minutes has waited for it.
	worthSnapshot = 16 * batch

	// largestSnapshot bounds in bytes the database that is copied for this: etcd's
	// default quota. Beyond it the copy takes longer than a pass is worth.
	largestSnapshot = 2 << 30

	// historyMargin is the free space in bytes that a copy must leave.
	historyMargin = 256 << 20

	// fewRevisions is after how many the findings of the askers are looked at.
	fewRevisions = 100
)

// errNoSnapshot says that no snapshot could be had to read the history from.
var errNoSnapshot = errors.New("no snapshot to read what was missed from")

// noSnapshot says why what was missed is not read from a snapshot, or "".
func (d *Drain) noSnapshot() string {
	if d.options.Scratch == "" {
		return "no folder for it"
	}
	if d.source.DBSize > largestSnapshot {
		return fmt.Sprintf("the database has %d bytes", d.source.DBSize)
	}
	free, err := durable.FreeSpace(d.options.Scratch)
	if err != nil {
		return err.Error()
	}
	if need := d.source.DBSize + historyMargin; free < need {
		return fmt.Sprintf("it needs %d bytes in %s, %d are free", need, d.options.Scratch, free)
	}
	return ""
}

// takeSnapshot gives what was missed up to a snapshot that it asks for. It is
// errNoSnapshot if none could be had, and an Error that is ErrDamaged if there is
// no reading it: then nothing was given, and lanes must not be tried, since etcd
// panics on what it can't parse.
func (d *Drain) takeSnapshot(ctx context.Context, p *progress) error {
	if why := d.noSnapshot(); why != "" {
		return fmt.Errorf("%w: %s", errNoSnapshot, why)
	}
	scratch, err := durable.OpenScratch(d.options.Scratch)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoSnapshot, err)
	}
	defer scratch.Close()
	path, err := d.copyDatabase(ctx, p, scratch)
	if err != nil {
		return err
	}
	err = snapdb.History(ctx, path, p.last, func(snapdb.Change) error { return nil })
	switch {
	case errors.Is(err, snapdb.ErrCompacted):
		return fmt.Errorf("%w: %w", errNoSnapshot, err) // a watch tells the revision
	case errors.Is(err, snapdb.ErrCorrupt):
		return &Error{Why: ErrDamaged, Cause: err}
	case err != nil:
		return err
	}
	return d.giveHistory(ctx, p, path)
}

// giveHistory gives what a database that was read once holds behind what was
// given.
func (d *Drain) giveHistory(ctx context.Context, p *progress, path string) error {
	p.before = p.last
	err := snapdb.History(ctx, path, p.last, func(c snapdb.Change) error {
		if c.Main > p.last {
			if err := d.reached(ctx, p); err != nil {
				return err
			}
		}
		p.open = true
		return d.takeEvent(event{deletion: c.Tombstone, main: c.Main, lease: c.Lease, kv: c.KV}, p)
	})
	if err != nil {
		return err
	}
	p.open = false
	return d.completed(p.last, p)
}

// reached says that what was given last was the last of its revision, and hands
// on between revisions what the askers have found.
func (d *Drain) reached(ctx context.Context, p *progress) error {
	p.open = false
	if p.last%fewRevisions != 0 {
		return nil
	}
	if err := d.completed(p.last, p); err != nil {
		return err
	}
	return d.takeFindings(ctx, p)
}

// copyDatabase streams a snapshot into scratch, and meanwhile hands on what the
// askers find.
func (d *Drain) copyDatabase(ctx context.Context, p *progress, scratch *durable.Scratch) (path string, err error) {
	file, err := scratch.Create("history.db")
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoSnapshot, err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	streaming, cancel := context.WithCancel(ctx)
	defer cancel() // before the wait
	done := make(chan error, 1)
	running.Go(func() {
		err := d.source.Snapshot(streaming, counted{file, d})
		done <- errors.Join(err, file.Close())
	})
	for {
		select {
		case err := <-done:
			switch {
			case ctx.Err() != nil:
				return "", context.Cause(ctx)
			case err != nil:
				return "", fmt.Errorf("%w: %w", errNoSnapshot, err)
			}
			return file.Name(), nil
		case f := <-d.found:
			if err := d.takeFinding(f, p); err != nil {
				return "", err
			}
		}
	}
}

// counted notes that something comes from the member.
type counted struct {
	io.Writer
	drain *Drain
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.drain.copied.Add(int64(n))
	return n, err
}

// warn tells what a drain does otherwise than it should.
func (d *Drain) warn(message string) {
	d.options.Events.Emit(events.Warning{Chain: d.options.Chain, Subject: "recorder", Message: message})
}
