package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/restore"
	"lifeboat/restore/plane"
	"lifeboat/restore/topology"
)

// planePlanJSON is what a dry run prints of a restore of a control plane.
type planePlanJSON struct {
	RestoreID   string          `json:"restoreID"`
	Node        string          `json:"node"`      // as it will be called
	Continues   bool            `json:"continues"` // an interrupted restore
	Members     plane.Members   `json:"members"`
	FilesBackup manifest.ID     `json:"filesBackup"`
	Point       pointJSON       `json:"point"`
	Token       string          `json:"token"`
	Bump        uint64          `json:"bump"`
	ClusterID   manifest.EtcdID `json:"clusterID"` // that the new etcd will have
	Summary     string          `json:"summary"`
	Steps       []planeStepJSON `json:"steps"`
	Warnings    []string        `json:"warnings"`
	Notes       []string        `json:"notes"`
	Host        *topology.Host  `json:"host"`               // null where an interrupted restore goes on
	Survivor    *survivorJSON   `json:"survivor,omitempty"` // where etcd's state comes from, if not from a backup
}

type planeStepJSON struct {
	Stage  string `json:"stage"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Done   bool   `json:"done"` // by an earlier run
}

func (r *rebuild) describe() planePlanJSON {
	p := r.plan
	out := planePlanJSON{
		RestoreID: p.ID(), Node: p.Node(), Continues: p.Begun != nil, Members: p.Order.Members, FilesBackup: p.Order.FilesID,
		Point: describePoint(p.Etcd.Choice), Token: p.Order.Token, Bump: p.Order.Bump, ClusterID: p.Etcd.ClusterID,
		Summary: p.Summary, Steps: []planeStepJSON{}, Warnings: orEmpty(p.Warnings), Notes: orEmpty(r.notes()), Host: p.Host, Survivor: describeSurvivor(p.Etcd.Survivor),
	}
	for _, s := range p.Steps {
		out.Steps = append(out.Steps, planeStepJSON{s.Stage, s.Title, s.Detail, p.Done(s.Stage)})
	}
	return out
}

// notes are the plan's, with what the other nodes must do meanwhile.
func (r *rebuild) notes() []string {
	notes := r.plan.Notes
	if r.plan.Order.Members == plane.All && r.shared == nil {
		file := r.flags.share
		if file == "" {
			file = "restore.json"
			notes = append(notes, "The other nodes need this restore's order: give --share restore.json, and take that file to each of them.")
		}
		notes = append(notes, fmt.Sprintf("On each of the other nodes (%s), at the same time, since etcd serves when most of them are there:\n  %s\nAfter a dry run, this node takes it too, so that all have the same.",
			strings.Join(r.plan.Others(), ", "), r.command("--with "+file)))
	}
	return notes
}

// command is what a person types on another node.
func (r *rebuild) command(flags string) string {
	return "lifeboat restore control-plane --identity FILE " + flags + r.reading()
}

// show prints the plan, and writes the order for the other nodes.
func (r *rebuild) show() error {
	if err := r.share(); err != nil {
		return err
	}
	if r.flags.confirm.dryRun && r.format == "json" {
		return r.printJSON(r.describe())
	}
	printed := *r.plan.Plan
	printed.Notes = r.notes()
	return printed.Print(r.planStream(r.flags.confirm))
}

// narrator tells each step as it is taken, with its number in the plan.
func (r *rebuild) narrator() *narrator {
	n := &narrator{w: r.err, steps: r.plan.Steps, clock: &r.clock}
	if r.quiet {
		n.w = io.Discard
	}
	return n
}

type narrator struct {
	w     io.Writer
	steps []restore.Step
	clock *stopwatch

	mu sync.Mutex
}

func (n *narrator) event(e events.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch e := e.(type) {
	case events.StageStarted:
		for i, s := range n.steps {
			if s.Stage == e.Stage {
				fmt.Fprintf(n.w, "%2d/%d %s\n", i+1, len(n.steps), s.Title)
			}
		}
	case events.StageDone:
		title := e.Stage
		for _, s := range n.steps {
			if s.Stage == e.Stage {
				title = s.Title
			}
		}
		if e.Err == nil {
			n.clock.step(e.Stage, title, e.Duration)
			fmt.Fprintf(n.w, "      %s\n", humanTook(e.Duration))
		}
	}
}

// say tells what is waited for.
func (r *rebuild) say(text string) {
	if !r.quiet {
		fmt.Fprintf(r.err, "      %s\n", text)
	}
}

// stopwatch says how long the parts of a restore took.
type stopwatch struct {
	now   func() time.Time
	began time.Time
	asked time.Duration // that a person took to answer

	mu    sync.Mutex
	last  time.Time // when the plan was there
	steps []phaseJSON
	marks map[string]time.Duration // since the beginning, without asked
}

// The marks.
const (
	markEtcd  = "etcd"
	markAPI   = "readyz"
	markNode  = "heartbeat"
	markEnded = "end"
)

// step notes one part that has ended.
func (s *stopwatch) step(stage, title string, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, phaseJSON{Stage: stage, Title: title, Seconds: took.Seconds()})
}

// planned notes that the plan is there, and a person is asked next.
func (s *stopwatch) planned() {
	s.last = s.now()
	s.step("plan", "Find the backups, unseal the node's files, look at the machine", s.last.Sub(s.began))
}

// answered notes that a person has.
func (s *stopwatch) answered() { s.asked = s.now().Sub(s.last) }

// mark notes the first time that something is reached.
func (s *stopwatch) mark(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.marks[what]; known {
		return
	}
	if s.marks == nil {
		s.marks = map[string]time.Duration{}
	}
	s.marks[what] = s.now().Sub(s.began) - s.asked
}
