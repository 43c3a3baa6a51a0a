package plane

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"lifeboat/internal/durable"
	"lifeboat/internal/seal"
	"lifeboat/restore/files"
	"lifeboat/restore/node"
)

// step is one change of the machine.
type step struct {
	name, title, detail string

	// before returns what undoing the step needs to know. It is called once, before
	// the step is begun for the first time.
	before func(ctx context.Context) (any, error)
	// do makes the change, from whatever an earlier try has left. note is what
	// before returned then.
	do func(ctx context.Context, note json.RawMessage) error
}

// The names of the steps, in the journal and in events.
const (
	stepStop   = "stop"
	stepFence  = "fence"
	stepFiles  = "files"
	stepEtcd   = "install"
	stepStart  = "start"
	stepPods   = "pods"
	stepHealth = "health"
	stepTidy   = "tidy"
	stepBackup = "backup"

	// Of etcds outside of Kubernetes, and of a separate one for events.
	stepStopEtcd    = "stop-etcd"
	stepStopEvents  = "stop-etcd-events"
	stepEvents      = "install-events"
	stepStartEtcd   = "start-etcd"
	stepStartEvents = "start-etcd-events"
)

var (
	// stops are the steps that stop what systemd starts again when the machine boots.
	stops = []string{stepStop, stepStopEtcd, stepStopEvents}
	// stopped are those for which it must be.
	stopped = []string{stepFence, stepFiles, stepEtcd, stepEvents}
)

// StageKeys is the last look at the new member before the first change, as a stage
// in events. It is no step of the journal.
const StageKeys = "keys"

// The notes of the steps.
type (
	stopNote  struct{ Running bool }
	fenceNote struct{ Manifests, Aside, Node string }
	filesNote struct {
		Root, AsideDir, ID string
		Before             files.Before
	}
	etcdNote struct{ DataDir, AsideDir, ID string }
	podsNote struct{ Manifests, From, Undone, Node string }
)

// under is a path of the machine as this process sees it.
func (o *Options) under(path string) string { return filepath.Join(o.Root, path) }

// changes lists the steps that change the machine: what of them there is depends on
// what the node runs.
func (p *Plan) changes() (steps []step) {
	add := func(there bool, make func() step) {
		if there {
			steps = append(steps, make())
		}
	}
	server, events := p.member.server, p.events
	eventsServer := events != nil && events.server != nil
	add(p.pods(), p.stopKubelet)
	add(p.pods(), p.fencePods)
	add(server != nil, func() step { return p.stopServer(stepStopEtcd, server) })
	add(eventsServer, func() step { return p.stopServer(stepStopEvents, events.server) })
	add(true, p.restoreFiles)
	add(p.member.runs != elsewhere, p.installEtcd)
	add(events != nil, p.eventsStep)
	add(server != nil, func() step { return p.startServer(stepStartEtcd, server, waitEtcd) })
	add(eventsServer, func() step { return p.startServer(stepStartEvents, events.server, waitEvents) })
	add(p.pods(), p.startKubelet)
	add(p.pods(), p.returnPods)
	add(p.hasAPI(), p.waitForNode)
	add(true, p.tidy)
	add(true, p.backUp)
	return steps
}

func waitEtcd(ctx context.Context, h Health) error   { return h.Etcd(ctx) }
func waitEvents(ctx context.Context, h Health) error { return h.Events(ctx) }

// stopKubelet comes first.
func (p *Plan) stopKubelet() step {
	o := p.opts
	return step{
		name: stepStop, title: "Stop kubelet", detail: "It would start what is taken away, and must not see files half restored.",
		before: func(ctx context.Context) (any, error) {
			s, err := o.Machine.Service(ctx, node.Kubelet)
			return stopNote{Running: !s.Stopped()}, err
		},
		do: func(ctx context.Context, _ json.RawMessage) error { return o.Machine.Stop(ctx, node.Kubelet) },
	}
}

