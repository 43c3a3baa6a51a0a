package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"lifeboat/internal/durable"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/snapdb"
	"lifeboat/restore"
	"lifeboat/restore/journal"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/readdress"
	"lifeboat/restore/topology"
)

// Prepare finds out what to restore and how, and checks what can be checked
// before the database is fetched. It changes nothing on the machine but its own
// folder. Errors wrap restore.ErrRefused, ErrUnfinished, journal.ErrBusy,
// readdress.ErrMapping, repository's and pki's; nothing needs to be undone after
// any.
func Prepare(ctx context.Context, o Options) (_ *Plan, err error) {
	if o.Limit <= 0 {
		o.Limit = 10 * time.Minute
	}
	if o.Inspect == nil {
		o.Inspect = topology.Inspect
	}
	if o.Version == nil {
		o.Version = askVersion
	}
	p := &Plan{opts: o, Order: o.Order}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if err := p.takeShared(); err != nil {
		return nil, err
	}
	if p.folder, err = OpenJournals(o.journals(), o.Now); err != nil {
		return nil, err
	}
	for _, look := range []func(context.Context) error{p.findUnfinished, p.nameRestore, p.stageFiles, p.checkShared, p.findMember, p.planEtcd, p.checkMachine, p.planEvents} {
		if err := look(ctx); err != nil {
			return nil, err
		}
	}
	p.steps = p.changes()
	p.describe()
	return p, nil
}

// findUnfinished goes on with the restore that was begun here, if it is this one.
func (p *Plan) findUnfinished(context.Context) error {
	j, err := Unfinished(p.folder)
	if err != nil || j == nil {
		return err
	}
	var begun Order
	if err := j.Order(&begun); err != nil {
		return err
	}
	record := j.Record()
	if record.AbortBegun != nil {
		return fmt.Errorf("%w: restore %s of node %s, whose abort was begun at %s: finish that with \"lifeboat restore abort\"",
			ErrUnfinished, begun.RestoreID, begun.Node, record.AbortBegun.Format(time.RFC3339))
	}
	if !begun.goesOn(p.Order) {
		return fmt.Errorf("%w: restore %s of node %s, of %s: give the same flags to go on with it, or run \"lifeboat restore abort\"",
			ErrUnfinished, begun.RestoreID, begun.Node, record.Created.Format(time.RFC3339))
	}
	p.journal, p.Order, p.id, p.Begun = j, begun, record.ID, &record
	return nil
}

// nameRestore finds the restore's id, and how it is called on this machine: one
// that was shared and aborted here comes again under a name of its own, so that
// what both have kept aside stays apart.
func (p *Plan) nameRestore(context.Context) error {
	if p.journal != nil {
		return nil
	}
	if p.Order.RestoreID == "" {
		id, err := manifest.NewID(p.opts.Rand)
		if err != nil {
			return err
		}
		p.Order.RestoreID = string(id)
	}
	earlier := map[string]journal.Record{}
	list, err := p.folder.List()
	if err != nil && !unreadable(err) {
		return err
	}
	for _, j := range list {
		earlier[j.Record().ID] = j.Record()
	}
	p.id = p.Order.RestoreID
	for n := 2; ; n++ {
		r, there := earlier[p.id]
		if !there {
			return nil
		}
		if r.Outcome == journal.Done {
			return refuse("restore %s, begun at %s, was done on this machine and has ended: there is nothing to go on with. To restore all nodes once more, plan anew on the first one",
				r.ID, r.Created.Format(time.RFC3339))
		}
		p.id = fmt.Sprintf("%s.%d", p.Order.RestoreID, n)
	}
}

// goesOn says whether an order asks for what another had begun. What it leaves
// open the other has found out.
func (o Order) goesOn(asked Order) bool {
	fill := func(open bool, to, from *string) {
		if open {
			*to = *from
		}
	}
	fill(asked.FilesID == "", (*string)(&asked.FilesID), (*string)(&o.FilesID))
	fill(asked.Token == "", &asked.Token, &o.Token)
	fill(asked.RestoreID == "", &asked.RestoreID, &o.RestoreID)
	for _, bump := range []struct {
		asked *uint64
		begun uint64
	}{{&asked.Bump, o.Bump}, {&asked.EventsBump, o.EventsBump}} {
		if *bump.asked == 0 {
			*bump.asked = bump.begun
		}
	}
	if reflect.ValueOf(asked.EventsPoint).IsZero() {
		asked.EventsPoint = o.EventsPoint
	}
	// "10 minutes ago" has come to mean one point, and stays that.
	if asked.Aim == o.Aim || reflect.ValueOf(asked.Point).IsZero() { // the latest
		asked.Aim, asked.Point = o.Aim, o.Point
	}
	return reflect.DeepEqual(o, asked)
}

