package etcd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

func TestTrailerCheck(t *testing.T) {
	body := bytes.Repeat([]byte("etcd"), 100)
	sum := sha256.Sum256(body)
	whole := append(bytes.Clone(body), sum[:]...)
	verify := func(data []byte, step int) error {
		check := newTrailerCheck()
		for rest := data; len(rest) > 0; {
			n := min(step, len(rest))
			check.Write(rest[:n])
			rest = rest[n:]
		}
		return check.Verify()
	}
	for step := 1; step <= len(whole); step++ {
		if err := verify(whole, step); err != nil {
			t.Fatalf("a good trailer written in steps of %d: %v", step, err)
		}
	}
	for i := range whole {
		damaged := bytes.Clone(whole)
		damaged[i] ^= 1
		if err := verify(damaged, 7); !errors.Is(err, ErrTrailer) {
			t.Fatalf("byte %d flipped: got %v", i, err)
		}
		if err := verify(whole[:i], 7); !errors.Is(err, ErrTrailer) {
			t.Fatalf("cut to %d bytes: got %v", i, err)
		}
	}
}

func TestChunkCodecReadsWhatTheGeneratedCodeWrites(t *testing.T) {
	response := &pb.SnapshotResponse{
		Header: &pb.ResponseHeader{ClusterId: 1, MemberId: 2}, RemainingBytes: 1 << 40, Blob: []byte("blob"), Version: "3.7.0",
	}
	wire, err := proto.Marshal(response)
	if err != nil {
		t.Fatal(err)
	}
	message := chunk{remaining: 7, blob: []byte("of the message before"), version: "old"}
	for cut := range len(wire) + 1 { // however gRPC splits it into buffers
		data := mem.BufferSlice{mem.SliceBuffer(wire[:cut]), mem.SliceBuffer(wire[cut:])}
		if err := (chunkCodec{}).Unmarshal(data, &message); err != nil {
			t.Fatal(err)
		}
		if message.remaining != 1<<40 || string(message.blob) != "blob" || message.version != "3.7.0" {
			t.Fatalf("cut at %d: got %+v", cut, message)
		}
	}
}

func FuzzChunkCodec(f *testing.F) {
	wire, err := proto.Marshal(&pb.SnapshotResponse{RemainingBytes: 5, Blob: []byte("blob"), Version: "3.6.0"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var message chunk
		err := (chunkCodec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, &message)
		if want := proto.Unmarshal(data, &pb.SnapshotResponse{}); err == nil && want == nil {
			var response pb.SnapshotResponse
			_ = proto.Unmarshal(data, &response)
			if !bytes.Equal(message.blob, response.Blob) || uint64(message.remaining) != response.RemainingBytes {
				t.Fatalf("got %+v, want %v", message, &response)
			}
		}
	})
}
