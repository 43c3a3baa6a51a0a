package plane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/node"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/readdress"
)

// runs says how a node runs its member of etcd.
type runs string

const (
	inPod     runs = "pod"       // a static pod
	byUnit    runs = "unit"      // systemd
	byHand    runs = "hand"      // a process that something else starts: a person, here
	elsewhere runs = "elsewhere" // it has none: the API server's etcd is on other hosts
)

// member is etcd as the node's files describe it, with the new names and
// addresses.
type member struct {
	runs     runs
	server   *hostfacts.EtcdServer // byUnit, byHand
	was      string                // its name in the backup
	name     string
	dataDir  string // as the host sees it
	peerURLs []string
	image    string // inPod
}

// findMember finds out how the node runs etcd.
func (p *Plan) findMember(ctx context.Context) error {
	d := p.Files.Etcd
	if d != nil && d.Kind == "stacked" && d.DataDir != "" {
		p.member = member{runs: inPod, was: p.Facts.Etcd.Name, name: d.Name, dataDir: d.DataDir, peerURLs: strings.Split(d.PeerURLs, ","), image: d.Image}
		return p.ofChain(ctx)
	}
	if d != nil && d.Kind != "external" {
		return refuse("node %s runs the etcd of %s: restore it with that, as its plan says", p.Order.Node, d.Kind)
	}
	i, err := p.ownServer(ctx)
	if err != nil {
		return err
	}
	if i < 0 && d != nil {
		p.member = member{runs: elsewhere}
		return nil
	}
	if i < 0 {
		return refuse("the files of %s tell of no etcd, neither in a static pod nor in a unit: restore its etcd with \"lifeboat restore etcd\" and its files with \"lifeboat restore files\"", p.Order.Node)
	}
	s := &p.Files.Servers[i]
	p.member = member{runs: byUnit, server: s, was: p.Facts.EtcdServers[i].Name, name: s.Name, dataDir: s.DataDir, peerURLs: s.PeerURLs}
	if s.Unit == "" {
		p.member.runs = byHand
	}
	if s.DataDir == "" {
		return refuse("%s has its settings in a file that was lost when it was backed up (%s): its data directory is not known. Restore its etcd with \"lifeboat restore etcd\"", s, strings.Join(s.Files, ", "))
	}
	if s.WALDir != "" {
		return refuse("%s keeps its write-ahead log in %s (--wal-dir), where a restore can't put it: use \"lifeboat restore files\", and \"lifeboat restore etcd\", whose notes tell what to move", s, s.WALDir)
	}
	return nil
}

// ofChain refuses to put what another etcd held, such as the events' one, into the
// node's main member.
func (p *Plan) ofChain(ctx context.Context) error {
	if p.chain() == restore.DefaultChain {
		return nil
	}
	full, err := p.opts.Repo.NewestFull(ctx, p.chain())
	if errors.Is(err, repository.ErrNothing) || err == nil && (full.Etcd == nil || len(full.Etcd.Members) == 0) {
		return nil // found out, and said, when the member is planned
	}
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(full.Etcd.Members, func(m manifest.Member) bool {
		return m.Name == p.member.was || slices.ContainsFunc(m.PeerURLs, func(u string) bool { return strings.Contains(p.Facts.Etcd.PeerURLs, u) })
	})
	if !known {
		return refuse("%s is of another etcd than the one in node %s's static pod (%s): its members have neither that name nor its peer URL. The etcd of events is restored beside the main one, with --events-from", p.chain(), p.Order.Node, p.member.was)
	}
	return nil
}

