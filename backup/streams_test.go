package backup_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/storage"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

// openStreams is how many snapshots the member at an endpoint is giving out, of
// those that it has ever begun, by its own count.
func openStreams(endpoint string) (open, started int, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	answer, err := client.Get(endpoint + "/metrics")
	if err != nil {
		return 0, 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, 0, err
	}
	handled := 0
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, "{")
		_, value, _ := strings.Cut(rest, "} ")
		sum := map[string]*int{"grpc_server_started_total": &started, "grpc_server_handled_total": &handled}[name]
		if sum == nil || !strings.Contains(rest, `grpc_method="Snapshot"`) {
			continue
		}
		var n float64
		if _, err := fmt.Sscan(value, &n); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", line, err)
		}
		*sum += int(n)
	}
	return started - handled, started, nil
}

// noStream fails the test unless etcd is done, or soon is, with every snapshot.
func noStream(t testing.TB, endpoint string) {
	t.Helper()
	for deadline := time.Now().Add(busy); ; time.Sleep(20 * time.Millisecond) {
		open, started, err := openStreams(endpoint)
		if err == nil && open == 0 && started > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("etcd has %d of %d snapshots open, error %v", open, started, err)
			return
		}
	}
}

// TestAStalledStoreHoldsNoSnapshotOpenForLong has no scratch: what the only store
// does not take, etcd has to keep, and no longer than the limit.
func TestAStalledStoreHoldsNoSnapshotOpenForLong(t *testing.T) {
	t.Parallel()
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	client := c.Client()
	for i := range 80 { // 10 MB that don't compress: more than all buffers on the way
		value := make([]byte, 100_000)
		rand.Read(value)
		if _, err := client.Put(t.Context(), fmt.Sprintf("/bulk/%d", i), base64.StdEncoding.EncodeToString(value)); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t)
	var seen atomic.Int64
	bad := &hanging{Store: memory.New(), hang: func(op fault.Op, name string) bool {
		if op != fault.Put || !strings.HasSuffix(name, ".age") {
			return false
		}
		for deadline := time.Now().Add(5 * time.Second); seen.Load() == 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if n, _, err := openStreams(c.Endpoints()[0]); err == nil {
				seen.Store(int64(n))
			}
		}
		return true
	}}
	r := w.runner(t, bad)
	r.Scratch, r.StoreStall = "", 6*time.Second
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	patient := limits
	patient.NoProgress = time.Minute // so that it is not the stream's own limit that ends it
	_, err := r.Etcd(ctx, configOf(c), patient)
	if !errors.Is(err, storage.ErrStalled) || ctx.Err() != nil {
		t.Errorf("the run ended with %v, want the store's stall", err)
	}
	if n := seen.Load(); n != 1 {
		t.Errorf("while the store took nothing etcd had %d snapshots open, want 1", n)
	}
	noStream(t, c.Endpoints()[0])
	if left := objects(t, bad.Store); len(left) != 0 {
		t.Errorf("left in the store: %q", left)
	}
}
