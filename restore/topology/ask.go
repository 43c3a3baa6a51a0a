package topology

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"lifeboat/internal/manifest"
)

// askAll asks all at once, each at its URLs one after the other.
func askAll(ctx context.Context, in Inputs, members []Member) {
	var all sync.WaitGroup
	for i := range members {
		all.Go(func() {
			ask(ctx, in, &members[i])
			members[i].recognize(ctx, in)
		})
	}
	all.Wait()
}

// rank orders the states: what a member does at its best URL counts.
var rank = map[State]int{Answers: 4, Accepts: 3, Refuses: 2, Silent: 1}

func ask(ctx context.Context, in Inputs, m *Member) {
	m.State, m.How = Silent, "it has no client URL to ask it at"
	var said []string
	best := *m
	for _, endpoint := range m.ClientURLs {
		got := *m
		got.askAt(ctx, in, endpoint)
		if m.ID != 0 && got.State == Answers && got.ID != m.ID && !in.makes(got.ClusterID) {
			// k0s has every member tell clients the loopback address of its own host.
			said = append(said, endpoint+": "+got.String()+" answers there, another member")
			got.ClientURLs = []string{endpoint}
			best.instead = append(best.instead, got)
			continue
		}
		said = append(said, endpoint+": "+got.How)
		if rank[got.State] > rank[best.State] || len(said) == 1 {
			got.instead = best.instead
			best = got
		}
		if got.State == Answers {
			break
		}
	}
	if len(said) > 0 {
		best.How = strings.Join(said, "; ")
	}
	*m = best
}

// askAt finds out who is at one URL: first whether anybody takes a connection,
// then whether it is whom the certificates are for, then its status.
func (m *Member) askAt(ctx context.Context, in Inputs, endpoint string) {
	ctx, cancel := context.WithTimeoutCause(ctx, in.Limits.Call, fmt.Errorf("no answer within %v", in.Limits.Call))
	defer cancel()
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		m.State, m.How = Silent, "no http or https URL with a host"
		return
	}
	address := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme]))
	conn, err := in.Dial(ctx, "tcp", address)
	if err != nil {
		m.State, m.How = Silent, "no connection: "+because(ctx, err)+"; dead, or cut off from here"
		if errors.Is(err, syscall.ECONNREFUSED) {
			m.State, m.How = Refuses, "connection refused: nobody listens"
		}
		return
	}
	defer conn.Close()
	m.State = Accepts
	if u.Scheme == "https" && in.TLS == nil {
		m.How = "takes connections, but there are no certificates to ask it with"
		return
	}
	if u.Scheme == "https" {
		config := in.TLS.Clone()
		config.ServerName = cmp.Or(config.ServerName, u.Hostname())
		if err := tls.Client(conn, config).HandshakeContext(ctx); err != nil {
			m.How = "takes connections, but not these certificates: " + because(ctx, err)
			return
		}
	}
	if err := m.status(ctx, in, endpoint); err != nil {
		m.How = "takes connections, but does not tell its status: " + because(ctx, err)
		return
	}
	m.State, m.Endpoint = Answers, endpoint
	m.How = fmt.Sprintf("told its status: cluster %s, revision %d, leader %s", m.ClusterID, m.Revision, leaderName(m.Leader))
}

func leaderName(id manifest.EtcdID) string {
	if id == 0 {
		return "none"
	}
	return id.String()
}

// because is an error's text, with why a context ended, and shortened: it may
// come from anybody.
func because(ctx context.Context, err error) string {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		text = s.Message()
	}
	return manifest.Line(text)
}

// status asks for status and members. The member list is the member's own view:
// asking for the cluster's would need a quorum.
func (m *Member) status(ctx context.Context, in Inputs, endpoint string) error {
	options := []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return in.Dial(ctx, "tcp", strings.TrimPrefix(address, "//"))
	})}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: tlsFor(endpoint, in.TLS), Logger: zap.NewNop(), DialOptions: options, Context: ctx})
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := etcdserverpb.NewMaintenanceClient(client.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
	if err != nil {
		return err
	}
	if m.ID != 0 && m.ID != manifest.EtcdID(s.Header.MemberId) && !in.makes(manifest.EtcdID(s.Header.ClusterId)) {
		m.Name, m.InBackup = "another member at the address of "+m.String(), false
	}
	m.ID, m.ClusterID, m.Leader = manifest.EtcdID(s.Header.MemberId), manifest.EtcdID(s.Header.ClusterId), manifest.EtcdID(s.Leader)
	m.Term, m.Index, m.Revision, m.Version, m.Errors = s.RaftTerm, s.RaftIndex, s.Header.Revision, s.Version, s.Errors
	m.Learner = s.IsLearner
	if s.IsLearner {
		return nil // it is not asked for more than its status
	}
	list, err := etcdserverpb.NewClusterClient(client.ActiveConnection()).MemberList(ctx, &etcdserverpb.MemberListRequest{Linearizable: false})
	if err != nil {
		return nil // its status counts without
	}
	for _, named := range list.Members {
		if m.ID == manifest.EtcdID(named.ID) && named.Name != "" {
			m.Name = named.Name
		}
		m.members = append(m.members, manifest.Member{ID: manifest.EtcdID(named.ID), Name: named.Name, PeerURLs: named.PeerURLs, ClientURLs: named.ClientURLs, Learner: named.IsLearner})
	}
	return nil
}

func tlsFor(endpoint string, config *tls.Config) *tls.Config {
	if strings.HasPrefix(endpoint, "https:") {
		return config
	}
	return nil
}