// ownServer finds which of the etcds outside of Kubernetes on this host is a
// member of the chain's: by the peer URLs that the newest full knows, else by the
// API server's URLs, else the only one that no other resources are kept in. -1:
// none.
func (p *Plan) ownServer(ctx context.Context) (int, error) {
	servers := p.Files.Servers
	full, err := p.opts.Repo.NewestFull(ctx, p.chain())
	if err != nil && !errors.Is(err, repository.ErrNothing) {
		return -1, err
	}
	if full != nil && full.Etcd != nil {
		mapping, err := readdress.New(readdress.Options{Names: p.Order.Rename, Addresses: p.Order.Address})
		if err != nil {
			return -1, err
		}
		for _, m := range full.Etcd.Members {
			for _, u := range m.PeerURLs {
				if i := slices.IndexFunc(servers, func(s hostfacts.EtcdServer) bool { return slices.Contains(s.PeerURLs, mapping.Value(u)) }); i >= 0 {
					return i, nil
				}
			}
		}
	}
	if d := p.Files.Etcd; d != nil {
		if i := slices.IndexFunc(servers, func(s hostfacts.EtcdServer) bool { return s.ReachedBy(d.EtcdEndpoints) }); i >= 0 {
			return i, nil
		}
		return -1, nil // the API server uses none of them
	}
	if len(servers) > 1 {
		var names []string
		for i := range servers {
			names = append(names, servers[i].String())
		}
		return -1, refuse("%s runs several etcds (%s), and none has a peer URL that the newest full of %s names: say with --etcd which chain is meant", p.Order.Node, strings.Join(names, ", "), p.chain())
	}
	return len(servers) - 1, nil
}

// version is the etcd's that will run on this machine; empty: not known, then it
// should be the one that the snapshot is of. from says where it is known from, and
// what helps if the snapshot's is newer.
func (p *Plan) version(ctx context.Context) (version, from string, err error) {
	switch p.member.runs {
	case inPod:
		return imageVersion(p.member.image), fmt.Sprintf("The target is that of the image %s, in the static pod of files backup %s: name one from after etcd's upgrade with --files-backup, or a point of etcd from before it with --at",
			p.member.image, p.Order.FilesID), nil
	case elsewhere:
		return "", "", nil
	}
	s := p.member.server
	if !path.IsAbs(s.Program) {
		return "", "", nil
	}
	file := p.opts.under(s.Program)
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", "", refuse("%s runs %s, which is not on this machine: install etcd there first, of the version that it had or a newer one of the same minor version; backups hold no programs", s, s.Program)
	}
	v, err := p.opts.Version(ctx, file)
	if err != nil {
		p.doubts = append(p.doubts, fmt.Sprintf("the version of %s is not known (%v): it must be at least the one that the snapshot was made by", s.Program, err))
		return "", "", nil
	}
	return v, fmt.Sprintf("The target is what %s is on this machine: install the snapshot's version there, or name a point of etcd from before its upgrade with --at", s.Program), nil
}

// imageVersion is an image's tag.
func imageVersion(image string) string {
	_, tag, _ := strings.Cut(path.Base(image), ":")
	tag, _, _ = strings.Cut(tag, "@")
	return tag
}

// pods says whether the node has static pods.
func (p *Plan) pods() bool { return p.Files.Home != "" && p.Files.Etcd != nil }

// hasAPI says whether it has an API server.
func (p *Plan) hasAPI() bool {
	return slices.ContainsFunc(p.Facts.Images, func(i hostfacts.Image) bool { return i.Container == "kube-apiserver" })
}

// Reach says how the node's etcd is asked from the node itself: by its endpoints
// and a client's certificate among the node's files.
func (p *Plan) Reach() hostfacts.Discovery { return reach(p.Files, p.member.server) }

func reach(s *nodefiles.Staged, server *hostfacts.EtcdServer) hostfacts.Discovery {
	if s.Etcd != nil {
		return *s.Etcd
	}
	if server == nil && len(s.Servers) > 0 {
		server = &s.Servers[0]
	}
	if server == nil {
		return hostfacts.Discovery{}
	}
	return clientOf(s, server)
}

// dialled turns URLs to listen at into such to dial from the host itself.
func dialled(urls []string) (out []string) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			continue
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.IsUnspecified() {
			u.Host = strings.Replace(u.Host, u.Hostname(), "127.0.0.1", 1)
			if a.Is6() {
				u.Host = "127.0.0.1:" + u.Port()
			}
		}
		if !slices.Contains(out, u.String()) {
			out = append(out, u.String())
		}
	}
	return out
}

// unitOf is the service that runs an etcd, as node.Machine calls it.
func unitOf(s *hostfacts.EtcdServer) string { return cmp.Or(s.Unit, node.Etcd) }
