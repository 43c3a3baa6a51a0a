package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"

	"filippo.io/age"

	"lifeboat/backup"
	"lifeboat/internal/config"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/recoverykit"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/session"
	"lifeboat/restore"
)

// gathering finds out what a recovery kit tells. A store that is down does not
// stop it: a kit with less in it is better than none.
type gathering struct {
	app     *app
	session *session.Session
	kit     *recoverykit.Kit

	newest map[manifest.Chain]held
}

// held is a backup with a store that has it.
type held struct {
	repository.Backup
	repo *repository.Repository
}

func (g *gathering) warn(format string, args ...any) {
	g.kit.Warnings = append(g.kit.Warnings, fmt.Sprintf(format, args...))
}

func (g *gathering) all(ctx context.Context, flags kitFlags) error {
	c, k := g.session.Config, g.kit
	if k.IdentityKept == "" {
		g.warn("where the identity is kept was not said (--identity-kept): write it into the kit by hand")
	}
	k.Secrets = secretsOf(append([]string{c.Signing.KeyFile, c.HTTP.TokenFile, c.DeadMan.URLFile}, g.app.identities...))
	var err error
	if k.Trust, err = os.ReadFile(c.Signing.TrustFile); err != nil {
		return fmt.Errorf("read the trust file: %w", err)
	}
	if k.Binary, err = thisBinary(); err != nil {
		return err
	}
	k.Binary.Kept, k.Binary.Copied = strings.TrimSpace(flags.binaryKept), flags.withBinary
	if err := g.stores(ctx); err != nil {
		return err
	}
	g.backups()
	if err := g.recipients(); err != nil {
		return err
	}
	return g.nodes(ctx)
}

