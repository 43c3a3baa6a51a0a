package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"lifeboat/internal/oci"
)

// Has reports whether the content store has a blob.
func (c *Client) Has(ctx context.Context, d oci.Digest) (bool, error) {
	_, err := c.Size(ctx, d)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Size is a blob's in the content store, in bytes. It returns ErrNotFound if it is
// not there.
func (c *Client) Size(ctx context.Context, d oci.Digest) (int64, error) {
	info, err := c.info(ctx, d)
	if err != nil {
		return 0, err
	}
	return info.GetSize(), nil
}

func (c *Client) info(ctx context.Context, d oci.Digest) (*contentapi.Info, error) {
	answer, err := c.content.Info(ctx, &contentapi.InfoRequest{Digest: string(d)})
	if err != nil {
		return nil, c.failed(ctx, fmt.Sprintf("look for %s", d), err)
	}
	return answer.GetInfo(), nil
}

// Open reads a blob. What it yields counts once io.EOF came: bytes of another size
// or digest are oci.ErrDamaged in its place. The caller closes the reader.
func (c *Client) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.content.Read(ctx, &contentapi.ReadContentRequest{Digest: string(d.Digest)})
	if err != nil {
		cancel()
		return nil, c.failed(ctx, fmt.Sprintf("read %s", d.Digest), err)
	}
	received := &received{stream: stream, failed: func(err error) error { return c.failed(ctx, fmt.Sprintf("read %s", d.Digest), err) }}
	return &blob{Reader: oci.Verified(received, d), cancel: cancel}, nil
}

// blob is one that is read from the content store.
type blob struct {
	io.Reader
	cancel context.CancelFunc // ends the stream
}

func (b *blob) Close() error {
	b.cancel()
	return nil
}

// received is the bytes of a stream's messages.
type received struct {
	stream interface {
		Recv() (*contentapi.ReadContentResponse, error)
	}
	failed func(error) error // gives an error its words
	rest   []byte
}

func (r *received) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		message, err := r.stream.Recv()
		if err == io.EOF {
			return 0, io.EOF
		}
		if err != nil {
			return 0, r.failed(err)
		}
		r.rest = message.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Document implements oci.Source.
