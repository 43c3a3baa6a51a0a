package plane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/datadir"
	"lifeboat/restore/readdress"
	"lifeboat/restore/topology"
)

// apart is the etcd that holds events and is not the main one, where the node
// runs a member of it.
type apart struct {
	hostfacts.Separate
	server    *hostfacts.EtcdServer // nil: a static pod
	dataDir   string                // as this process sees it
	options   datadir.Options       // of a member that begins empty
	staging   *datadir.Staging
	etcd      *restore.EtcdPlan // of one that comes from its own chain; nil: it begins empty
	installed bool
}

// StageEvents is the making of the new member for events, as a stage in events.
const StageEvents = "stage-events"

// eventsID names what the restore of the events' etcd keeps aside.
func (p *Plan) eventsID() string { return p.id + ".events" }

// eventsRate is by how much a second the revision of an events' etcd that begins
// empty goes up with the clock: more than any such etcd writes. So whatever was
// there before, also after an earlier restore, is behind what it begins with.
const eventsRate = 1000

// planEvents finds out what becomes of the etcd that holds events. Without
// another order it begins empty: events are of use for an hour, and are no
// part of any state.
func (p *Plan) planEvents(ctx context.Context) error {
	if p.Files.Etcd == nil {
		if p.Order.Events != "" {
			return refuse("node %s has no API server that tells of a separate etcd for events", p.Order.Node)
		}
		return nil
	}
	i := slices.IndexFunc(p.Files.Etcd.Separate, func(s hostfacts.Separate) bool { return slices.Contains(s.Resources, "/events") })
	for j, s := range p.Files.Etcd.Separate {
		if j != i {
			p.adviseOfSeparate(s, j)
		}
	}
	if i < 0 {
		if p.Order.Events != "" {
			return refuse("the API server of node %s keeps events in its main etcd: there is nothing to restore from %s", p.Order.Node, p.Order.Events)
		}
		return nil
	}
	s := p.Files.Etcd.Separate[i]
	switch {
	case !s.Here() && p.Order.Events != "":
		return refuse("node %s runs no member of the etcd that holds events (%s): restore it on its own host, with \"lifeboat restore control-plane --etcd %s\" there",
			p.Order.Node, strings.Join(s.Servers, ", "), strings.TrimPrefix(string(p.Order.Events), "etcd/"))
	case !s.Here():
		p.adviseOfSeparate(s, i)
		return nil
	case p.Order.Events == "" && !s.EventsOnly():
		p.doubts = append(p.doubts, fmt.Sprintf("the etcd of %s at %s holds more than events, and is left as it is: if it is lost, restore it from its own chain with --events-from", strings.Join(s.Resources, ", "), strings.Join(s.Servers, ", ")))
		return nil
	case p.Order.Events == "" && p.Order.EventsBump == 0 && (p.journal != nil || p.opts.Shared != nil || p.othersHoldEvents(i)):
		return nil // it was left alone, or is now
	}
	a := &apart{Separate: s, dataDir: p.opts.under(s.DataDir)}
	if s.DataDir == "" || len(s.PeerURLs) == 0 {
		return refuse("the etcd for events of node %s (%s) has no data directory or peer URL that the backup tells: it can't be set up anew", p.Order.Node, s.Pod+s.Server)
	}
	if s.Server != "" {
		j := slices.IndexFunc(p.Files.Servers, func(server hostfacts.EtcdServer) bool { return server.DataDir == s.Server })
		if j < 0 {
			return refuse("the etcd for events of node %s was run from %s, and the backup does not tell how", p.Order.Node, s.Server)
		}
		a.server = &p.Files.Servers[j]
		if a.server.Unit == "" {
			if err := p.inUse(ctx, a.server); err != nil {
				return err
			}
		}
	}
	p.events = a
	return p.planEventsMember(ctx)
}