// journalDir is this restore's own folder.
func (p *Plan) journalDir() string { return filepath.Join(p.opts.journals(), p.id) }

// stageFiles makes the node's files ready.
func (p *Plan) stageFiles(ctx context.Context) error {
	if p.journal != nil {
		staged, err := nodefiles.Load(filepath.Join(p.journalDir(), stagedName))
		if err == nil {
			p.Files, p.Facts = staged, staged.Facts
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	mapping, err := readdress.New(readdress.Options{Names: p.Order.Rename, Addresses: p.Order.Address, Endpoints: p.Order.Endpoint})
	if err != nil {
		return err
	}
	m, err := p.opts.Repo.Resolve(ctx, p.opts.Files, repository.Point{Backup: p.Order.FilesID})
	if err != nil {
		return fmt.Errorf("find the files of node %s: %w", p.Order.Node, err)
	}
	p.Order.FilesID, p.filesBackup = m.ID, m
	archive, limits, err := restore.OpenFiles(ctx, p.opts.Repo, m, p.opts.Identities)
	if err != nil {
		return err
	}
	defer archive.Close()
	if p.scratch, err = durable.OpenScratch(p.opts.journals()); err != nil {
		return err
	}
	dir := filepath.Join(p.scratch.Path(), stagedName)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	p.Files, err = nodefiles.Stage(ctx, archive, nodefiles.Options{
		Dir: dir, Limits: limits, Mapping: mapping, Names: pairs(p.Order.Rename), Addresses: addressPairs(p.Order.Address),
		AddSANs: hosts(p.Order.Endpoint), Now: p.opts.Now, Rand: p.opts.Rand,
	})
	if err != nil {
		return fmt.Errorf("make the files of node %s ready: %w", p.Order.Node, err)
	}
	p.Facts = p.Files.Facts
	return nil
}

// pairs takes "old=new" words apart, which readdress.New has checked.
func pairs(words []string) map[string]string {
	out := map[string]string{}
	for _, w := range words {
		from, to, _ := strings.Cut(w, "=")
		out[from] = to
	}
	return out
}

func addressPairs(words []string) map[netip.Addr]netip.Addr {
	out := map[netip.Addr]netip.Addr{}
	for from, to := range pairs(words) {
		out[netip.MustParseAddr(from)] = netip.MustParseAddr(to)
	}
	return out
}

// hosts are the hosts of new endpoints.
func hosts(words []string) (list []string) {
	for _, to := range pairs(words) {
		if at := strings.LastIndexByte(to, ':'); at >= 0 {
			to = to[:at]
		}
		list = append(list, strings.Trim(to, "[]"))
	}
	return list
}

// planEtcd plans the member that the node's files describe.
func (p *Plan) planEtcd(ctx context.Context) (err error) {
	if p.member.runs == elsewhere {
		return p.lookAtEtcd(ctx)
	}
	p.dataDir = p.opts.under(p.member.dataDir)
	var bump *uint64
	if p.Order.Bump != 0 {
		bump = &p.Order.Bump
	}
	options := restore.EtcdOptions{
		Chain: p.opts.Chain, Point: p.Order.Point, Identities: p.opts.Identities, DataDir: p.dataDir, Name: p.member.name,
		PeerURLs: p.member.peerURLs, Token: p.Order.Token, Bump: bump, AsideDir: p.opts.aside(),
		Live: true, RestoreID: p.id, Without: p.opts.Without, Quota: p.opts.Quota, Now: p.opts.Now, Rand: p.opts.Rand,
	}
	if options.TargetVersion, options.TargetFrom, err = p.version(ctx); err != nil {
		return err
	}
	if p.member.server != nil {
		if options.Owner, err = p.ownerOf(p.member.server); err != nil {
			return err
		}
	}
	if options.InitialCluster, err = p.initialCluster(ctx); err != nil {
		return err
	}
	if err := p.takeSurvivor(&options); err != nil {
		return err
	}
	if p.Etcd, err = restore.PlanEtcd(ctx, p.opts.Repo, options); err != nil {
		return err
	}
	if err := p.survivorPlanned(); err != nil {
		return err
	}
	p.Order.Point, p.Order.Token, p.Order.Bump = p.Etcd.Choice.Point(), p.Etcd.Token, p.Etcd.Bump
	p.etcdDetail = p.Etcd.Steps[len(p.Etcd.Steps)-1].Detail
	p.secret, err = restore.Secret(ctx, p.opts.Repo, p.Etcd.Backup, sharedPurpose, p.opts.Identities)
	return err
}

// initialCluster is etcd's --initial-cluster; empty for one member alone.
func (p *Plan) initialCluster(ctx context.Context) (string, error) {
	if p.Order.Members == One {
		return "", nil
	}
	route, err := p.opts.Repo.Route(ctx, p.opts.Chain, p.Order.Point)
	if err != nil {
		return "", err
	}
	return clusterOf(route.Base.Etcd.Members, p.Order)
}

// checkMachine refuses what can be known to go wrong.
func (p *Plan) checkMachine(ctx context.Context) error {
	identity, err := p.opts.Machine.Identity()
	if err != nil {
		return err
	}
	p.here = identity.Hostname
	if err := p.coverage(p.uses()); err != nil {
		return err
	}
	if err := p.sameCluster(); err != nil {
		return err
	}
	if p.journal != nil { // what lives by now may be what this restore has started
		return nil
	}
	if p.member.runs == byHand {
		if err := p.inUse(ctx, p.member.server); err != nil {
			return err
		}
	}
	return p.inspect(ctx)
}

// inspect refuses where a majority of etcd's members lives, or another cluster's
// answer: nothing must be restored beside them.
func (p *Plan) inspect(ctx context.Context) error {
	config, err := etcdTLS(p.Files, p.Reach())
	if err != nil {
		return err
	}
	becomes, err := p.becomes()
	if err != nil {
		return err
	}
	p.Host, err = p.opts.Inspect(ctx, topology.Inputs{
		Root: p.opts.Root, Machine: p.opts.Machine, Etcd: p.Etcd.Backup.Etcd, Point: p.Etcd.Choice.Revision, Facts: p.Facts, TLS: config, Now: p.opts.Now,
		Becomes: becomes,
	})
	if err != nil {
		return err
	}
	if p.member.runs == elsewhere {
		return p.mustLive(ctx)
	}
	if v := p.Host.Verdict; v.Refuse {
		return refuse("%s\n%s", strings.Join(v.Why, "; "), strings.Join(v.Do, "\n"))
	}
	return p.hasAddresses()
}

// becomes is the cluster that the restore will make, as its members will be reached;
// nil if it makes none.
func (p *Plan) becomes() (*manifest.Etcd, error) {
	if p.member.runs == elsewhere {
		return nil, nil
	}
	mapping, err := readdress.New(readdress.Options{Names: p.Order.Rename, Addresses: p.Order.Address})
	if err != nil {
		return nil, err
	}
	out := &manifest.Etcd{ClusterID: p.Etcd.ClusterID, MemberID: p.Etcd.MemberID}
	for _, m := range p.Etcd.Backup.Etcd.Members {
		to := manifest.Member{Name: mapping.Name(m.Name)}
		for _, u := range m.PeerURLs {
			to.PeerURLs = append(to.PeerURLs, mapping.Value(u))
		}
		for _, u := range m.ClientURLs {
			to.ClientURLs = append(to.ClientURLs, mapping.Value(u))
		}
		out.Members = append(out.Members, to)
	}
	return out, nil
}

// coverage refuses a database that the restored API server could not read. A host
// of etcd alone has no keys, and needs none.
func (p *Plan) coverage(uses []manifest.KeyUse) error {
	if !p.hasAPI() {
		return nil
	}
	missing := p.Facts.Covers(uses)
	if len(missing) == 0 {
		return nil
	}
	return refuse("%s: bring back a files backup that holds the key (--files-backup), or restore to a point before it was used", strings.Join(missing, "; "))
}

func keyUses(facts *snapdb.Facts) (uses []manifest.KeyUse) {
	for _, u := range facts.Encryption {
		uses = append(uses, manifest.KeyUse{Provider: u.Provider, Key: u.Key, Objects: u.Count, Example: u.Example})
	}
	return uses
}

// sameCluster refuses a machine that belongs to another cluster.
func (p *Plan) sameCluster() error {
	const ca = "/etc/kubernetes/pki/ca.crt"
	here, err := os.ReadFile(p.opts.under(ca))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	there, err := p.Files.Read(ca)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !bytes.Equal(bytes.TrimSpace(here), bytes.TrimSpace(there)) {
		return refuse("this machine belongs to another cluster: its %s is not the one in the backup. If that is what you want, move /etc/kubernetes away first", ca)
	}
	return nil
}
