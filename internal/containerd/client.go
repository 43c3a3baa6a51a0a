// Package containerd talks to the containerd of this machine, by its gRPC API:
// which images and containers it has, what is in its content store, and how to put
// images there so that kubelet finds them. It knows nothing of backups.
//
// It works in the namespace of Kubernetes, k8s.io, through containerd's API module
// alone: its client module would bring in all of a container's life.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Namespace is where kubelet's containers and images are.
const Namespace = "k8s.io"

// maxAnswer bounds one message, in bytes: a list of containers holds the
// specification of each.
const maxAnswer = 64 << 20

// Errors that callers branch on.
var (
	// ErrUnavailable: no containerd answers at the socket.
	ErrUnavailable = errors.New("containerd does not answer")

	// ErrNotFound: containerd has no blob or image of that name.
	ErrNotFound = errors.New("containerd has none of that name")

	// ErrOtherImage: containerd has another image of that name.
	ErrOtherImage = errors.New("another image has that name")
)

// Client is a connection to containerd. It is safe for concurrent use.
type Client struct {
	socket     string
	conn       *grpc.ClientConn
	content    contentapi.ContentClient
	images     imagesapi.ImagesClient
	leases     leasesapi.LeasesClient
	containers containersapi.ContainersClient
}

// Dial prepares to talk to the containerd at a socket, a path. The caller closes
// the client. It returns ErrUnavailable if no socket is there.
func Dial(socket string) (*Client, error) {
	info, err := os.Stat(socket)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w: %w; is it running?", ErrUnavailable, err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("connect to containerd: %w: %s is no socket", ErrUnavailable, socket)
	}
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(inNamespace(ctx), method, req, reply, conn, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(inNamespace(ctx), desc, conn, method, opts...)
		}))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	return &Client{
		socket: socket, conn: conn, content: contentapi.NewContentClient(conn), images: imagesapi.NewImagesClient(conn),
		leases: leasesapi.NewLeasesClient(conn), containers: containersapi.NewContainersClient(conn),
	}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Socket is the path that the client was dialled with.
func (c *Client) Socket() string { return c.socket }

func inNamespace(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", Namespace)
}

// failed gives a call's error its words.
func (c *Client) failed(ctx context.Context, doing string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %w", doing, cause)
	}
	switch status.Code(err) {
	case codes.Unavailable:
		return fmt.Errorf("%s: %w at %s: %s", doing, ErrUnavailable, c.socket, status.Convert(err).Message())
	case codes.Unimplemented:
		return fmt.Errorf("%s: %w at %s: what listens there is no containerd (CRI-O keeps images in another way)", doing, ErrUnavailable, c.socket)
	case codes.NotFound:
		return fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	if s, ok := status.FromError(err); ok {
		return fmt.Errorf("%s: containerd at %s: %s", doing, c.socket, s.Message())
	}
	return fmt.Errorf("%s: containerd at %s: %w", doing, c.socket, err)
}