// planEventsMember plans the member itself.
func (p *Plan) planEventsMember(ctx context.Context) (err error) {
	a := p.events
	cluster, err := p.eventsCluster(ctx)
	if err != nil {
		return err
	}
	var owner *datadir.Owner
	if a.server != nil {
		if owner, err = p.ownerOf(a.server); err != nil {
			return err
		}
	}
	token := p.Order.Token + "-events"
	if p.Order.Events != "" {
		var bump *uint64
		if p.Order.EventsBump != 0 {
			bump = &p.Order.EventsBump
		}
		a.etcd, err = restore.PlanEtcd(ctx, p.opts.Repo, restore.EtcdOptions{
			Chain: p.Order.Events, Point: p.Order.EventsPoint, Identities: p.opts.Identities, DataDir: a.dataDir, Name: a.Name, PeerURLs: a.PeerURLs,
			InitialCluster: cluster, Token: token, Bump: bump, TargetVersion: imageVersion(a.Image), AsideDir: p.opts.aside(), Live: true,
			RestoreID: p.eventsID(), Owner: owner, Now: p.opts.Now, Rand: p.opts.Rand,
		})
		if err != nil {
			return fmt.Errorf("the etcd for events: %w", err)
		}
		p.Order.EventsPoint, p.Order.EventsBump = a.etcd.Choice.Point(), a.etcd.Bump
		return nil
	}
	if p.Order.EventsBump == 0 {
		p.Order.EventsBump = uint64(p.opts.Now().Unix()) * eventsRate
	}
	a.options = datadir.Options{
		DataDir: a.dataDir, Name: a.Name, PeerURLs: a.PeerURLs, InitialCluster: cluster, Token: token, Bump: p.Order.EventsBump, ID: p.eventsID(),
		AsideDir: p.opts.aside(), Live: true, Owner: owner,
	}
	if err := datadir.Preflight(a.options); err != nil {
		return fmt.Errorf("%w: the etcd for events: %w", restore.ErrRefused, err)
	}
	return nil
}

// eventsCluster is its --initial-cluster; empty for one member alone. What the
// newest full of its chain tells beats its manifest, which tells who was there when it
// first started.
func (p *Plan) eventsCluster(ctx context.Context) (string, error) {
	if p.Order.Members == One {
		return "", nil
	}
	chain := p.Order.Events
	if chain == "" {
		chain = "etcd/events"
	}
	full, err := p.opts.Repo.NewestFull(ctx, chain)
	if err != nil && !errors.Is(err, repository.ErrNothing) {
		return "", err
	}
	if full == nil || full.Etcd == nil {
		return p.events.InitialCluster, nil
	}
	return clusterOf(full.Etcd.Members, p.Order)
}

// clusterOf writes the voters as an --initial-cluster, with their new names and
// addresses.
func clusterOf(members []manifest.Member, o Order) (string, error) {
	mapping, err := readdress.New(readdress.Options{Names: o.Rename, Addresses: o.Address})
	if err != nil {
		return "", err
	}
	var out []string
	for _, m := range members {
		if m.Learner {
			continue
		}
		for _, u := range m.PeerURLs {
			out = append(out, mapping.Name(m.Name)+"="+mapping.Value(u))
		}
	}
	return strings.Join(out, ","), nil
}

// living is what was found of the separate etcd with that number.
func (p *Plan) living(i int) *topology.Separate {
	if p.Host == nil || i >= len(p.Host.Separate) {
		return nil
	}
	return &p.Host.Separate[i]
}

// othersHoldEvents says whether the events' etcd lives without this node: then a
// member that begins anew would be none of its.
func (p *Plan) othersHoldEvents(i int) bool {
	s := p.living(i)
	if s == nil || !s.Living.Quorum || s.Living.Voters < 2 {
		return false
	}
	p.doubts = append(p.doubts, fmt.Sprintf("%s lives on other hosts (%d of %d voters answer) and is left as it is: replace this node's member of it if that is lost", s, s.Living.Answering, s.Living.Voters))
	return true
}

