package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
)

// burstsShown is how many of the busiest minutes a time line shows.
const burstsShown = 5

// timelineJSON is what can be restored of one etcd.
type timelineJSON struct {
	Chain   manifest.Chain `json:"chain"`
	Store   string         `json:"store"`
	Spans   []spanJSON     `json:"spans"`
	Gaps    []gapJSON      `json:"gaps"`
	Busiest []burstJSON    `json:"busiest"`
	Point   *pointJSON     `json:"point,omitempty"` // what --at or --revision means
	Command string         `json:"command,omitempty"`
}

type spanJSON struct {
	Epoch    uint64               `json:"epoch"`
	First    repository.NearPoint `json:"first"`
	Last     repository.NearPoint `json:"last"`
	Fulls    []manifest.ID        `json:"fulls"`
	Segments int                  `json:"segments"`
	RollUps  int                  `json:"rollUps"`
}

type gapJSON struct {
	From repository.NearPoint `json:"from"`
	To   repository.NearPoint `json:"to"`
	Why  string               `json:"why"`
}

type burstJSON struct {
	Epoch   uint64            `json:"epoch"`
	Minute  time.Time         `json:"minute"`
	First   manifest.Revision `json:"first"`
	Last    manifest.Revision `json:"last"`
	Changes int64             `json:"changes"` // of keys in that minute
}

// points prints the time line of an etcd, and what a point means in it.
func (a *app) points(ctx context.Context, flags pointFlags, all bool) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	chains := []manifest.Chain{flags.chain()}
	if all {
		if chains, err = a.etcdChains(ctx); err != nil {
			return err
		}
	}
	lines := []timelineJSON{}
	var unreachable error
	var failures []repository.Problem
	for _, chain := range chains {
		var line *timelineJSON
		err := a.read(ctx, s, chain, func(repo *repository.Repository) error {
			t, err := repo.Timeline(ctx, chain)
			if err != nil {
				return err
			}
			if len(t.Spans) == 0 && len(repository.Failures(t.Problems)) == 0 {
				return fmt.Errorf("list what can be restored of %s in %s: %w", chain, repo.Name(), repository.ErrNothing)
			}
			if line, err = a.timeline(ctx, repo, t); err != nil || !flags.given() {
				failures = append(failures, repository.Failures(t.Problems)...)
				return err
			}
			var point repository.Point
			if point, _, err = flags.point(ctx, repo, chain); err != nil {
				return err
			}
			choice, err := restore.Choose(ctx, repo, chain, point)
			if unreachable = err; errors.Is(err, repository.ErrUnreachable) {
				return nil // with the time line, in which one sees why
			}
			if err == nil {
				described := describePoint(*choice)
				line.Point, line.Command = &described, choice.Flags()
			}
			return err
		})
		if err != nil {
			return err
		}
		lines = append(lines, *line)
	}
	if a.format == "json" {
		err = a.printJSON(lines)
	} else {
		err = a.printTimelines(lines)
	}
	if err = errors.Join(err, unreachable); err == nil && len(failures) > 0 {
		err = &repository.VerificationError{Doing: "list what can be restored", Problems: failures}
	}
	return err
}

// etcdChains are the chains of etcd that the stores hold.
func (a *app) etcdChains(ctx context.Context) ([]manifest.Chain, error) {
	_, backups, _, err := a.backups(ctx)
	if err != nil {
		return nil, err
	}
	var chains []manifest.Chain
	for _, b := range backups {
		if strings.HasPrefix(string(b.Chain), "etcd/") {
			chains = append(chains, b.Chain)
		}
	}
	slices.Sort(chains)
	return slices.Compact(chains), nil
}

