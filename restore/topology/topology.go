// Package topology finds out what a restore is about to work on: what this host
// is and was, and what of the cluster still lives. It changes nothing, and asks
// etcd only what no member writes for.
//
// Inspect looks at the files below a root, at the machine, and at the members of
// the backed-up etcd; the Host that it returns prints itself and has a JSON form.
// Each of its parts says How it was found out, or why it could not be (Failed). The
// Verdict is what a restore goes by: with a living quorum nothing must be restored.
package topology

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/restore/node"
)

// Inputs say what to look at.
type Inputs struct {
	Root    string // below which the host's files lie; default /
	Machine node.Machine

	// Etcd is what the backup says of etcd and its members; nil: not known, then
	// only what this host and Facts name is asked, and no cluster can be told for the backup's.
	Etcd *manifest.Etcd
	// Point is the revision that will be restored; default: Etcd's.
	Point manifest.Revision
	// Becomes is the cluster that the restore will make, with this node's member as
	// MemberID; nil: not known. Its members, on nodes where the same restore is done
	// already, are neither survivors nor another cluster's, unless they have had this
	// node's member among them.
	Becomes *manifest.Etcd
	// Facts are those of the node's files in the backup; nil: not known.
	Facts *hostfacts.Facts
	// TLS is for clients of etcd, of the PKI in the backup or on disk; nil: members
	// that want TLS can't be asked, only that they are there can be seen.
	TLS *tls.Config

	Limits Limits
	Now    func() time.Time
	// Dial connects to etcd's members; default: as net.Dialer does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Limits bound how long an inspection takes.
type Limits struct {
	Call time.Duration // for one answer of a member or the machine; default 5 s
	// Database is the size in bytes above which a database on disk is not read
	// through; 0: any is, at about a second a gigabyte.
	Database int64
}

// Kind is what runs a control plane on a host.
type Kind string

// The kinds of hosts.
const (
	Kubeadm         Kind = "kubeadm"               // etcd is a static pod
	KubeadmExternal Kind = "kubeadm-external-etcd" // etcd is not, though it may run here too
	Etcd            Kind = "etcd"                  // no control plane, only an etcd
	K3s             Kind = "k3s"
	RKE2            Kind = "rke2"
	K0s             Kind = "k0s"
	Bare            Kind = "bare" // nothing of Kubernetes or etcd
)

// Host is what was found.
type Host struct {
	Time     time.Time `json:"time"` // by this machine's clock
	Kind     Kind      `json:"kind"` // what is on disk, or else what the backup is of
	OnDisk   Kind      `json:"onDisk"`
	InBackup Kind      `json:"inBackup,omitempty"` // empty: not known
	KindHow  string    `json:"kindHow"`
	// Distribution is how k3s, rke2 or k0s is set up here, or was on the node in the
	// backup where nothing is; nil: it is none of them, or nothing tells.
	Distribution *hostfacts.Distribution `json:"distribution,omitempty"`

	Identity  Identity   `json:"identity"`
	Pods      []Pod      `json:"pods"` // static ones, whose manifests are there
	PodsHow   string     `json:"podsHow"`
	Data      DataDir    `json:"data"`
	Spaces    []Space    `json:"spaces"`
	Services  []Service  `json:"services"`
	Runtime   Runtime    `json:"runtime"`
	Images    []Image    `json:"images"`
	Ports     Ports      `json:"ports"`
	Versions  []Version  `json:"versions"`
	Clock     Clock      `json:"clock"`
	Living    Living     `json:"living"`
	Separate  []Separate `json:"separate"` // etcds of some resources alone, such as events
	Verdict   Verdict    `json:"verdict"`
	Warnings  []Warning  `json:"warnings"`
	endpoints []string   // of the etcd on this host
	unit      string     // that runs it; empty: none that is known
	point     manifest.Revision
	unjoined  []string // files that "kubeadm join" does not bring, see hostfacts
	backup    *manifest.Etcd
	before    string          // who says that this restore was done on this node before; empty: nobody
	remade    manifest.EtcdID // the cluster that it has made then
}

// Warning is what a person should see before a restore.
type Warning struct {
	Text string `json:"text"`
	How  string `json:"how"`
}

func (h *Host) warn(how, format string, args ...any) {
	h.Warnings = append(h.Warnings, Warning{Text: fmt.Sprintf(format, args...), How: how})
}

// Inspect looks at everything once. What can't be found out is said in its
// place; an error is only that the inputs can't be used or that the context ended.
func Inspect(ctx context.Context, in Inputs) (*Host, error) {
	if in.Machine == nil || in.Now == nil {
		return nil, errors.New("inspect the host: a machine and a clock must be given")
	}
	in.Root, in.Limits.Call = cmp.Or(in.Root, "/"), cmp.Or(in.Limits.Call, 5*time.Second)
	if in.Dial == nil {
		in.Dial = new(net.Dialer).DialContext
	}
	t, err := openTree(in.Root)
	if err != nil {
		return nil, fmt.Errorf("inspect the host: %w", err)
	}
	defer t.close()
	h := &Host{Time: in.Now().UTC(), backup: in.Etcd, Warnings: []Warning{}, point: in.Point}
	if in.Facts != nil {
		h.unjoined = in.Facts.Unjoined()
	}
	if h.point == 0 && in.Etcd != nil {
		h.point = in.Etcd.Revision
	}
	own, pods := distribution(t, h.staticPods(t))
	setup := etcdSetup(t, pods, in.Facts, own)
	h.kinds(t, pods, setup, in.Facts, own)
	h.endpoints, h.unit = setup.endpoints, setup.unit
	h.identify(in)
	h.data(ctx, in, t, setup)
	h.versions(pods, setup, in)
	h.clock(in)
	h.machine(ctx, in, pods)
	h.living(ctx, in)
	h.separates(ctx, in, pods)
	for _, what := range t.unread {
		h.warn("read the files below "+in.Root, "%s", what)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("inspect the host: %w", context.Cause(ctx))
	}
	h.judge()
	return h, nil
}

// within runs one question to the machine.
func within[T any](ctx context.Context, limit time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	return ask(ctx)
}

// Clock is this machine's, beside what the backup knows.
type Clock struct {
	Now     time.Time  `json:"now"`
	Backup  *time.Time `json:"backup,omitempty"` // when the node's files were captured
	Behind  bool       `json:"behind"`           // the clock is before the backup: it is wrong
	Explain string     `json:"explain"`
	How     string     `json:"how"`
}

func (h *Host) clock(in Inputs) {
	h.Clock = Clock{Now: h.Time, How: "this machine's clock", Explain: "nothing to compare it with"}
	if in.Facts == nil || in.Facts.Created.IsZero() {
		return
	}
	created := in.Facts.Created.UTC()
	h.Clock.Backup = &created
	h.Clock.How = "this machine's clock and the backup's facts"
	h.Clock.Explain = fmt.Sprintf("the node's files were captured %s before", h.Time.Sub(created).Round(time.Second))
	if h.Time.Before(created) {
		h.Clock.Behind = true
		h.Clock.Explain = fmt.Sprintf("the clock is at least %s behind: the backup was made later than now", created.Sub(h.Time).Round(time.Second))
		h.warn(h.Clock.How, "%s; set it before certificates are checked or made", h.Clock.Explain)
	}
}
