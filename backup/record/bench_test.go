package record

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/s3test"
)

// BenchmarkRecoveryPoint measures how far the recovery point in an S3 store is
// behind the present, every 100 ms, while etcd takes 1,000 changes a second and
// the settings are the defaults.
func BenchmarkRecoveryPoint(b *testing.B) {
	const perSecond = 1000
	w := newReal(b, cluster.StartBinary(b, "3.6", cluster.Options{}), bucket(b, s3test.Start(b, s3test.Options{})))
	r, stop := w.start()
	defer stop()
	w.change(10, "before")
	w.caughtUp(r)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var writers sync.WaitGroup
	value := strings.Repeat("v", 1000)
	for i := range 20 {
		writers.Go(func() {
			ticker := time.NewTicker(time.Second * 20 / perSecond)
			defer ticker.Stop()
			for n := 0; ctx.Err() == nil; n++ {
				_, _ = w.client.Put(ctx, fmt.Sprint("key", i, n%500), value)
				<-ticker.C
			}
		})
	}
	time.Sleep(5 * time.Second)
	first, began := w.head(), time.Now()
	var lags []time.Duration
	for b.Loop() {
		time.Sleep(100 * time.Millisecond)
		lags = append(lags, time.Since(r.Status().RecoveryPoint))
	}
	b.ReportMetric(float64(w.head()-first)/time.Since(began).Seconds(), "changes/s")
	slices.Sort(lags)
	b.ReportMetric(lags[len(lags)/2].Seconds(), "s-p50")
	b.ReportMetric(lags[len(lags)*99/100].Seconds(), "s-p99")
	b.ReportMetric(lags[len(lags)-1].Seconds(), "s-max")
	cancel()
	writers.Wait()
}
