// Package restore turns backups back into what they were taken of. Everything
// that changes a machine is first a Plan: a list of steps that prints itself,
// and that executing means looping over.
//
// PlanEtcd makes a data directory for one etcd member. Export writes an
// ordinary snapshot file for other tools. DeepVerify does all of a restore but
// the installing. The three share fetch.go, where a backup is opened, unsealed
// and checked against its signed manifest. Nothing here talks to a live
// cluster; the restore of a whole control plane builds on this package.
package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"lifeboat/internal/events"
)

// ErrRefused: a safety check said no, and nothing was changed.
var ErrRefused = errors.New("refused")

// Step is one thing that a restore does.
type Step struct {
	Stage  string // its name in events: "fetch", "check", ...
	Title  string // what it does, as an order
	Detail string // with what and to what; may have several lines
	Total  int64  // bytes that it will go through; 0 if unknown
	Run    func(ctx context.Context) error
}

// Plan is what a restore will do.
type Plan struct {
	Summary  string   // what is restored, in a line
	Steps    []Step   //
	Warnings []string // what is not as it should be
	Notes    []string // what the plan does not do, and what is left to do afterwards

	chain  string
	now    func() time.Time
	listen events.Listener // while executing
	abort  func() error    // undoes what unfinished steps have begun; may be nil
}

// Print writes the plan for a person.
func (p *Plan) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", p.Summary)
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%2d. %s\n", i+1, s.Title)
		for line := range strings.Lines(s.Detail) {
			fmt.Fprintf(&b, "      %s\n", strings.TrimRight(line, "\n"))
		}
	}
	for _, list := range []struct {
		title string
		items []string
	}{{"Warnings", p.Warnings}, {"Notes", p.Notes}} {
		if len(list.items) > 0 {
			fmt.Fprintf(&b, "\n%s:\n", list.title)
		}
		for _, item := range list.items {
			fmt.Fprintf(&b, "  - %s\n", strings.ReplaceAll(item, "\n", "\n    "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Execute takes the steps one after the other and tells listen about each. It
// stops at the first error or when the context ends, and then removes what the
// plan had staged. A plan is executed once.
func (p *Plan) Execute(ctx context.Context, listen events.Listener) (err error) {
	p.listen = listen
	defer func() {
		if p.abort == nil {
			return
		}
		if aerr := p.abort(); aerr != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", aerr))
		}
	}()
	return p.run(ctx, p.Steps)
}

// run takes the first of the plan's steps, or all.
func (p *Plan) run(ctx context.Context, steps []Step) error {
	for i, s := range steps {
		if ctx.Err() != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.Stage, context.Cause(ctx))
		}
		p.listen.Emit(events.StageStarted{Stage: s.Stage, Chain: p.chain, Total: s.Total})
		start := p.now()
		err := s.Run(ctx)
		p.listen.Emit(events.StageDone{Stage: s.Stage, Chain: p.chain, Duration: p.now().Sub(start), Bytes: s.Total, Err: err})
		if err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.Stage, err)
		}
	}
	return nil
}

func (p *Plan) progress(stage string) func(int64) {
	return func(done int64) {
		p.listen.Emit(events.StageProgress{Stage: stage, Chain: p.chain, Done: done})
	}
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}