func (c *Client) Document(ctx context.Context, d oci.Descriptor) ([]byte, error) {
	r, err := c.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// chunk is how much of a blob goes into one message.
const chunk = 1 << 20

// Write puts a blob into the content store, with labels. r is read to its end,
// whose io.EOF must say that all was right; containerd is told to keep the blob
// only then, and checks size and digest itself. A blob that is there comes under the
// lease too, and gets the labels, once it was read and found whole; r is left alone.
// Without a lease (Lease) what no image names yet may be collected at any moment. run is unique to
// the caller: what an earlier one has left half written is never gone on with.
func (c *Client) Write(ctx context.Context, run string, d oci.Descriptor, labels map[string]string, r func() (io.ReadCloser, error)) (written bool, err error) {
	written, err = c.write(ctx, run, d, labels, r)
	var left *leftBehind
	if !errors.As(err, &left) {
		return written, err
	}
	if err := c.forget(ctx, run, d.Digest); err != nil {
		return false, errors.Join(left, err)
	}
	return c.write(ctx, run, d, labels, r)
}

// leftBehind is damage in bytes that containerd still had on its disk, although no
// image of the namespace named them: those of a blob that was deleted are there
// until they are collected, and taken for a new one's.
type leftBehind struct{ error }

func (l *leftBehind) Unwrap() error { return l.error }

// forget deletes a blob, and waits until containerd has collected what nobody needs.
func (c *Client) forget(ctx context.Context, run string, d oci.Digest) error {
	doing := fmt.Sprintf("delete the damaged %s", d)
	if _, err := c.content.Delete(ctx, &contentapi.DeleteContentRequest{Digest: string(d)}); err != nil && status.Code(err) != codes.NotFound {
		return c.failed(ctx, doing, err)
	}
	id := run + "-collect"
	if _, err := c.leases.Create(ctx, &leasesapi.CreateRequest{ID: id}); err != nil {
		return c.failed(ctx, doing, err)
	}
	if _, err := c.leases.Delete(ctx, &leasesapi.DeleteRequest{ID: id, Sync: true}); err != nil {
		return c.failed(ctx, doing, err)
	}
	return nil
}

func (c *Client) write(ctx context.Context, run string, d oci.Descriptor, labels map[string]string, r func() (io.ReadCloser, error)) (written bool, err error) {
	doing := fmt.Sprintf("write %s", d.Digest)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream, and with it containerd's hold on the reference
	ref := run + "-" + string(d.Digest)
	stream, err := c.content.Write(ctx)
	if err != nil {
		return false, c.failed(ctx, doing, err)
	}
	exchange := func(request *contentapi.WriteContentRequest) (*contentapi.WriteContentResponse, error) {
		if err := stream.Send(request); err != nil && err != io.EOF { // of io.EOF, Recv knows why
			return nil, err
		}
		return stream.Recv()
	}
	state, err := exchange(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT, Ref: ref, Total: d.Size, Expected: string(d.Digest)})
	switch {
	case status.Code(err) == codes.AlreadyExists: // and the lease has it from now on: to ask for it, or to label it, gives no lease a hold
		return false, c.adopt(ctx, d, labels)
	case err != nil:
		return false, c.failed(ctx, doing, err)
	}
	commit := &contentapi.WriteContentRequest{
		Action: contentapi.WriteAction_COMMIT, Ref: ref, Total: d.Size, Expected: string(d.Digest), Offset: d.Size, Labels: labels,
	}
	if state.GetOffset() == d.Size && d.Size > 0 { // another namespace has it, or it is about to be collected
		if _, err := exchange(commit); err != nil && status.Code(err) != codes.AlreadyExists {
			return false, c.failed(ctx, doing, err)
		}
		if err = c.adopt(ctx, d, labels); errors.Is(err, oci.ErrDamaged) {
			err = &leftBehind{err}
		}
		return false, err
	}
	if err := c.pour(d, ref, r, exchange); err != nil {
		cancel()
		c.abort(context.WithoutCancel(ctx), ref)
		if _, ok := status.FromError(err); ok {
			err = c.failed(ctx, doing, err)
		}
		return false, err
	}
	_, err = exchange(commit)
	switch {
	case status.Code(err) == codes.AlreadyExists: // by somebody else, meanwhile
		return false, c.adopt(ctx, d, labels)
	case err != nil:
		return false, c.failed(ctx, doing, err)
	}
	return true, nil
}

// pour sends a blob's bytes. They are checked here too: containerd's word would
// come only after it had stored them.
func (c *Client) pour(d oci.Descriptor, ref string, open func() (io.ReadCloser, error), exchange func(*contentapi.WriteContentRequest) (*contentapi.WriteContentResponse, error)) error {
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	checked, n, buffer := oci.Verified(r, d), int64(0), make([]byte, chunk)
	for {
		got, err := io.ReadFull(checked, buffer)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		ended := err != nil
		if ended { // io.ErrUnexpectedEOF may be the source's own: what was checked says which end this is
			if _, err := checked.Read(nil); err != io.EOF {
				return err
			}
		}
		if got > 0 {
			if _, err := exchange(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Ref: ref, Total: d.Size, Expected: string(d.Digest), Offset: n, Data: buffer[:got]}); err != nil {
				return err
			}
		}
		if n += int64(got); ended {
			return nil
		}
	}
}

// abort gives back the room that a blob took which was not kept. Failing to is no
// matter: containerd forgets what a lease does not hold.
func (c *Client) abort(ctx context.Context, ref string) {
	_, _ = c.content.Abort(ctx, &contentapi.AbortRequest{Ref: ref})
}

// adopt checks a blob that is there and gives it labels.
func (c *Client) adopt(ctx context.Context, d oci.Descriptor, labels map[string]string) error {
	if err := c.Verify(ctx, d); err != nil {
		return err
	}
	if len(labels) == 0 {
		return nil
	}
	info, err := c.info(ctx, d.Digest)
	if err != nil {
		return err
	}
	var paths []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if info.GetLabels()[key] != labels[key] {
			paths = append(paths, "labels."+key)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	_, err = c.content.Update(ctx, &contentapi.UpdateRequest{
		Info: &contentapi.Info{Digest: string(d.Digest), Labels: labels}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
	})
	if err != nil {
		return c.failed(ctx, fmt.Sprintf("label %s", d.Digest), err)
	}
	return nil
}

// Verify reads a blob of the content store and checks its size and digest.
func (c *Client) Verify(ctx context.Context, d oci.Descriptor) error {
	r, err := c.Open(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}
