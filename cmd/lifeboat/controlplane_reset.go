package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"lifeboat/backup"
	"lifeboat/internal/distro"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/plane"
	"lifeboat/restore/reset"
	"lifeboat/restore/topology"
)

// resetting is what to do on a server of k3s, rke2 or k0s, which restore their own
// etcd: lifeboat says how, and does nothing.
type resetting struct {
	plan  *reset.Plan
	aim   *restore.Aim
	files manifest.ID // of the node's files; empty: there are none
	host  *topology.Host
}

// resetJSON is what is printed of it.
type resetJSON struct {
	Changed     bool           `json:"changed"` // false: nothing was done
	Node        string         `json:"node"`
	FilesBackup manifest.ID    `json:"filesBackup"`
	Point       pointJSON      `json:"point"`
	Bump        uint64         `json:"bump"`
	Reset       *reset.Plan    `json:"reset"`
	Host        *topology.Host `json:"host"`
}

// planReset plans a reset where this host or the backup is of a distribution; nil: it
// is of none.
func (r *rebuild) planReset(ctx context.Context, repo *repository.Repository, at aim) (*resetting, error) {
	here, err := topology.Distribution(r.flags.root)
	if err != nil {
		return nil, err
	}
	out := &resetting{}
	saved, err := r.savedFacts(ctx, repo, out)
	if err != nil && here == nil && ctx.Err() == nil {
		return nil, nil // an interrupted restore may have the files already; else it meets the same
	}
	if err != nil {
		return nil, err
	}
	d, err := whichDistribution(here, saved.Facts, r.order.Node)
	if d == nil || err != nil {
		return nil, err
	}
	if o := r.flags.order; r.shared != nil || r.flags.members == string(plane.All) || len(o.Rename)+len(o.Address)+len(o.Endpoint) > 0 {
		return nil, fmt.Errorf("%w: %s restores its own etcd, on one server, and the others join that: --with, --members all, --rename, --address and --endpoint are for kubeadm's nodes", errUsage, d.Kind)
	}
	point := at.point
	if r.order.Point != (repository.Point{}) {
		point = r.order.Point
	}
	if out.aim, err = restore.AimAt(ctx, repo, at.chain, point, at.without, r.now()); err != nil {
		return nil, err
	}
	out.host, err = topology.Inspect(ctx, topology.Inputs{
		Root: r.flags.root, Machine: r.machine, Etcd: out.aim.Etcd, Point: out.aim.Choice.Revision, Facts: saved.Facts, TLS: saved.TLS, Now: r.now,
	})
	if err != nil {
		return nil, err
	}
	if why, do := livesStill(out.host); why != "" {
		return nil, fmt.Errorf("%w: %s\n%s", restore.ErrRefused, why, do)
	}
	in := reset.Inputs{
		Distribution: d, Node: r.order.Node, Facts: saved.Facts, Etcd: out.aim.Etcd, Hostname: strings.ToLower(out.host.Identity.Hostname), Addresses: ownAddresses(out.host.Identity),
		Point: strings.TrimSpace(r.flags.point.chainFlag() + " " + out.aim.Choice.Flags()), Reading: r.reading(), Identity: r.identityFile(), Bump: out.aim.Bump, Now: r.now(),
	}
	if out.files != "" {
		in.Files = "--backup " + string(out.files)
	}
	if out.plan, err = reset.New(in); errors.Is(err, reset.ErrDatastore) {
		return nil, fmt.Errorf("%w: %w", restore.ErrRefused, err)
	}
	return out, err
}

// savedFacts reads what the newest files of the node, or those that were named, tell.
// None is no error: whoever needs them says so.
func (r *rebuild) savedFacts(ctx context.Context, repo *repository.Repository, out *resetting) (*restore.NodeFacts, error) {
	m, err := repo.Resolve(ctx, backup.FilesChain(r.order.Node), repository.Point{Backup: r.order.FilesID})
	if errors.Is(err, repository.ErrNothing) {
		return &restore.NodeFacts{}, nil
	}
	if err != nil {
		return nil, err
	}
	out.files = m.ID
	return restore.ReadNodeFacts(ctx, repo, m, r.identities)
}

