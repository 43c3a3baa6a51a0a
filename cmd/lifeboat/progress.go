package main

import (
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"lifeboat/internal/events"
)

// listener shows events on standard error: progress bars on a terminal,
// warnings as log lines everywhere.
func (a *app) listener() events.Listener {
	if a.quiet {
		return nil
	}
	if a.shown == nil { // one for all: two sets of bars would draw over each other
		a.shown = &progress{log: slog.New(slog.NewTextHandler(a.err, nil))}
		if f, ok := a.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			a.shown.terminal = f
		}
	}
	return a.shown.event
}

// progress draws one bar at a time: stages that overlap (a snapshot and its
// sealing) are shown by the one that knows its size.
type progress struct {
	log      *slog.Logger
	terminal io.Writer // nil: no bars

	mu    sync.Mutex
	bar   *progressbar.ProgressBar
	stage string

	failed map[string]bool // stores with their errors that were told
}

func (p *progress) event(e events.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := e.(type) {
	case events.StageStarted:
		if p.terminal != nil && e.Total > 0 {
			p.clear()
			p.stage = e.Stage
			p.bar = progressbar.NewOptions64(e.Total,
				progressbar.OptionSetWriter(p.terminal), progressbar.OptionSetDescription(e.Stage+" "+e.Chain),
				progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		}
	case events.StageProgress:
		if p.bar != nil && e.Stage == p.stage {
			_ = p.bar.Set64(e.Done)
		}
	case events.StageDone:
		if e.Stage == p.stage {
			p.clear()
		}
	case events.Warning:
		p.clear()
		p.log.Warn(e.Message, "subject", e.Subject, "chain", e.Chain)
	case events.StoreFailed:
		key := e.Store + " " + e.Err.Error()
		if p.failed[key] { // one that can't be opened fails for every backup
			return
		}
		if p.failed == nil {
			p.failed = map[string]bool{}
		}
		p.failed[key] = true
		p.clear()
		p.log.Warn("a store did not take the backup", "store", e.Store, "chain", e.Chain, "error", e.Err)
	}
}

func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar, p.stage = nil, ""
	}
}
