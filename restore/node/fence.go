package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/durable"
)

// FenceOptions say what Fence keeps from running.
type FenceOptions struct {
	Manifests string   // kubelet's folder of static pods (staticPodPath)
	Aside     string   // a folder outside of it, made if missing (0700)
	Names     []string // the static pods', as in their manifests; none: all in the two folders
	// Node is the name under which kubelet runs: the runtime knows the pod etcd as
	// etcd-NODE. Static pods of another or no node are told by what their names
	// begin with: etcd-ANYTHING is taken for etcd unless another manifest fits better.
	Node string
	// Grace is how long containers may take to end by themselves; default 10 s. An
	// API server without its etcd uses up all of it, and has nothing to lose.
	Grace time.Duration
	Limit time.Duration // for all of it; default 3 min
	// Settle is how long nothing may have come back while kubelet runs, which
	// could still be about to start a pod; default 2 s.
	Settle time.Duration
	// Sleep waits between two looks, as Options.Sleep.
	Sleep func(context.Context, time.Duration) error
}

// Fenced is what Fence did.
type Fenced struct {
	Moved   []Manifest // to the aside folder, in this order
	Aside   []Manifest // were there before
	Stopped []Pod      // that still had a sandbox
	// Runtime is why the container runtime could not be asked; nil if it could.
	// Then only processes were looked at, by their programs' names.
	Runtime error
}

// Fence takes the static pods' manifests out of kubelet's sight, stops their
// pods and returns when none of their containers and processes is left. It can be
// called again after any failure and goes on from what it finds.
//
// First the manifests move, those that write to etcd before etcd's own, each durably,
// and with them what is no pod, or none any more: it would be in the way of the manifest
// that comes back under its name, which counts as its pod's.
// A file whose name is taken in the aside folder is an error, unless both are the
// same. Then the pods are stopped until none is left. The processes that must be
// gone are those of the pods' containers, and etcd and Kubernetes' own in the
// machine's network that belong to no other pod: what a dead runtime left, or what runs
// without Kubernetes. While no runtime answers, all that are called like one of the
// pods are counted. When the limit has passed, the error wraps
// ErrAlive and names what still lives.
func Fence(ctx context.Context, m Machine, o FenceOptions) (Fenced, error) {
	o.Grace, o.Limit, o.Settle = cmp.Or(o.Grace, 10*time.Second), cmp.Or(o.Limit, 3*time.Minute), cmp.Or(o.Settle, 2*time.Second)
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	var done Fenced
	fail := func(err error) (Fenced, error) {
		return done, fmt.Errorf("fence the static pods of %s: %w", o.Manifests, err)
	}
	if err := apart(o.Manifests, o.Aside); err != nil {
		return fail(err)
	}
	inside, err := ReadManifests(o.Manifests, o.Manifests)
	if err != nil {
		return fail(err)
	}
	if done.Aside, err = ReadManifests(o.Aside, o.Manifests); err != nil {
		return fail(err)
	}
	f := &fence{machine: m, options: o, names: o.Names, all: o.Names, containers: map[string]bool{}}
	for _, manifest := range slices.Concat(inside, done.Aside) {
		f.all = append(slices.Clip(f.all), manifest.name())
	}
	if len(f.names) == 0 {
		f.names = f.all
	}
	others := func(m Manifest) bool { return !slices.Contains(f.names, m.name()) }
	inside, done.Aside = slices.DeleteFunc(inside, others), slices.DeleteFunc(done.Aside, others)

	ctx, cancel := context.WithTimeoutCause(ctx, o.Limit, fmt.Errorf("no end after %v", o.Limit))
	defer cancel()
	// What the pods' containers are called must be known before kubelet removes them.
	before, err := f.look(ctx)
	if err != nil {
		return fail(err)
	}
	if len(inside) > 0 {
		if err := durable.MkdirAll(o.Aside, 0o700); err != nil {
			return fail(fmt.Errorf("make the folder to move manifests to: %w", err))
		}
	}
	inOrder(inside)
	slices.Reverse(inside)
	for _, manifest := range inside {
		if err := move(filepath.Join(o.Manifests, manifest.File), filepath.Join(o.Aside, manifest.File)); err != nil {
			return fail(err)
		}
		done.Moved = append(done.Moved, manifest)
	}
	err = f.stopAll(ctx, before)
	done.Stopped, done.Runtime = f.stopped, f.runtime
	if err != nil {
		return fail(err)
	}
	return done, nil
}

// fence is one Fence under way.
type fence struct {
	machine    Machine
	options    FenceOptions
	names      []string        // of the static pods that must go
	all        []string        // of these and of those that have a manifest
	containers map[string]bool // ids of theirs that were seen, sandboxes too
	stopped    []Pod
	runtime    error // why the runtime could not be asked the last time
}

// alive is what a look found of the fenced pods.
type alive struct {
	pods      []Pod
	processes []Process
}