// whichDistribution is the one that the backup is of, as it was set up there, or
// where the backup has no files the one that is set up here; nil: neither is of any.
func whichDistribution(here *hostfacts.Distribution, facts *hostfacts.Facts, node string) (*hostfacts.Distribution, error) {
	if facts == nil {
		return here, nil
	}
	was := facts.Distribution
	if was == nil && facts.Etcd != nil { // the facts of older backups say no more than this
		if was = distro.Usual(facts.Etcd.Kind); was != nil && here != nil && here.Kind == was.Kind {
			was = here
		}
	}
	switch {
	case here == nil:
		return was, nil
	case was == nil || was.Kind != here.Kind:
		what := "of no such one"
		if was != nil {
			what = "of " + was.Kind
		}
		return nil, fmt.Errorf("%w: this host is a server of %s (%s), and the backed-up files of %s are %s. Is it the right machine, and the right --node? If it is, and %[2]s is only what an earlier installation has left here, move that away and run this again: mv -T %[3]s %[3]s.left",
			restore.ErrRefused, here.Kind, here.How, cmp.Or(node, "the node"), what)
	}
	return was, nil
}

// livesStill says why nothing must be reset: the cluster lives. Where a member of k0s
// answers, others can't be asked, since it has them listen to their own host alone;
// but a member that has a leader is one of a quorum.
func livesStill(h *topology.Host) (why, do string) {
	v := h.Verdict
	if v.Refuse {
		return strings.Join(v.Why, "; "), strings.Join(v.Do, "\n")
	}
	for _, m := range h.Living.Members {
		if h.Kind == topology.K0s && m.State == topology.Answers && m.Leader != 0 && (h.Living.Same == nil || *h.Living.Same) {
			return fmt.Sprintf("%s answers at %s and has a leader, so a quorum of the cluster lives: nothing must be restored", m, m.Endpoint),
				"If files of this node are lost, restore these alone: lifeboat restore files. To give the cluster up all the same, stop all controllers first: systemctl stop k0scontroller"
		}
	}
	return "", ""
}

// ownAddresses are this machine's, the one that the node had before, or that takes its
// place, first.
func ownAddresses(id topology.Identity) []string {
	first := slices.Clone(id.WasAt)
	for _, pair := range id.Address {
		_, to, _ := strings.Cut(pair, "=")
		first = append(first, to)
	}
	out := slices.DeleteFunc(first, func(a string) bool { return !slices.Contains(id.Addresses, a) })
	for _, a := range id.Addresses {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// identityFile is the first that was given, as a command line names it again.
func (a *app) identityFile() string {
	if len(a.identities) > 0 && a.identities[0] != "-" {
		return a.identities[0]
	}
	return ""
}

// chainFlag is the flag for an etcd that is not the main one.
func (f *pointFlags) chainFlag() string {
	if f.etcd == "" || f.etcd == "main" {
		return ""
	}
	return "--etcd " + f.etcd
}

// showReset prints the commands. Unless nothing else was asked for, the run has not
// done what it was to do.
func (r *rebuild) showReset() error {
	s := r.reset
	if r.format == "json" {
		err := r.printJSON(resetJSON{Node: r.order.Node, FilesBackup: s.files, Point: describePoint(s.aim.Choice), Bump: s.aim.Bump, Reset: s.plan, Host: s.host})
		if err != nil {
			return err
		}
	} else {
		fmt.Fprintf(r.out, "The point is %s; %s.\n", s.aim.Choice, s.aim.Choice.Behind())
		for _, w := range s.host.Warnings {
			r.warn("%s (%s)", w.Text, w.How)
		}
		if err := s.plan.Print(r.out); err != nil {
			return err
		}
	}
	if r.flags.confirm.dryRun {
		return nil
	}
	return fmt.Errorf("%w: %s restores its own etcd: nothing was changed. Run the commands above; --dry-run prints them too", restore.ErrRefused, s.plan.Kind)
}
