// Package node is the living machine below a restore: its services, processes,
// containers, addresses, disks and ports, and the fence that keeps the old
// control plane from running while its files change.
//
// Machine is what the rest of a restore sees of it, so that tests can put
// another in its place. Local is the real one: systemd by systemctl, processes
// by /proc, containers by the runtime's CRI socket. Fence and Unfence work on
// any Machine and on two folders of manifests.
//
// Nothing here knows of backups, and nothing reads or changes the files of etcd
// or Kubernetes but the manifests that Fence moves.
package node

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"time"
)

var (
	// ErrByHand: lifeboat can't start or stop the service on this machine, a
	// person must. The error says what.
	ErrByHand = errors.New("must be done by hand")
	// ErrNoRuntime: no container runtime's socket was found, or nothing answers on it.
	ErrNoRuntime = errors.New("no container runtime answers")
	// ErrAlive: something of the control plane still runs. The error names it.
	ErrAlive = errors.New("still running")
)

// Machine is what a restore needs of the machine that it runs on. All methods
// may be called at any time and from several goroutines; those that change
// something do nothing where it is done already.
type Machine interface {
	// Service tells the state of a service, such as Kubelet.
	Service(ctx context.Context, name string) (Service, error)
	// Stop stops a service and returns when it has stopped. ErrByHand if that is
	// not systemd's.
	Stop(ctx context.Context, name string) error
	// Start starts a service, with its unit as it is on disk now. ErrByHand if
	// that is not systemd's.
	Start(ctx context.Context, name string) error

	// Processes returns the running processes of the programs, by argv[0]'s
	// base, ordered by pid; without programs, all.
	Processes(ctx context.Context, programs ...string) ([]Process, error)
	// WaitGone waits until none of the processes is left. When the context ends
	// before, the error wraps ErrAlive and names those that are.
	WaitGone(ctx context.Context, processes []Process) error

	// Pods returns the pod sandboxes that the container runtime knows, with their
	// containers, stopped ones too. ErrNoRuntime if it doesn't answer.
	Pods(ctx context.Context) ([]Pod, error)
	// StopPods stops the pods' containers, by force after the grace, removes the
	// pods and returns when the runtime doesn't know them any more. When the
	// context ends before, the error wraps ErrAlive and names those that are left.
	StopPods(ctx context.Context, pods []Pod, grace time.Duration) error
	// Images returns the images that the container runtime has.
	Images(ctx context.Context) ([]Image, error)
	// HasImage says whether the runtime has an image under this reference.
	HasImage(ctx context.Context, reference string) (bool, error)

	// Identity tells the machine's host name and addresses.
	Identity() (Identity, error)
	// Space tells the free bytes and the file system of a path, or of its nearest
	// parent that exists.
	Space(path string) (Space, error)
	// Listeners tells who listens on these TCP ports of the machine.
	Listeners(ctx context.Context, ports ...uint16) ([]Listener, error)
}

// Options say what Local works on. The zero value is this machine.
type Options struct {
	Root   string // below which proc, run, etc and var lie; default /
	Socket string // the container runtime's, a path or unix:// URL; default: found by RuntimeSocket
	// Sleep waits between two looks; default: a timer. It returns the context's
	// error when that ends before.
	Sleep func(context.Context, time.Duration) error
}

// Local is the machine that this process runs on.
type Local struct {
	root, socket string
	sleep        func(context.Context, time.Duration) error
}

var _ Machine = (*Local)(nil)

// New returns the machine. It looks at nothing yet.
func New(o Options) *Local {
	l := &Local{root: o.Root, socket: o.Socket, sleep: o.Sleep}
	if l.root == "" {
		l.root = "/"
	}
	if l.sleep == nil {
		l.sleep = sleep
	}
	return l
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// lookAgain is how long to wait between two looks at what should end.
const lookAgain = 100 * time.Millisecond

func (l *Local) path(parts ...string) string {
	return filepath.Join(append([]string{l.root}, parts...)...)
}

// Identity is how the machine is called and reached.
type Identity struct {
	Hostname  string
	Addresses []Address // in the order of the interfaces
}

// Address is one of an interface's.
type Address struct {
	Interface string
	Prefix    netip.Prefix
}

// Has says whether the machine has the address.
func (i Identity) Has(a netip.Addr) bool {
	for _, own := range i.Addresses {
		if own.Prefix.Addr() == a.Unmap() {
			return true
		}
	}
	return false
}

// Space is a file system as seen from a path.
type Space struct {
	Free, Total int64  // bytes; Free is what an unprivileged process can still write
	MountPoint  string // the path that it is mounted at
	Type        string // ext4, xfs, tmpfs, ...
	Source      string // the device, as the mount names it
	ReadOnly    bool
}