// adviseOfSeparate tells of a separate etcd that this restore does not touch.
func (p *Plan) adviseOfSeparate(s hostfacts.Separate, i int) {
	where := fmt.Sprintf("the etcd of %s at %s", strings.Join(s.Resources, ", "), strings.Join(s.Servers, ", "))
	switch found := p.living(i); {
	case p.Host == nil:
	case found != nil && found.Living.Quorum:
	case s.Here():
		p.doubts = append(p.doubts, where+" is left as it is. If its data is lost, restore it with \"lifeboat restore etcd\" from its own chain: the API server is not ready before it serves")
	default:
		p.doubts = append(p.doubts, where+" is on other hosts and does not live: the API server is not ready before it serves. Restore it there, or let it begin empty if it holds events alone")
	}
}

// stageEvents makes the new member beside the old one.
func (p *Plan) stageEvents(ctx context.Context) (err error) {
	a := p.events
	if a == nil || a.installed {
		return nil
	}
	p.listen.Emit(events.StageStarted{Stage: StageEvents})
	start := p.opts.Now()
	defer func() {
		p.listen.Emit(events.StageDone{Stage: StageEvents, Duration: p.opts.Now().Sub(start), Err: err})
	}()
	if a.etcd != nil {
		return a.etcd.Stage(ctx, nil)
	}
	scratch, err := durable.OpenScratch(p.opts.journals())
	if err != nil {
		return err
	}
	text, err := datadir.EmptySnapshot(scratch.Path())
	if err = errors.Join(err, scratch.Close()); err != nil {
		return err
	}
	if a.staging, err = datadir.Begin(ctx, a.options); err != nil {
		return fmt.Errorf("make an empty member for events: %w", err)
	}
	if err = a.staging.Receive(ctx, bytes.NewReader(text)); err == nil {
		err = a.staging.Finish(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make an empty member for events: %w", err), a.discard())
	}
	return nil
}

func (a *apart) discard() (err error) {
	if a == nil {
		return nil
	}
	if a.etcd != nil {
		err = a.etcd.Discard()
	}
	if a.staging != nil {
		err = errors.Join(err, a.staging.Abort())
		a.staging = nil
	}
	return err
}

func (a *apart) install(ctx context.Context) error {
	switch {
	case a.installed:
		return nil
	case a.etcd != nil:
		return a.etcd.Install(ctx)
	case a.staging == nil:
		return errors.New("install the member for events: none is staged")
	}
	if _, err := a.staging.Install(ctx); err != nil {
		return err
	}
	a.staging = nil
	return nil
}

// findEventsInstalled says whether an earlier run has put it in place.
func (p *Plan) findEventsInstalled() (err error) {
	if p.events == nil || p.journal == nil {
		return nil
	}
	switch s := p.journal.Step(stepEvents); {
	case s == nil:
	case s.Done != nil:
		p.events.installed = true
	default:
		if p.events.installed, err = datadir.Installed(p.events.dataDir, p.opts.aside(), p.eventsID()); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// eventsStep exchanges its members.
func (p *Plan) eventsStep() step {
	a := p.events
	title, detail := "Let the etcd for events begin empty", fmt.Sprintf("%s, at %s: a new member in %s, at revision %d.\nThe old one is kept aside. Events themselves are lost: they are of use for an hour, and no state depends on them.",
		cmpName(a), strings.Join(a.Servers, ", "), a.DataDir, p.Order.EventsBump)
	if a.etcd != nil {
		title, detail = "Put the restored etcd for events in place", fmt.Sprintf("%s to %s.\n%s", p.Order.Events, a.etcd.Choice, a.etcd.Steps[len(a.etcd.Steps)-1].Detail)
	}
	return step{
		name: stepEvents, title: title, detail: detail,
		before: func(context.Context) (any, error) {
			return etcdNote{DataDir: a.dataDir, AsideDir: p.opts.aside(), ID: p.eventsID()}, nil
		},
		do: func(ctx context.Context, _ json.RawMessage) error { return a.install(ctx) },
	}
}

func cmpName(a *apart) string {
	if a.server != nil {
		return a.server.String()
	}
	return "static pod " + a.Pod
}
