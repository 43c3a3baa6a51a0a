package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Failures of a snapshot stream that a caller may branch on.
var (
	ErrStalled = errors.New("the snapshot stream made no progress")
	ErrTrailer = errors.New("the snapshot's SHA-256 trailer does not match its bytes")
)

// snapshotMethod is etcdserverpb.Maintenance/Snapshot. It is called without
// the generated client so that no memory is made for each message, and the
// size of the whole, which clientv3 hides, is seen.
const snapshotMethod = "/etcdserverpb.Maintenance/Snapshot"

// streamInfo is what a finished stream says about the snapshot.
type streamInfo struct {
	Size          int64  // bytes written, trailer included
	ServerVersion string // storage version announced by the member; empty before 3.6
}

// stream copies the member's whole database and its trailer to dst and checks
// the trailer. onSize is called once with the expected size in bytes before
// the first write.
func (c *Cluster) stream(ctx context.Context, endpoint string, dst io.Writer, onSize func(int64), onProgress func(int64)) (streamInfo, error) {
	client, err := c.client(endpoint)
	if err != nil {
		return streamInfo{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(c.limits.NoProgress, func() {
		cancel(fmt.Errorf("%w for %s", ErrStalled, c.limits.NoProgress))
	})
	defer watchdog.Stop()

	fail := func(err error) (streamInfo, error) {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return streamInfo{}, fmt.Errorf("stream a snapshot from %s: %w", endpoint, err)
	}
	raw, err := client.ActiveConnection().NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, snapshotMethod,
		grpc.ForceCodecV2(chunkCodec{}), grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(raw.SendMsg(&chunk{}), raw.CloseSend()); err != nil {
		return fail(err)
	}

	var info streamInfo
	var message chunk
	check := newTrailerCheck()
	for first := true; ; first = false {
		err := raw.RecvMsg(&message)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fail(err)
		}
		if first {
			onSize(int64(len(message.blob)) + message.remaining + sha256.Size)
		}
		if message.version != "" {
			info.ServerVersion = message.version
		}
		watchdog.Stop() // what follows takes our time, not the member's
		check.Write(message.blob)
		_, err = dst.Write(message.blob)
		info.Size += int64(len(message.blob))
		if err != nil {
			return streamInfo{}, err // the destination's failure, not the stream's
		}
		onProgress(info.Size)
		watchdog.Reset(c.limits.NoProgress)
	}
	if err := check.Verify(); err != nil {
		return fail(err)
	}
	return info, nil
}

// chunk is etcdserverpb.SnapshotResponse without its header. Receiving into it
// again reuses its memory: the blob is valid until then.
type chunk struct {
	remaining int64
	blob      []byte
	version   string
	wire      []byte // the message that blob is a part of
}

// chunkCodec reads a SnapshotResponse into memory that is used again for the
// next: gRPC's own pool clears a megabyte for each message of 32 KiB and a
// little more. The request is always empty.
type chunkCodec struct{}

func (chunkCodec) Name() string { return "proto" }

func (chunkCodec) Marshal(any) (mem.BufferSlice, error) { return nil, nil }

// Field numbers of etcdserverpb.SnapshotResponse (etcd's rpc.proto).
const (
	fieldRemaining = 2
	fieldBlob      = 3
	fieldVersion   = 4
)

func (chunkCodec) Unmarshal(data mem.BufferSlice, v any) error {
	message, ok := v.(*chunk)
	if !ok {
		return fmt.Errorf("unmarshal a snapshot response into %T", v)
	}
	message.remaining, message.blob, message.version = 0, nil, ""
	message.wire = slices.Grow(message.wire[:0], data.Len())[:data.Len()]
	data.CopyTo(message.wire)
	for b := message.wire; len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("snapshot response: %w", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case number == fieldRemaining && kind == protowire.VarintType:
			var value uint64
			value, n = protowire.ConsumeVarint(b)
			message.remaining = int64(value)
		case number == fieldBlob && kind == protowire.BytesType:
			message.blob, n = protowire.ConsumeBytes(b)
		case number == fieldVersion && kind == protowire.BytesType:
			message.version, n = protowire.ConsumeString(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return fmt.Errorf("snapshot response: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return nil
}

// trailerCheck hashes all but the last 32 bytes written to it and compares
// those with the hash.
type trailerCheck struct {
	hash hash.Hash
	tail []byte // the last bytes so far, at most 32
}

func newTrailerCheck() *trailerCheck { return &trailerCheck{hash: sha256.New()} }

func (t *trailerCheck) Write(p []byte) (int, error) {
	if len(p) >= sha256.Size {
		t.hash.Write(t.tail)
		t.hash.Write(p[:len(p)-sha256.Size])
		t.tail = append(t.tail[:0], p[len(p)-sha256.Size:]...)
		return len(p), nil
	}
	t.tail = append(t.tail, p...)
	if excess := len(t.tail) - sha256.Size; excess > 0 {
		t.hash.Write(t.tail[:excess])
		t.tail = append(t.tail[:0], t.tail[excess:]...)
	}
	return len(p), nil
}

func (t *trailerCheck) Verify() error {
	if len(t.tail) < sha256.Size {
		return fmt.Errorf("%w: it ended after %d bytes", ErrTrailer, len(t.tail))
	}
	if !bytes.Equal(t.hash.Sum(nil), t.tail) {
		return ErrTrailer
	}
	return nil
}
