package plane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"lifeboat/internal/events"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
	"lifeboat/restore/journal"
)

// Execute does what the plan says. Everything is fetched, unsealed and checked
// before the first change. After an error or a kill, the same order goes on
// where it was; Abort puts the old state back.
func (p *Plan) Execute(ctx context.Context, listen events.Listener) error {
	p.listen = listen
	if err := errors.Join(p.findInstalled(), p.findEventsInstalled()); err != nil {
		return err
	}
	if !p.installed && p.member.runs != elsewhere {
		if err := p.fetch(ctx); err != nil {
			return err
		}
	}
	if err := p.stageEvents(ctx); err != nil {
		return errors.Join(err, p.Etcd.Discard())
	}
	p.fetched = true
	if err := p.begin(); err != nil {
		return err
	}
	for i, s := range p.steps {
		if !p.due(s.name) {
			continue
		}
		if ctx.Err() != nil {
			return p.stopped(i, s, context.Cause(ctx))
		}
		if err := p.take(ctx, s); err != nil {
			return p.stopped(i, s, err)
		}
	}
	if err := p.reach(pointAllDone); err != nil {
		return err
	}
	if err := p.journal.End(journal.Done); err != nil {
		return err
	}
	if err := p.reach(pointEnded); err != nil {
		return err
	}
	return removeStaged(p.journal)
}

// due says whether a step is to be taken. One that stops what a machine starts as it
// boots is taken again as long as anything that it was stopped for is not done: a
// power cut may be why this restore goes on.
func (p *Plan) due(name string) bool {
	open := func(name string) bool {
		s := p.journal.Step(name)
		return s == nil || s.Done == nil
	}
	return open(name) || slices.Contains(stops, name) && slices.ContainsFunc(p.steps, func(s step) bool {
		return slices.Contains(stopped, s.name) && open(s.name)
	})
}

// stopped says what to do about a step that failed.
func (p *Plan) stopped(i int, s step, err error) error {
	return fmt.Errorf("step %d, %s: %w; the same command goes on from here, and \"lifeboat restore abort\" puts the old state back", i+1, s.title, err)
}

// findInstalled says whether an earlier run has put the new member in place. One
// that was killed while it did so is finished.
func (p *Plan) findInstalled() (err error) {
	if p.journal == nil {
		return nil
	}
	switch s := p.journal.Step(stepEtcd); {
	case s == nil:
	case s.Done != nil:
		p.installed = true
	default:
		if p.installed, err = datadir.Installed(p.dataDir, p.opts.aside(), p.id); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// fetch makes the new member beside the old one, and checks what could not be
// checked before its database was here.
func (p *Plan) fetch(ctx context.Context) error {
	if err := p.Etcd.Stage(ctx, p.listen); err != nil {
		return err
	}
	p.survivorStaged()
	p.listen.Emit(events.StageStarted{Stage: StageKeys})
	start := p.opts.Now()
	err := p.checkKeys(ctx)
	p.listen.Emit(events.StageDone{Stage: StageKeys, Duration: p.opts.Now().Sub(start), Err: err})
	if err != nil {
		return errors.Join(err, p.Etcd.Discard())
	}
	return nil
}

// checkKeys looks into the new database: changes behind the full may have used
// encryption keys that it did not.
func (p *Plan) checkKeys(ctx context.Context) error {
	facts, err := snapdb.Inspect(ctx, p.Etcd.DBPath(), snapdb.Options{})
	if err != nil {
		return fmt.Errorf("look into the restored database: %w", err)
	}
	return p.coverage(keyUses(facts))
}

// begin writes the first word of the journal, if this restore is not one that
// goes on, and takes what is staged to where another process finds it.
func (p *Plan) begin() error {
	if p.journal == nil {
		j, err := p.folder.Begin(p.id, p.Order)
		if err != nil {
			return err
		}
		p.journal = j
		p.steps = p.changes()
		if err := p.reach(pointBegun); err != nil {
			return err
		}
	}
	if err := p.noteMembers(p.madeMembers()...); err != nil {
		return err
	}
	staged := filepath.Join(p.journalDir(), stagedName)
	if _, err := os.Lstat(staged); errors.Is(err, fs.ErrNotExist) {
		return p.Files.Move(staged)
	} else if err != nil {
		return err
	}
	return nil
}

// madeMembers are where this restore makes new members.
func (p *Plan) madeMembers() (notes []etcdNote) {
	if p.member.runs != elsewhere {
		notes = append(notes, etcdNote{DataDir: p.dataDir, AsideDir: p.opts.aside(), ID: p.id})
	}
	if p.events != nil {
		notes = append(notes, etcdNote{DataDir: p.events.dataDir, AsideDir: p.opts.aside(), ID: p.eventsID()})
	}
	return notes
}

// take takes one step.
func (p *Plan) take(ctx context.Context, s step) error {
	var note any
	if p.journal.Step(s.name) == nil {
		var err error
		if note, err = s.before(ctx); err != nil {
			return err
		}
	}
	if err := p.journal.Begin(s.name, note); err != nil {
		return err
	}
	if err := p.reach("begun " + s.name); err != nil {
		return err
	}
	p.listen.Emit(events.StageStarted{Stage: s.name})
	start := p.opts.Now()
	err := s.do(ctx, p.journal.Step(s.name).Note)
	p.listen.Emit(events.StageDone{Stage: s.name, Duration: p.opts.Now().Sub(start), Err: err})
	if err == nil {
		err = p.reach("did " + s.name)
	}
	if err != nil {
		return err
	}
	return p.journal.Done(s.name)
}

// The points of a restore beside those of its steps.
const (
	pointBegun   = "the journal begun"
	pointAllDone = "all steps done"
	pointEnded   = "the journal ended"
)

// reach is where tests end a restore as a kill would.
func (p *Plan) reach(point string) error {
	if p.opts.at == nil {
		return nil
	}
	return p.opts.at(point)
}