// thisBinary describes the program that runs.
func thisBinary() (recoverykit.Binary, error) {
	b := recoverykit.Binary{Version: version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()}
	var err error
	if b.Path, err = os.Executable(); err != nil {
		return b, fmt.Errorf("find this binary: %w", err)
	}
	f, err := os.Open(b.Path)
	if err != nil {
		return b, fmt.Errorf("read this binary: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return b, fmt.Errorf("read this binary: %w", err)
	}
	b.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return b, nil
}

// stores asks each store for its newest backups.
func (g *gathering) stores(ctx context.Context) error {
	g.newest = map[manifest.Chain]held{}
	for _, opened := range g.session.Stores {
		settings := config.Store{URL: opened.URL, S3: opened.Settings.S3}
		if strings.HasPrefix(opened.URL, "s3://") {
			// What the environment says here nothing says on the worst day.
			s3 := &settings.S3
			s3.Endpoint = cmp.Or(s3.Endpoint, os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"))
			s3.Region = cmp.Or(s3.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
			s3.CAFile = cmp.Or(s3.CAFile, os.Getenv("AWS_CA_BUNDLE"))
		}
		var authority []byte
		if settings.S3.CAFile != "" {
			text, err := os.ReadFile(settings.S3.CAFile)
			if err != nil {
				return fmt.Errorf("read the authority of store %s: %w", opened.URL, err)
			}
			authority = text
		}
		store := recoverykit.NewStore(settings, authority)
		err := opened.Err
		if err == nil {
			err = g.look(ctx, opened)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			g.warn("store %s did not say what it has: %v", opened.URL, err)
		}
		store.Answered = err == nil
		g.kit.Stores = append(g.kit.Stores, store)
	}
	g.app.remember(g.session)
	return nil
}

func (g *gathering) look(ctx context.Context, store session.Store) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	backups, problems, err := store.Repository.Backups(ctx)
	if err != nil {
		return err
	}
	for _, p := range problems {
		g.warn("store %s: %s", store.URL, p)
	}
	for chain, b := range newestOf(backups) {
		if old, known := g.newest[chain]; !known || b.Created.After(old.Created) {
			g.newest[chain] = held{b, store.Repository}
		}
	}
	g.kit.Heads = append(g.kit.Heads, store.Repository.Heads()...)
	return nil
}

// chains are those with backups, in their order.
func (g *gathering) chains() []manifest.Chain {
	var list []manifest.Chain
	for chain := range g.newest {
		list = append(list, chain)
	}
	slices.Sort(list)
	return list
}

func (g *gathering) backups() {
	for _, chain := range g.chains() {
		b := g.newest[chain]
		d := describe(b.Manifest)
		row := recoverykit.Backup{Chain: chain, ID: b.ID, Created: b.Created, Revision: d.Revision, Bytes: d.PlainBytes, Store: b.repo.Name()}
		if b.Etcd != nil {
			row.Etcd, row.Encryption = b.Etcd.Version, b.Etcd.Encryption
		}
		g.kit.Backups = append(g.kit.Backups, row)
	}
	if len(g.kit.Backups) == 0 {
		g.warn("no backup was found: make this kit anew after the first one")
	}
}

// recipients are those of the configuration, and those that backups have.
func (g *gathering) recipients() error {
	list := slices.Clone(g.session.Config.Recipients)
	for _, chain := range g.chains() {
		for _, r := range g.newest[chain].Recipients {
			if !slices.Contains(list, r) {
				list = append(list, r)
			}
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("%w: neither a configuration nor a backup says for whom backups are sealed; give --config", repository.ErrNothing)
	}
	g.kit.Recipients = list
	return nil
}

// nodes joins the nodes with files backups and the members of etcd.
func (g *gathering) nodes(ctx context.Context) error {
	identities, err := g.app.loadIdentities(ctx)
	if err != nil {
		return err
	}
	nodes, members, others := map[string]*recoverykit.Node{}, map[string]bool{}, map[string]bool{}
	for _, chain := range g.chains() {
		if name, ok := strings.CutPrefix(string(chain), string(backup.FilesChain(""))); ok {
			b := g.newest[chain]
			nodes[name] = &recoverykit.Node{Name: name, ID: b.ID, Created: b.Created}
		}
	}
	files := len(nodes)
	if name := g.session.Config.Node; name != "" && nodes[name] == nil && g.app.trustPath == "" {
		nodes[name] = &recoverykit.Node{Name: name}
	}
	var without []string
	stacked := false
	for _, chain := range g.chains() {
		e := g.newest[chain].Etcd
		if e == nil {
			continue
		}
		for _, m := range e.Members {
			name := m.Name
			if short := withoutSuffix(name); nodes[name] == nil && nodes[short] != nil {
				name = short
			}
			n := nodes[name]
			if n == nil {
				n = &recoverykit.Node{Name: name}
				nodes[name] = n
			}
			if chain == restore.DefaultChain {
				members[name] = true
			} else {
				others[name] = true
			}
			role := ", member of "
			if m.Learner {
				role = ", learner of "
			}
			n.Role += role + string(chain)
			if n.ID == "" {
				without = append(without, name)
			} else {
				stacked = true
			}
			for _, address := range hostsOf(m.PeerURLs) {
				if !slices.Contains(n.Addresses, address) {
					n.Addresses = append(n.Addresses, address)
				}
			}
		}
	}
	for _, name := range without {
		if stacked || files == 0 {
			g.warn("node %s has no files backup: run the agent or `lifeboat backup` on it, and make this kit anew", name)
		}
	}
	for _, n := range nodes {
		if len(identities) > 0 && n.ID != "" {
			if err := g.tell(ctx, n, identities); err != nil {
				return err
			}
		}
	}
	g.tellApart(nodes, members, others)
	for _, n := range nodes {
		n.Role = strings.TrimPrefix(string(n.Kind)+n.Role, ", ")
		g.kit.Nodes = append(g.kit.Nodes, *n)
	}
	slices.SortFunc(g.kit.Nodes, func(x, y recoverykit.Node) int {
		if x.Kind != y.Kind {
			if x.Kind == recoverykit.Unknown || y.Kind == recoverykit.Unknown { // come last
				return cmp.Compare(y.Kind, x.Kind)
			}
			return cmp.Compare(x.Kind, y.Kind) // control-plane nodes come first
		}
		if (x.ID == "") != (y.ID == "") { // and those that can be restored
			return cmp.Compare(y.ID, x.ID)
		}
		return cmp.Compare(x.Name, y.Name)
	})
	return nil
}

// tellApart finds out which nodes have the control plane and which etcd alone,
// where no facts were read that say it. Members of etcd are its own hosts if others
// have the nodes' files; where both have files, only facts tell which is which.
// members are of the cluster's main etcd. A node that has no files and is a member of
// others alone, such as that of events, may be either.
func (g *gathering) tellApart(nodes map[string]*recoverykit.Node, members, others map[string]bool) {
	inside, outside := 0, 0
	for name, n := range nodes {
		switch {
		case n.ID == "" || n.Kind != recoverykit.Unknown:
		case members[name]:
			inside++
		default:
			outside++
		}
	}
	apart, beside := outside > 0, inside > 0 // control-plane nodes without and with a member of etcd
	for name, n := range nodes {
		if n.Kind == recoverykit.ControlPlane {
			apart, beside = apart || !members[name], beside || members[name]
		}
	}
	if inside > 0 && outside > 0 {
		g.warn("some nodes with files backups are members of etcd and some are not: which of them have the control plane is told by the backups alone. Make the kit with --identity; until then fill in the nodes' names by hand")
	}
	for name, n := range nodes {
		switch {
		case n.Kind != recoverykit.Unknown, apart && beside:
		case n.ID == "" && others[name] && !members[name]:
		case n.ID == "" && members[name] && apart:
			n.Kind = recoverykit.EtcdHost
		default:
			n.Kind = recoverykit.ControlPlane
		}
	}
}

// kindOf says what a node's facts say that it is.
func kindOf(f *hostfacts.Facts) recoverykit.Kind {
	switch {
	case f.Etcd != nil, slices.ContainsFunc(f.Images, func(i hostfacts.Image) bool { return i.Container == "kube-apiserver" }):
		return recoverykit.ControlPlane
	case len(f.EtcdServers) > 0:
		return recoverykit.EtcdHost
	}
	return recoverykit.Unknown
}

// tell adds what a node's backup says of it, if an identity opens it.
func (g *gathering) tell(ctx context.Context, n *recoverykit.Node, identities []age.Identity) error {
	b := g.newest[backup.FilesChain(n.Name)]
	var text bytes.Buffer
	err := catOnce(ctx, func() (io.ReadCloser, seal.Limits, error) {
		return restore.OpenFiles(ctx, b.repo, b.Manifest, identities)
	}, hostfacts.Name, &text)
	if err != nil {
		return fmt.Errorf("open the newest files backup of node %s, %s, with the identity: %w", n.Name, b.ID, err)
	}
	facts, err := hostfacts.Read(&text)
	if err != nil {
		return fmt.Errorf("read what backup %s says of node %s: %w", b.ID, n.Name, err)
	}
	n.Kind = kindOf(facts)
	if facts.Etcd != nil {
		n.Role = " (" + facts.Etcd.Kind + ")" + n.Role
	}
	for _, address := range facts.Addresses {
		prefix, err := netip.ParsePrefix(address.Address)
		if err != nil || !prefix.Addr().IsGlobalUnicast() || !hasDefaultRoute(facts, address.Interface) {
			continue
		}
		if text := prefix.Addr().String(); !slices.Contains(n.Addresses, text) {
			n.Addresses = append(n.Addresses, text)
		}
	}
	g.kit.IdentityTried = true
	return nil
}

// hasDefaultRoute says whether the machine reaches the world by an interface:
// bridges and tunnels of containers have addresses too.
func hasDefaultRoute(f *hostfacts.Facts, name string) bool {
	return slices.ContainsFunc(f.Routes, func(r hostfacts.Route) bool {
		return r.Interface == name && strings.HasSuffix(r.Destination, "/0")
	})
}

// withoutSuffix takes off what k3s and rke2 add to a node's name to make a
// member's: cp1-1a2b3c4d.
func withoutSuffix(member string) string {
	if i := strings.LastIndexByte(member, '-'); i > 0 && len(member)-i == 9 {
		return member[:i]
	}
	return member
}

// hostsOf are the hosts of URLs by which other machines reach this one.
func hostsOf(urls []string) (hosts []string) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" || u.Hostname() == "localhost" {
			continue
		}
		if address, err := netip.ParseAddr(u.Hostname()); err == nil && address.IsLoopback() {
			continue
		}
		hosts = append(hosts, u.Hostname())
	}
	return hosts
}