// fencePods stops what kubelet has started.
func (p *Plan) fencePods() step {
	o, dir, home := p.opts, p.journalDir(), p.opts.under(p.Files.Home)
	return step{
		name: stepFence, title: "Stop the control plane that is here", detail: fmt.Sprintf("The static pods' manifests move from %s to %s; their containers are stopped.", home, filepath.Join(dir, "fenced")),
		before: func(context.Context) (any, error) {
			return fenceNote{Manifests: home, Aside: filepath.Join(dir, "fenced"), Node: p.here}, nil
		},
		do: func(ctx context.Context, note json.RawMessage) error {
			var n fenceNote
			if err := json.Unmarshal(note, &n); err != nil {
				return err
			}
			_, err := node.Fence(ctx, o.Machine, node.FenceOptions{Manifests: n.Manifests, Aside: n.Aside, Node: n.Node})
			return err
		},
	}
}

// restoreFiles puts all files back but the static pods' manifests.
func (p *Plan) restoreFiles() step {
	o := p.opts
	return step{
		name: stepFiles, title: "Put the node's files back", detail: p.filesDetail(),
		before: func(ctx context.Context) (any, error) {
			plan, _, err := p.prepareFiles(ctx)
			if err != nil {
				return nil, err
			}
			defer plan.Close()
			return filesNote{Root: o.Root, AsideDir: o.aside(), ID: p.id, Before: plan.Before()}, nil
		},
		do: func(ctx context.Context, _ json.RawMessage) error { return p.putFiles(ctx) },
	}
}

// installEtcd exchanges the members.
func (p *Plan) installEtcd() step {
	o := p.opts
	return step{
		name: stepEtcd, title: "Put the new etcd member in place", detail: p.etcdDetail,
		before: func(context.Context) (any, error) {
			return etcdNote{DataDir: p.dataDir, AsideDir: o.aside(), ID: p.id}, nil
		},
		do: func(ctx context.Context, _ json.RawMessage) error {
			if p.installed {
				return nil
			}
			return p.Etcd.Install(ctx)
		},
	}
}

// startKubelet gives it its files, and no pods.
func (p *Plan) startKubelet() step {
	o := p.opts
	return step{
		name: stepStart, title: "Start kubelet", detail: "With the restored files, and no static pods yet.",
		before: func(context.Context) (any, error) { return struct{}{}, nil },
		do: func(ctx context.Context, _ json.RawMessage) error {
			// Kubelet watches the folder that it finds when it starts. One that comes
			// later it sees at its next look, up to 20 s after.
			if err := durable.MkdirAll(o.under(p.Files.Home), 0o755); err != nil {
				return err
			}
			// One that runs by now has read files of before.
			s, err := o.Machine.Service(ctx, node.Kubelet)
			if err == nil && s.Unit != "" && !s.Stopped() {
				err = o.Machine.Stop(ctx, node.Kubelet)
			}
			if err != nil {
				return err
			}
			return o.Machine.Start(ctx, node.Kubelet)
		},
	}
}

// returnPods gives kubelet the manifests.
func (p *Plan) returnPods() step {
	dir, home := p.journalDir(), p.opts.under(p.Files.Home)
	return step{
		name: stepPods, title: "Bring the static pods back", detail: fmt.Sprintf("Their manifests go to %s: etcd's, and when it serves the API server's, and when that is ready the others.", home),
		before: func(context.Context) (any, error) {
			return podsNote{Manifests: home, From: p.Files.Manifests(), Undone: filepath.Join(dir, "undone"), Node: p.Node()}, nil
		},
		do: func(ctx context.Context, note json.RawMessage) error { return p.bringPods(ctx, note) },
	}
}

// waitForNode believes nothing that the database says of before.
func (p *Plan) waitForNode() step {
	return step{
		name: stepHealth, title: "Wait until the node tells of itself", detail: "What the restored database says of nodes is old: a heartbeat from after the restore counts.",
		before: func(context.Context) (any, error) { return struct{}{}, nil },
		do: func(ctx context.Context, _ json.RawMessage) error {
			began := p.journal.Step(stepStart).Begun
			return p.waitFor(ctx, func(ctx context.Context, h Health) error {
				if err := h.Etcd(ctx); err != nil { // no heartbeat is written under an alarm
					return err
				}
				return h.Node(ctx, began)
			})
		},
	}
}

