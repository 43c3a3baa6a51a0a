// Package etcd captures one etcd cluster: it chooses a member, streams its
// database to a scratch file, and proves the file against the live members.
//
// It never writes to etcd. What it leaves behind is a Capture; sealing and
// committing it is package backup's work. Start reading at Cluster.Capture.
package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// Config says how to reach one etcd cluster. Certificates are read from disk
// at every new connection, so a renewed one needs no restart.
type Config struct {
	Name      string   // the cluster's name in the configuration; its chain is etcd/<Name>
	Endpoints []string // client URLs of the members; one that leads to a member is enough
	CAFile    string
	CertFile  string
	KeyFile   string
}

// Chain is the chain that the cluster's backups belong to.
func (c Config) Chain() manifest.Chain { return manifest.Chain("etcd/" + c.Name) }

// Limits bound what a capture may cost the cluster and how long it may wait.
// Zero values take the defaults.
type Limits struct {
	Call       time.Duration // one unary request; default 5 s
	NoProgress time.Duration // longest silence of a snapshot stream; default 30 s
	MaxStall   time.Duration // longest that a HashKV scan may hold up a member's writes; 0 means never scan
}

func (l Limits) withDefaults() Limits {
	if l.Call <= 0 {
		l.Call = 5 * time.Second
	}
	if l.NoProgress <= 0 {
		l.NoProgress = 30 * time.Second
	}
	return l
}

// Cluster talks to the members of one etcd cluster. Close it after use.
type Cluster struct {
	config Config
	limits Limits
	events events.Listener
	tls    *tls.Config
	marker *segment.Marker // may be nil

	mu      sync.Mutex
	clients map[string]*clientv3.Client // by endpoint
}

// ErrConfig says that the cluster's settings or the files that they name can't
// be used.
var ErrConfig = errors.New("can't be used as configured")

// Open prepares connections; it does not need a live member.
func Open(config Config, limits Limits, listener events.Listener) (*Cluster, error) {
	c := &Cluster{config: config, limits: limits.withDefaults(), events: listener, clients: map[string]*clientv3.Client{}}
	if len(config.Endpoints) == 0 {
		return nil, fmt.Errorf("etcd %q %w: no endpoints", config.Name, ErrConfig)
	}
	for _, endpoint := range config.Endpoints {
		if u, err := url.Parse(endpoint); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("etcd %q %w: endpoint %q is not an http or https URL", config.Name, ErrConfig, endpoint)
		}
	}
	if config.CAFile != "" || config.CertFile != "" || config.KeyFile != "" {
		info := transport.TLSInfo{TrustedCAFile: config.CAFile, CertFile: config.CertFile, KeyFile: config.KeyFile, Logger: zap.NewNop()}
		if config.CAFile != "" {
			if _, err := os.Stat(config.CAFile); err != nil {
				return nil, fmt.Errorf("etcd %q %w: read the CA's certificate, caFile: %w", config.Name, ErrConfig, err)
			}
		}
		var err error
		if c.tls, err = info.ClientConfig(); err != nil {
			return nil, fmt.Errorf("etcd %q %w: load client certificate: %w", config.Name, ErrConfig, err)
		}
	}
	return c, nil
}

// MarkWith has captures mark what the database's last revision has done, so that
// a recorder which goes on there sees whether it is the same history.
func (c *Cluster) MarkWith(marker *segment.Marker) { c.marker = marker }

// Close ends all connections.
func (c *Cluster) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, client := range c.clients {
		errs = append(errs, client.Close())
	}
	clear(c.clients)
	return errors.Join(errs...)
}

// Window sizes for the snapshot stream: large enough that a reader which
// hashes and writes never leaves the member waiting for window updates.
const (
	streamWindow     = 1 << 20
	connectionWindow = 2 << 20
)

func (c *Cluster) client(endpoint string) (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.clients[endpoint]; client != nil {
		return client, nil
	}
	client, err := c.dial(endpoint, streamWindow, connectionWindow)
	if err != nil {
		return nil, err
	}
	c.clients[endpoint] = client
	return client, nil
}

// dial prepares a connection with the given windows in bytes.
func (c *Cluster) dial(endpoint string, stream, connection int32) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            []string{endpoint},
		TLS:                  c.tls,
		DialTimeout:          c.limits.Call,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithInitialWindowSize(stream),
			grpc.WithInitialConnWindowSize(connection),
			grpc.WithReadBufferSize(256 << 10),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", endpoint, err)
	}
	return client, nil
}

