package segment_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"lifeboat/internal/segment"
)

func Example() {
	kv, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte("a"), Value: []byte("one"), CreateRevision: 7, ModRevision: 7, Version: 1})
	if err != nil {
		log.Fatal(err)
	}
	var b bytes.Buffer
	w, err := segment.NewWriter(&b, segment.Header{First: 7, At: 1767225600000})
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range []segment.Record{
		{Kind: segment.KindPut, Main: 7, KV: kv},
		{Kind: segment.KindDelete, Main: 8, KV: segment.AppendTombstone(nil, []byte("a"))},
	} {
		if err := w.Write(r); err != nil {
			log.Fatal(err)
		}
	}
	if err := w.Close(8); err != nil {
		log.Fatal(err)
	}

	r, err := segment.NewReader(&b)
	if err != nil {
		log.Fatal(err)
	}
	for {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break // whole: only now does it count
		}
		if err != nil {
			log.Fatal(err)
		}
		key, err := segment.KeyOf(record.KV)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d %s %s\n", record.Main, record.Kind, key)
	}
	fmt.Println("up to", r.Last())
	// Output:
	// 7 put a
	// 8 delete a
	// up to 8
}
