package plane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/restore/kubeapi"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/readdress"
)

// Living is the Health of a real control plane, asked with the credentials that
// are restored with it.
type Living struct {
	order    Order
	node     string          // as it is called now
	revision int64           // that etcd started at
	api      *kubeapi.Client // nil: the node has no API server
	etcd     *kubeapi.Etcd
	events   *kubeapi.Etcd // nil: events are in the main one
	pause    time.Duration
	backup   func(context.Context) (manifest.ID, error)
	progress kubeapi.Progress

	done, left []string // that Tidy has not told yet
}

// LivingOptions say whom to ask.
type LivingOptions struct {
	Staged   *nodefiles.Staged
	Root     string // below which the restored static pods' manifests lie
	Order    Order
	Node     string // as it is called now
	Revision int64  // that etcd starts at; 0: not known
	Server   string // the API server of this machine; default: at the address and port of its manifest
	// Etcd is how it is asked; default what the node's files tell.
	Etcd *hostfacts.Discovery
	// Endpoints are etcd's; default Etcd's.
	Endpoints []string
	Backup    func(context.Context) (manifest.ID, error)
	Progress  func(text string)
}

// adminConf is the kubeconfig with which kubeadm's administrators come.
const adminConf = "/etc/kubernetes/admin.conf"

// NewLiving prepares connections; nothing need live yet. Errors name the staged
// file that can't be used.
func NewLiving(o LivingOptions) (*Living, error) {
	if o.Server == "" {
		o.Server = apiServer(o.Staged, o.Root)
	}
	if o.Etcd == nil {
		d := reach(o.Staged, nil)
		o.Etcd = &d
	}
	if len(o.Endpoints) == 0 {
		o.Endpoints = o.Etcd.EtcdEndpoints
	}
	l := &Living{order: o.Order, node: o.Node, revision: o.Revision, pause: 200 * time.Millisecond, backup: o.Backup, progress: o.Progress}
	if err := l.openAPI(o); err != nil {
		return nil, err
	}
	config, err := etcdTLS(o.Staged, *o.Etcd)
	if err != nil {
		return nil, err
	}
	if l.etcd, err = kubeapi.NewEtcd(kubeapi.EtcdOptions{Endpoints: o.Endpoints, TLS: config, Pause: l.pause}); err != nil {
		return nil, err
	}
	return l, l.openEvents(o)
}

