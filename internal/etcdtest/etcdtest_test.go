package etcdtest_test

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest"
)

func TestFillOnEmbeddedMemberIsReproducible(t *testing.T) {
	var hashes []uint32
	for range 2 {
		m, err := etcdtest.StartEmbedded(t.TempDir(), etcdtest.EmbeddedOptions{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		c, err := m.Client()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		res, err := etcdtest.Fill(t.Context(), c, etcdtest.FillOptions{Objects: 500, Seed: 7, Clients: 1})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Get(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		if got.Count != res.Live || res.Deletes == 0 || res.Puts <= 500 || got.Header.Revision != res.Revision {
			t.Errorf("%d keys at revision %d, Fill says %+v", got.Count, got.Header.Revision, res)
		}
		leases, err := c.Leases(t.Context())
		if err != nil || len(leases.Leases) == 0 {
			t.Errorf("leases %v, %v", leases, err)
		}
		h, err := c.HashKV(t.Context(), m.Endpoint, 0)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, h.Hash)
	}
	if hashes[0] != hashes[1] {
		t.Errorf("the same seed gave HashKV %x and %x", hashes[0], hashes[1])
	}
}