func (a alive) String() string {
	var out []string
	for _, p := range a.pods {
		out = append(out, p.String())
	}
	for _, p := range a.processes {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

// stopAll stops pods until nothing lives and nothing comes back. left is what a
// look has found before.
func (f *fence) stopAll(ctx context.Context, left alive) error {
	var failed error // to stop them, the last time
	for quiet := time.Duration(0); ; quiet += lookAgain {
		now, err := f.look(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			left = now
		}
		if len(left.pods)+len(left.processes) > 0 {
			quiet = 0
		} else if err == nil {
			kubelet, err := f.machine.Service(ctx, Kubelet)
			if err != nil && ctx.Err() == nil {
				return err
			}
			if err == nil && (kubelet.Stopped() || quiet >= f.options.Settle) {
				return nil
			}
		}
		if len(left.pods) == 0 {
			failed = nil
		} else if ctx.Err() == nil {
			failed = f.machine.StopPods(ctx, left.pods, f.options.Grace)
			if failed == nil {
				f.stopped = append(f.stopped, left.pods...)
			}
		}
		if err := f.options.Sleep(ctx, lookAgain); err != nil {
			return errors.Join(fmt.Errorf("%w: %s: %w; the manifests lie in %s: find out what keeps these, end them, and run this again",
				ErrAlive, cmp.Or(left.String(), "nothing that was seen, but kubelet may start it yet"), err, f.options.Aside), failed)
		}
	}
}

// controlPlane are the programs that must not run outside of pods either. Others,
// such as a load balancer, may have a namesake on the machine.
var controlPlane = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}

// look returns the fenced pods and processes that are there.
func (f *fence) look(ctx context.Context) (alive, error) {
	var out alive
	others := map[string]bool{} // containers of pods that may go on
	pods, err := f.machine.Pods(ctx)
	f.runtime = err
	if err != nil && !errors.Is(err, ErrNoRuntime) {
		return out, err
	}
	for _, p := range pods {
		into := others
		if f.ours(p) {
			into = f.containers
			out.pods = append(out.pods, p)
		}
		into[p.ID] = true
		for _, c := range p.Containers {
			into[c.ID] = true
		}
	}
	processes, err := f.machine.Processes(ctx)
	if err != nil {
		return out, err
	}
	for _, p := range processes {
		named := slices.Contains(f.names, p.Program) && p.HostNetwork && !others[p.Container] && p.PID != os.Getpid() &&
			(f.runtime != nil || slices.Contains(controlPlane, p.Program))
		if named || p.Container != "" && f.containers[p.Container] {
			out.processes = append(out.processes, p)
		}
	}
	return out, nil
}

// ours says whether a pod is of one of the manifests that must go.
func (f *fence) ours(p Pod) bool {
	if !p.Static {
		return false
	}
	// A wrong or former name of the node must not let a pod escape.
	if name, ok := strings.CutSuffix(p.Name, "-"+f.options.Node); ok && f.options.Node != "" {
		return slices.Contains(f.names, name)
	}
	best := ""
	for _, name := range f.all {
		if strings.HasPrefix(p.Name, name+"-") && len(name) > len(best) {
			best = name
		}
	}
	return best != "" && slices.Contains(f.names, best)
}

// UnfenceOptions say what Unfence brings back.
type UnfenceOptions struct {
	Manifests string   // kubelet's folder of static pods, made if missing (0755)
	Aside     string   // where the manifests lie
	Names     []string // the static pods', as in their manifests; none: all that lie there
	// Ready is called after each manifest is in place, and may wait until its pod
	// serves; nil: don't wait. Its error ends Unfence.
	Ready func(ctx context.Context, m Manifest) error
}

// Unfence puts manifests into kubelet's folder: etcd's, then the API server's,
// then the others. It returns what it has put there, even with an error, and can
// be called again: what is in place already it leaves out. Another file under
// the same name is an error.
func Unfence(ctx context.Context, o UnfenceOptions) ([]Manifest, error) {
	fail := func(done []Manifest, err error) ([]Manifest, error) {
		return done, fmt.Errorf("put static pods back into %s: %w", o.Manifests, err)
	}
	if err := apart(o.Manifests, o.Aside); err != nil {
		return fail(nil, err)
	}
	manifests, err := ReadManifests(o.Aside, o.Manifests)
	if err != nil {
		return fail(nil, err)
	}
	if len(o.Names) > 0 {
		manifests = slices.DeleteFunc(manifests, func(m Manifest) bool { return !slices.Contains(o.Names, m.name()) })
	}
	if err := durable.MkdirAll(o.Manifests, 0o755); err != nil {
		return fail(nil, err)
	}
	inOrder(manifests)
	for i, m := range manifests {
		if ctx.Err() != nil {
			return fail(manifests[:i], context.Cause(ctx))
		}
		if err := move(filepath.Join(o.Aside, m.File), filepath.Join(o.Manifests, m.File)); err != nil {
			return fail(manifests[:i], err)
		}
		if o.Ready == nil {
			continue
		}
		if err := o.Ready(ctx, m); err != nil {
			return fail(manifests[:i+1], fmt.Errorf("wait for %s: %w", m.name(), err))
		}
	}
	return manifests, nil
}