func (c *Cluster) maintenance(endpoint string) (pb.MaintenanceClient, error) {
	client, err := c.client(endpoint)
	if err != nil {
		return nil, err
	}
	return pb.NewMaintenanceClient(client.ActiveConnection()), nil
}

// MemberState is one member as a survey found it.
type MemberState struct {
	manifest.Member
	Endpoint      string // the URL that answered, or the first that was tried
	Local         bool   // the endpoint is on this machine
	Version       string // of the server
	StorageVer    string // of its database; empty before etcd 3.6
	DBSize        int64  // bytes, file
	DBSizeInUse   int64  // bytes
	Leader        manifest.EtcdID
	RaftTerm      uint64
	Applied       uint64   // raft index applied
	Errors        []string // what the member says of itself: alarms, no leader
	Err           error    // why it could not be asked; nil when it answered
	clusterFromIt manifest.EtcdID
}

// Survey is the cluster as seen before a capture.
type Survey struct {
	ClusterID manifest.EtcdID
	Members   []MemberState // in member id order
	Floor     manifest.Revision
	FloorErr  error // why no linearizable read succeeded: no quorum, no member
}

// Voters counts the members that vote.
func (s *Survey) Voters() int {
	n := 0
	for _, m := range s.Members {
		if !m.Learner {
			n++
		}
	}
	return n
}

// Survey asks every member for its state and makes one linearizable read,
// whose revision is the floor that a snapshot must reach. It fails only when
// no member at all answers. Members are asked at once: the dead ones together
// cost one call's limit.
func (c *Cluster) Survey(ctx context.Context) (*Survey, error) {
	survey, err := c.Ask(ctx)
	if err != nil {
		return nil, err
	}
	survey.Floor, survey.FloorErr = c.floor(ctx, survey)
	return survey, nil
}

// Ask is Survey without the linearizable read.
func (c *Cluster) Ask(ctx context.Context) (*Survey, error) {
	asked, listed, err := c.askEndpoints(ctx)
	if err != nil {
		return nil, err
	}
	survey := &Survey{Members: make([]MemberState, len(listed))}
	var running sync.WaitGroup
	for i, member := range listed {
		running.Go(func() {
			state := c.askMember(ctx, member, asked)
			state.Member = member
			survey.Members[i] = state
		})
	}
	running.Wait()
	for _, state := range survey.Members {
		if state.Err == nil {
			survey.ClusterID = state.clusterFromIt
		}
	}
	slices.SortFunc(survey.Members, func(a, b MemberState) int { return cmp.Compare(a.ID, b.ID) })
	return survey, nil
}

// answer is what came of asking one endpoint.
type answer struct {
	id    manifest.EtcdID // of the member that it leads to
	state MemberState
}

// askEndpoints asks the configured endpoints for their state and for the
// member list. The list is a local read, so that it also works without quorum.
func (c *Cluster) askEndpoints(ctx context.Context) (map[string]answer, []manifest.Member, error) {
	answers := make([]answer, len(c.config.Endpoints))
	var running sync.WaitGroup
	for i, endpoint := range c.config.Endpoints {
		running.Go(func() { answers[i].id, answers[i].state = c.status(ctx, endpoint) })
	}
	running.Wait()
	asked := map[string]answer{}
	var listed []manifest.Member
	var errs []error
	for i, endpoint := range c.config.Endpoints {
		asked[endpoint] = answers[i]
		if err := answers[i].state.Err; err != nil {
			errs = append(errs, err)
			continue
		}
		if listed == nil {
			members, err := c.memberList(ctx, endpoint)
			if err != nil {
				errs = append(errs, err)
			}
			listed = members
		}
	}
	if listed == nil {
		return nil, nil, fmt.Errorf("etcd %q: no endpoint answered: %w", c.config.Name, errors.Join(errs...))
	}
	return asked, listed, nil
}

func (c *Cluster) memberList(ctx context.Context, endpoint string) ([]manifest.Member, error) {
	client, err := c.client(endpoint)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.limits.Call)
	defer cancel()
	response, err := client.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("list members at %s: %w", endpoint, err)
	}
	members := []manifest.Member{}
	for _, m := range response.Members {
		members = append(members, manifest.Member{
			ID: manifest.EtcdID(m.ID), Name: manifest.Line(m.Name),
			PeerURLs: lines(m.PeerURLs), ClientURLs: lines(m.ClientURLs), Learner: m.IsLearner,
		})
	}
	return members, nil
}

