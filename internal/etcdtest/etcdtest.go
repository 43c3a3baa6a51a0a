// Package etcdtest makes etcd servers and etcd data for demonstrations,
// tests and benchmarks: an embedded member on loopback (StartEmbedded), data
// shaped like that of Kubernetes written through clients (Fill), and the same
// shape written straight into a database file (BuildDB).
//
// It is not for production use and does not import testing, since the demo
// command uses it; real child processes, which tests want, are in
// internal/etcdtest/cluster.
package etcdtest

import (
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"lifeboat/internal/freeport"
)

// EmbeddedOptions configure StartEmbedded. The zero value is a small member
// with etcd's own defaults that logs nothing.
type EmbeddedOptions struct {
	Name         string        // "default" when empty
	LogFile      string        // etcd's log goes here; nowhere when empty
	QuotaBytes   int64         // backend quota; 0 is etcd's default of 2 GiB
	MaxTxnOps    uint          // 0 is etcd's default of 128
	NoSync       bool          // skip fsync: only for data that may be lost
	ForceNew     bool          // --force-new-cluster
	ClientPort   int           // 0 picks a free one
	PeerPort     int           // 0 picks a free one
	StartTimeout time.Duration // one minute when 0
}

// Member is a running embedded etcd.
type Member struct {
	Name     string
	Dir      string // the data directory, as given to StartEmbedded
	Endpoint string // client URL
	PeerURL  string
	etcd     *embed.Etcd
}

// EmbeddedVersion is the version of the etcd that StartEmbedded starts.
var EmbeddedVersion = version.Version

// StartEmbedded starts a one-member etcd in this process, with its data in
// dir, on loopback ports, and waits until it serves. An existing data
// directory is opened; it must have been written by a cluster of one.
func StartEmbedded(dir string, opts EmbeddedOptions) (*Member, error) {
	if opts.Name == "" {
		opts.Name = embed.DefaultName
	}
	if opts.StartTimeout == 0 {
		opts.StartTimeout = time.Minute
	}
	clientURL, err := loopbackURL(opts.ClientPort)
	if err != nil {
		return nil, err
	}
	peerURL, err := loopbackURL(opts.PeerPort)
	if err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Name = opts.Name
	cfg.Dir = dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	cfg.InitialCluster = opts.Name + "=" + peerURL.String()
	cfg.QuotaBackendBytes = opts.QuotaBytes
	if opts.MaxTxnOps != 0 {
		cfg.MaxTxnOps = opts.MaxTxnOps
	}
	cfg.UnsafeNoFsync = opts.NoSync
	cfg.ForceNewCluster = opts.ForceNew
	// A single member elects itself: short ticks make it ready sooner.
	cfg.TickMs, cfg.ElectionMs = 50, 500
	logger, err := quietLogger(opts.LogFile)
	if err != nil {
		return nil, err
	}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)

	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd in %s: %w", dir, err)
	}
	timeout := time.NewTimer(opts.StartTimeout)
	defer timeout.Stop()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("start embedded etcd in %s: %w", dir, err)
	case <-e.Server.StopNotify():
		e.Close()
		return nil, fmt.Errorf("start embedded etcd in %s: it stopped", dir)
	case <-timeout.C:
		e.Close()
		return nil, fmt.Errorf("start embedded etcd in %s: not ready after %v", dir, opts.StartTimeout)
	}
	return &Member{Name: opts.Name, Dir: dir, Endpoint: clientURL.String(), PeerURL: peerURL.String(), etcd: e}, nil
}

// Client connects to the member. The caller closes the client.
func (m *Member) Client() (*clientv3.Client, error) { return NewClient(m.Endpoint) }

// DBFile is the path of the member's database file.
func (m *Member) DBFile() string { return filepath.Join(m.Dir, "member", "snap", "db") }

// Close stops the member and waits for it. Its data stays.
func (m *Member) Close() error {
	if m == nil || m.etcd == nil {
		return nil
	}
	m.etcd.Close()
	m.etcd = nil
	return nil
}

// NewClient connects to a plain-text endpoint without logging.
func NewClient(endpoints ...string) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: 10 * time.Second,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", endpoints, err)
	}
	return c, nil
}

func loopbackURL(port int) (*url.URL, error) {
	if port == 0 {
		var err error
		if port, err = freeport.Take(); err != nil {
			return nil, err
		}
	}
	return &url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}, nil
}

func quietLogger(file string) (*zap.Logger, error) {
	if file == "" {
		return zap.NewNop(), nil
	}
	cfg := zap.NewProductionConfig()
	cfg.OutputPaths, cfg.ErrorOutputPaths = []string{file}, []string{file}
	lg, err := cfg.Build()
	if err != nil {
		return nil, fmt.Errorf("log to %s: %w", file, err)
	}
	return lg, nil
}