// tidy ends what only the old machines had.
func (p *Plan) tidy() step {
	return step{
		name: stepTidy, title: "Tidy what belonged to machines that are gone", detail: p.tidyDetail(),
		before: func(context.Context) (any, error) { return struct{}{}, nil },
		do: func(ctx context.Context, _ json.RawMessage) error {
			return p.waitFor(ctx, func(ctx context.Context, h Health) error {
				done, left, err := h.Tidy(ctx)
				p.Tidied, p.Left = append(p.Tidied, done...), append(p.Left, left...)
				return err
			})
		},
	}
}

func (p *Plan) tidyDetail() string {
	detail := "Alarms, addresses of API servers and nodes that went, names in kubeadm's ConfigMaps."
	if p.Order.Members == All {
		detail += " Ask etcd's members whether they hold the same (HashKV)."
	}
	return detail
}

// backUp begins the new history's backups.
func (p *Plan) backUp() step {
	return step{
		name: stepBackup, title: "Take a full backup", detail: "A new history begins here, and nothing before it can be gone on with.",
		before: func(context.Context) (any, error) { return struct{}{}, nil },
		do: func(ctx context.Context, _ json.RawMessage) error {
			return p.waitFor(ctx, func(ctx context.Context, h Health) (err error) {
				p.NewBackup, err = h.Backup(ctx)
				return err
			})
		},
	}
}

func (p *Plan) filesDetail() string {
	return fmt.Sprintf("Of backup %s, below %s. What is there and differs is kept in %s.", p.Order.FilesID, p.opts.Root, filepath.Join(p.opts.aside(), p.id))
}

// prepareFiles compares what is staged with the machine.
func (p *Plan) prepareFiles(ctx context.Context) (*files.Plan, *os.File, error) {
	f, err := os.Open(p.Files.Archive())
	if err != nil {
		return nil, nil, err
	}
	plan, err := files.Prepare(ctx, f, files.Options{
		Root: p.opts.Root, AsideDir: p.opts.aside(), RestoreID: p.id, Limits: seal.Limits{},
	})
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return plan, f, nil
}

func (p *Plan) putFiles(ctx context.Context) error {
	plan, f, err := p.prepareFiles(ctx)
	if err != nil {
		return err
	}
	defer plan.Close()
	defer f.Close()
	_, err = plan.Apply(ctx, f)
	return err
}

// bringPods puts the manifests in place, one after the other.
func (p *Plan) bringPods(ctx context.Context, note json.RawMessage) error {
	var n podsNote
	if err := json.Unmarshal(note, &n); err != nil {
		return err
	}
	_, err := node.Unfence(ctx, node.UnfenceOptions{Manifests: n.Manifests, Aside: n.From, Ready: func(ctx context.Context, m node.Manifest) error {
		switch {
		case p.events != nil && m.Pod == p.events.Pod:
			return p.waitFor(ctx, waitEvents)
		case m.Pod == "etcd" && p.member.runs == inPod:
			return p.waitFor(ctx, waitEtcd)
		case m.Pod == "kube-apiserver":
			return p.waitFor(ctx, func(ctx context.Context, h Health) error { return h.API(ctx) })
		}
		return nil
	}})
	if err != nil {
		return err
	}
	// Also where the manifests were there already: a killed restore has not waited.
	if p.member.runs == inPod || !p.hasAPI() {
		if err := p.waitFor(ctx, waitEtcd); err != nil || !p.hasAPI() {
			return err
		}
	}
	return p.waitFor(ctx, func(ctx context.Context, h Health) error { return h.API(ctx) })
}

// waitFor gives one wait its limit.
func (p *Plan) waitFor(ctx context.Context, wait func(context.Context, Health) error) error {
	if p.health == nil {
		h, err := p.opts.Health(p.Files)
		if err != nil {
			return err
		}
		p.health = h
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.opts.Limit, fmt.Errorf("not within %s", p.opts.Limit))
	defer cancel()
	return wait(ctx, p.health)
}