// lines makes a member's URLs fit for a manifest, in a fixed order.
func lines(urls []string) []string {
	var list []string
	for _, u := range urls {
		list = append(list, manifest.Line(u))
	}
	slices.Sort(list)
	return list
}

// askMember gives a member's state by the configured endpoint that led to it,
// or else asks it by its own client URLs. What was asked is not asked again.
func (c *Cluster) askMember(ctx context.Context, member manifest.Member, asked map[string]answer) MemberState {
	for _, endpoint := range c.config.Endpoints {
		if a := asked[endpoint]; a.state.Err == nil && a.id == member.ID {
			return a.state
		}
	}
	if len(member.ClientURLs) == 0 {
		return MemberState{Err: fmt.Errorf("member %s has not started: it has no client URL", member.ID)}
	}
	var errs []error
	for _, endpoint := range member.ClientURLs {
		a, known := asked[endpoint]
		if !known {
			a.id, a.state = c.status(ctx, endpoint)
		}
		if a.state.Err == nil && a.id == member.ID {
			return a.state
		}
		if a.state.Err == nil {
			a.state.Err = fmt.Errorf("%s leads to member %s, not to %s", endpoint, a.id, member.ID)
		}
		errs = append(errs, a.state.Err)
	}
	return MemberState{Endpoint: member.ClientURLs[0], Local: isLocal(member.ClientURLs[0]), Err: errors.Join(errs...)}
}

func (c *Cluster) status(ctx context.Context, endpoint string) (manifest.EtcdID, MemberState) {
	state := MemberState{Endpoint: endpoint, Local: isLocal(endpoint)}
	m, err := c.maintenance(endpoint)
	if err != nil {
		state.Err = err
		return 0, state
	}
	ctx, cancel := context.WithTimeout(ctx, c.limits.Call)
	defer cancel()
	r, err := m.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		state.Err = fmt.Errorf("ask %s for its status: %w", endpoint, err)
		return 0, state
	}
	state.Version, state.StorageVer = r.Version, r.StorageVersion
	state.DBSize, state.DBSizeInUse = r.DbSize, r.DbSizeInUse
	state.Leader, state.RaftTerm, state.Applied = manifest.EtcdID(r.Leader), r.RaftTerm, r.RaftAppliedIndex
	state.Errors = r.Errors
	state.clusterFromIt = manifest.EtcdID(r.Header.ClusterId)
	return manifest.EtcdID(r.Header.MemberId), state
}

// floorKey is read, never written: a linearizable read of any key gives the
// cluster's revision.
const floorKey = "lifeboat/floor"

// floor reads through all members that know a leader at once, and takes the
// first answer.
func (c *Cluster) floor(ctx context.Context, survey *Survey) (manifest.Revision, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		revision manifest.Revision
		err      error
	}
	outcomes := make(chan outcome, len(survey.Members))
	reading := 0
	for _, member := range survey.Members {
		if member.Err != nil || member.Learner || member.Leader == 0 {
			continue
		}
		reading++
		go func() {
			revision, err := c.readRevision(ctx, member.Endpoint)
			outcomes <- outcome{revision, err}
		}()
	}
	if reading == 0 {
		return 0, errors.New("no member knows a leader")
	}
	var errs []error
	for range reading {
		o := <-outcomes
		if o.err == nil {
			return o.revision, nil
		}
		errs = append(errs, o.err)
	}
	return 0, errors.Join(errs...)
}

// readRevision makes a linearizable read through one member.
func (c *Cluster) readRevision(ctx context.Context, endpoint string) (manifest.Revision, error) {
	client, err := c.client(endpoint)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.limits.Call)
	defer cancel()
	response, err := client.Get(ctx, floorKey, clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("linearizable read at %s: %w", endpoint, err)
	}
	return manifest.Revision(response.Header.Revision), nil
}

// isLocal reports whether a URL's host is an address of this machine.
func isLocal(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	if u.Hostname() == "localhost" {
		return true
	}
	ip := net.ParseIP(u.Hostname())
	if ip == nil {
		return false
	}
	if ip.IsLoopback() {
		return true
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addresses, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}