func (a *app) timeline(ctx context.Context, repo *repository.Repository, t *repository.Timeline) (*timelineJSON, error) {
	line := &timelineJSON{Chain: t.Chain, Store: repo.Name(), Spans: []spanJSON{}, Gaps: []gapJSON{}, Busiest: []burstJSON{}}
	segments := 0
	for _, s := range t.Spans {
		span := spanJSON{Epoch: s.Epoch, First: utc(s.First), Last: utc(s.Last), Fulls: []manifest.ID{}, Segments: s.Segments, RollUps: s.RollUps}
		for _, b := range s.Fulls {
			span.Fulls = append(span.Fulls, b.ID)
		}
		line.Spans = append(line.Spans, span)
		segments += s.Segments + s.RollUps
	}
	for _, g := range t.Gaps {
		line.Gaps = append(line.Gaps, gapJSON{utc(g.From), utc(g.To), g.Why})
	}
	if segments == 0 {
		return line, nil
	}
	bursts, err := repo.Busiest(ctx, t, burstsShown)
	for _, b := range bursts {
		line.Busiest = append(line.Busiest, burstJSON{b.Epoch, b.Minute.UTC(), b.First, b.Last, b.Changes})
	}
	return line, err
}

func utc(p repository.NearPoint) repository.NearPoint {
	p.Time = p.Time.UTC()
	return p
}

// wallTime writes a time as --at reads it.
func wallTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func (a *app) printTimelines(lines []timelineJSON) error {
	if len(lines) == 0 {
		fmt.Fprintln(a.err, "no backups of etcd yet")
	}
	for i, line := range lines {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		zone, _ := a.now().Local().Zone()
		fmt.Fprintf(a.out, "%s in %s, times in %s\n\n", line.Chain, line.Store, zone)
		if err := table(a.out, spanRows(line)); err != nil {
			return err
		}
		if n := len(line.Spans); n > 0 {
			last := line.Spans[n-1].Last
			fmt.Fprintf(a.out, "\nthe latest is revision %d of epoch %d, as of %s (age %s)\n", last.Revision, last.Epoch, wallTime(last.Time), humanAge(a.now().Sub(last.Time)))
		}
		if len(line.Busiest) > 0 {
			fmt.Fprintf(a.out, "\nwhat changed most:\n")
			rows := [][]string{{"MINUTE", "CHANGES", "REVISIONS", "EPOCH"}}
			for _, b := range line.Busiest {
				rows = append(rows, []string{wallTime(b.Minute), fmt.Sprint(b.Changes), fmt.Sprintf("%d to %d", b.First, b.Last), fmt.Sprint(b.Epoch)})
			}
			if err := table(a.out, rows); err != nil {
				return err
			}
		}
		if line.Point != nil {
			p := line.Point
			choice := restore.Choice{Epoch: p.Epoch, Revision: p.Revision, At: p.At, After: repository.After(p.After)}
			fmt.Fprintf(a.out, "\nthat is %s; %s\nto restore it: %s\n", choice.Told(wallTime), choice.BehindTold(wallTime), line.Command)
		}
	}
	return nil
}

// spanRows are a time line's spans and what is missing between them, in the
// order of time.
func spanRows(line timelineJSON) [][]string {
	rows := [][]string{{"EPOCH", "FROM", "TO", "REVISIONS", "FULLS", "SEGMENTS", "REMARK"}}
	for i, s := range line.Spans {
		remark := ""
		if s.Segments+s.RollUps == 0 {
			remark = "only fulls"
			if len(s.Fulls) == 1 {
				remark = "full " + string(s.Fulls[0])
			}
		}
		segments := fmt.Sprint(s.Segments + s.RollUps)
		if s.RollUps > 0 {
			segments += fmt.Sprintf(" (%d rolled up)", s.RollUps)
		}
		rows = append(rows, []string{
			fmt.Sprint(s.Epoch), wallTime(s.First.Time), wallTime(s.Last.Time), fmt.Sprintf("%d to %d", s.First.Revision, s.Last.Revision),
			fmt.Sprint(len(s.Fulls)), segments, remark,
		})
		if i < len(line.Gaps) {
			g := line.Gaps[i]
			missing := ""
			if n := g.To.Revision - g.From.Revision - 1; n > 0 && g.From.Epoch == g.To.Epoch {
				missing = fmt.Sprintf("%d to %d", g.From.Revision+1, g.To.Revision-1)
			}
			rows = append(rows, []string{"gap", wallTime(g.From.Time), wallTime(g.To.Time), missing, "", "", g.Why})
		}
	}
	return rows
}
