package etcd

import (
	"context"
	"io"

	"google.golang.org/grpc"

	"lifeboat/internal/manifest"
)

// Watchable is a member whose watch may be read, with the others that may be
// asked for their hashes.
type Watchable struct {
	ClusterID manifest.EtcdID
	Member    manifest.EtcdID
	Endpoint  string
	Local     bool // on this machine
	Leader    bool
	Version   string // of the server
	DBSize    int64  // bytes of its database file

	// Conn is the connection to the member. It belongs to the Cluster and ends
	// with it.
	Conn *grpc.ClientConn

	cluster *Cluster

	// Others are the cluster's other members that answered, learners not among
	// them, each with its connection.
	Others []Peer
}

// Dial makes another connection to an endpoint of the cluster, of which no
// stream may buffer more than window bytes (64 KiB at least) that were not
// read. The caller hangs up.
func (w Watchable) Dial(endpoint string, window int32) (conn *grpc.ClientConn, hangUp func() error, err error) {
	client, err := w.cluster.dial(endpoint, window, connectionWindow)
	if err != nil {
		return nil, nil, err
	}
	return client.ActiveConnection(), client.Close, nil
}

// Snapshot writes the member's database to dst and checks the SHA-256 that follows
// it, which is written too. Errors wrap ErrStalled, ErrTrailer, or are dst's own.
func (w Watchable) Snapshot(ctx context.Context, dst io.Writer) error {
	_, err := w.cluster.stream(ctx, w.Endpoint, dst, func(int64) {}, func(int64) {})
	return err
}

// Peer is another member of a Watchable's cluster.
type Peer struct {
	Member   manifest.EtcdID
	Endpoint string
	Conn     *grpc.ClientConn
}

// Watchables lists the members that may be watched, best first, in the order of
// Survey.Sources. It asks only what each member answers by itself: nothing goes
// through the cluster's log, and quorum is not needed. It fails when no member
// answers.
func (c *Cluster) Watchables(ctx context.Context) ([]Watchable, error) {
	survey, err := c.Ask(ctx)
	if err != nil {
		return nil, err
	}
	usable := sources(survey)
	peers := make([]Peer, len(usable))
	for i, m := range usable {
		conn, err := c.Conn(m.Endpoint)
		if err != nil {
			return nil, err
		}
		peers[i] = Peer{Member: m.ID, Endpoint: m.Endpoint, Conn: conn}
	}
	list := make([]Watchable, len(usable))
	for i, m := range usable {
		list[i] = Watchable{
			ClusterID: survey.ClusterID, Member: m.ID, Endpoint: m.Endpoint, Local: m.Local, Leader: m.isLeader(),
			Version: m.Version, DBSize: m.DBSize, Conn: peers[i].Conn, cluster: c,
			Others: append(append([]Peer{}, peers[:i]...), peers[i+1:]...),
		}
	}
	return list, nil
}

// Conn is the connection to one endpoint, made when first asked for. It belongs
// to the Cluster and ends with it.
func (c *Cluster) Conn(endpoint string) (*grpc.ClientConn, error) {
	client, err := c.client(endpoint)
	if err != nil {
		return nil, err
	}
	return client.ActiveConnection(), nil
}
