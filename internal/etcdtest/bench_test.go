package etcdtest_test

import (
	"testing"

	"lifeboat/internal/etcdtest"
)

// BenchmarkFill writes 30 MB a round through clients, in batches.
func BenchmarkFill(b *testing.B) {
	m, err := etcdtest.StartEmbedded(b.TempDir(), etcdtest.EmbeddedOptions{NoSync: true, QuotaBytes: 8 << 30})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	c, err := m.Client()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for first := 0; b.Loop(); first += 20_000 {
		res, err := etcdtest.Fill(b.Context(), c, etcdtest.FillOptions{Objects: 20_000, First: first, Batch: 32, Clients: 32, CreateOnly: true})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(res.Bytes)
	}
}