// apiServer is where the API server of this machine listens, by its manifest, which
// is staged still or in its place already; kubeadm's default where that says nothing.
func apiServer(s *nodefiles.Staged, root string) string {
	host, port := "127.0.0.1", "6443"
	for _, folder := range []string{s.Manifests(), filepath.Join(root, s.Home)} {
		files, err := os.ReadDir(folder)
		if err != nil {
			continue
		}
		for _, f := range files {
			text, err := os.ReadFile(filepath.Join(folder, f.Name()))
			if err != nil || !bytes.Contains(text, []byte("- kube-apiserver\n")) {
				continue
			}
			if m := securePort.FindSubmatch(text); m != nil {
				port = string(m[1])
			}
			if m := bindAddress.FindSubmatch(text); m != nil {
				if a, err := netip.ParseAddr(string(m[1])); err == nil && !a.IsUnspecified() {
					host = a.String()
				}
			}
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}

var (
	securePort  = regexp.MustCompile(`--secure-port=["']?([0-9]{1,5})\b`)
	bindAddress = regexp.MustCompile(`--bind-address=["']?([0-9a-fA-F.:]+)`)
)

// Close ends the connections.
func (l *Living) Close() error {
	if l.api != nil {
		l.api.Close()
	}
	if l.events != nil {
		_ = l.events.Close()
	}
	return l.etcd.Close()
}

// openAPI prepares the API server's, where the node has one.
func (l *Living) openAPI(o LivingOptions) error {
	if o.Staged.Etcd == nil {
		return nil
	}
	admin, err := o.Staged.Read(adminConf)
	if err != nil {
		return fmt.Errorf("read %s of the backup: %w", adminConf, err)
	}
	l.api, err = kubeapi.New(kubeapi.Options{Kubeconfig: admin, Server: o.Server, Pause: l.pause})
	return err
}

// openEvents prepares that of the etcd that holds events apart.
func (l *Living) openEvents(o LivingOptions) error {
	if o.Staged.Etcd == nil {
		return nil
	}
	for _, s := range o.Staged.Etcd.Separate {
		if !slices.Contains(s.Resources, "/events") {
			continue
		}
		config, err := etcdTLS(o.Staged, hostfacts.Discovery{CAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile})
		if err != nil {
			return err
		}
		l.events, err = kubeapi.NewEtcd(kubeapi.EtcdOptions{Endpoints: s.Servers, TLS: config, Pause: l.pause})
		return err
	}
	return nil
}

// etcdTLS is the client's side of etcd, from the staged files; nil if etcd is
// reached without TLS.
func etcdTLS(s *nodefiles.Staged, d hostfacts.Discovery) (*tls.Config, error) {
	if d.CAFile == "" && d.CertFile == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	ca, err := s.Read(d.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read %s of the backup: %w", d.CAFile, err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s of the backup holds no certificate", d.CAFile)
	}
	if d.CertFile == "" {
		return config, nil
	}
	cert, err := s.Read(d.CertFile)
	if err != nil {
		return nil, fmt.Errorf("read %s of the backup: %w", d.CertFile, err)
	}
	key, err := s.Read(d.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read %s of the backup: %w", d.KeyFile, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s of the backup are no pair", d.CertFile, d.KeyFile)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// API implements Health.
func (l *Living) API(ctx context.Context) error { return l.api.WaitReady(ctx, l.progress) }

// Node implements Health.
func (l *Living) Node(ctx context.Context, since time.Time) error {
	_, err := l.api.WaitLease(ctx, l.node, kubeapi.Since{Time: since, Revision: l.revision}, l.progress)
	return err
}

// Tidy takes away what names machines and addresses that went, and says whether
// etcd's members hold the same.
func (l *Living) Tidy(ctx context.Context) (done, left []string, err error) {
	cleared, err := l.etcd.ClearNoSpace(ctx, l.progress)
	l.tell(cleared)
	if err == nil {
		err = l.compare(ctx)
	}
	if err == nil {
		err = l.readdress(ctx)
	}
	done, left = l.done, slices.Compact(l.left)
	l.done, l.left = nil, nil
	return done, left, err
}

// tell keeps what was changed for who asks Tidy.
func (l *Living) tell(c *kubeapi.Cleared) {
	l.changed(c.Changes)
	l.left = append(l.left, c.Left...)
}

func (l *Living) changed(changes []kubeapi.Change) {
	for _, c := range changes {
		l.done = append(l.done, c.String())
	}
}

// compare asks the members for their hashes, where several were restored apart. Those
// that differ are an error; where they can't be asked yet, whoever restores the last
// of them asks.
func (l *Living) compare(ctx context.Context) error {
	if l.order.Members != All {
		return nil
	}
	agreed, err := l.etcd.Agree(ctx, l.progress)
	switch {
	case errors.Is(err, kubeapi.ErrDiffer) || ctx.Err() != nil:
		return err
	case err != nil:
		l.left = append(l.left, fmt.Sprintf("whether etcd's members hold the same is not known; the restore of the last of them compares: %v", err))
	default:
		l.done = append(l.done, fmt.Sprintf("etcd's %d members are equal in HashKV at revision %d", len(agreed.Members), agreed.Revision))
	}
	return nil
}

// readdress takes away what names machines and addresses that went.
func (l *Living) readdress(ctx context.Context) error {
	mapping, err := readdress.New(readdress.Options{Names: l.order.Rename, Addresses: l.order.Address, Endpoints: l.order.Endpoint})
	if err != nil || mapping.Empty() || l.api == nil { // the API's are a master's business
		return err
	}
	changes, err := l.api.Readdress(ctx, mapping, l.order.RestoreID)
	l.changed(changes)
	if err != nil {
		return err
	}
	if changes, err = l.masters(ctx); err != nil {
		return err
	}
	l.changed(changes)
	renamed := pairs(l.order.Rename)
	gone := slices.DeleteFunc(slices.Sorted(maps.Keys(renamed)), func(name string) bool { // not where two changed places
		return slices.Contains(slices.Collect(maps.Values(renamed)), name)
	})
	changes, err = l.api.RemoveNodes(ctx, gone, kubeapi.Removal{Since: kubeapi.Since{Revision: l.revision}, Progress: l.progress})
	l.changed(changes)
	return err
}

// masters removes the addresses of API servers that are no member's any more.
func (l *Living) masters(ctx context.Context) ([]kubeapi.Change, error) {
	members, err := l.etcd.Members(ctx)
	if err != nil {
		return nil, err
	}
	var alive []netip.Addr
	for _, m := range members {
		u, err := url.Parse(m.Endpoint)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			alive = append(alive, a)
		}
	}
	for _, a := range addressPairs(l.order.Address) {
		alive = append(alive, a)
	}
	stale, err := l.etcd.StaleMasters(ctx, alive, "")
	if err != nil {
		return nil, err
	}
	// Only those that the order says are gone: a stacked etcd and its API server
	// share an address, others need not.
	gone := addressPairs(l.order.Address)
	stale = slices.DeleteFunc(stale, func(m kubeapi.MasterLease) bool { _, known := gone[m.Address]; return !known })
	return l.etcd.DeleteMasters(ctx, stale)
}

// Backup implements Health.
func (l *Living) Backup(ctx context.Context) (manifest.ID, error) {
	if l.backup == nil {
		return "", nil
	}
	return l.backup(ctx)
}
