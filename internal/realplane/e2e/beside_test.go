package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"lifeboat/internal/realplane"
)

// TestOneNodeBesideByHand takes the time of the same restore by lifeboat and by
// hand (etcdutl and cp), in turns: of a machine that has nothing but container
// images, from the first command to a ready API server. First with a small
// database, then with one of 1.5 GB.
func TestOneNodeBesideByHand(t *testing.T) {
	realplane.RequireFull(t)
	r := newRescue(t, 1)
	m := r.p.Machines[0]
	h := &byHand{t: t, p: r.p, nodes: r.p.Machines, apis: []*realplane.API{r.apis[m.Name]}}

	h.backup()
	r.besideByHand(h, "small database", 3)

	r.p.Stage("1.5 GB into etcd", func() { r.grow(m, 1500<<20) })
	r.equip(m)
	r.p.Logf("%s", m.Run("lifeboat", "backup"))
	h.backup()
	h.bumps++ // beyond what the last restore let people see
	r.besideByHand(h, "1.5 GB", 2)
	r.watcher.Stop()
}

// besideByHand loses the machine as often for both ways, and logs their times.
func (r *rescue) besideByHand(h *byHand, what string, rounds int) {
	r.t.Helper()
	m := h.nodes[0]
	var byLifeboat, byHand []time.Duration
	for range rounds {
		m.LoseMachine(realplane.KeepImages)
		r.equip(m)
		began := time.Now()
		report := r.restore(m)
		byLifeboat = append(byLifeboat, time.Duration(report.RTO.Ready*float64(time.Second)))
		r.p.Logf("the command in all: %.1f s", time.Since(began).Seconds())
		m.WaitReady(r.apis[m.Name], time.Minute)
		m.WaitWorkload()

		m.LoseMachine(realplane.KeepImages)
		byHand = append(byHand, h.restore(what, time.Now()))
	}
	slices.Sort(byLifeboat)
	slices.Sort(byHand)
	ours, theirs := byLifeboat[len(byLifeboat)/2].Seconds(), byHand[len(byHand)/2].Seconds()
	r.p.Logf("BESIDE %s: to /readyz by lifeboat %v, by hand %v; the medians: %.1f s and %.1f s, %.2f x", what, byLifeboat, byHand, ours, theirs, ours/theirs)
	if ours <= 0 || theirs <= 0 {
		r.t.Error("no time was taken")
	}
}

// grow writes values that don't compress into a machine's etcd, beside what
// belongs to Kubernetes, until its database has so many bytes.
func (r *rescue) grow(m *realplane.Machine, bytes int64) {
	r.t.Helper()
	pki := filepath.Join(m.Root, "/etc/kubernetes/pki/etcd")
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "healthcheck-client.crt"), filepath.Join(pki, "healthcheck-client.key"))
	if err != nil {
		r.t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		r.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + m.Address + ":2379"}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: roots},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	defer client.Close()
	const value, batch = 1000, 100
	random := rand.NewChaCha8([32]byte{1})
	buffer := make([]byte, value)
	for key, size := 0, int64(0); size < bytes; {
		var puts []clientv3.Op
		for range batch {
			_, _ = random.Read(buffer)
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("/filler/%08d", key), string(buffer)))
			key++
		}
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
		_, err := client.Txn(ctx).Then(puts...).Commit()
		if err == nil && key%(50*batch) == 0 {
			var status *clientv3.StatusResponse
			if status, err = client.Status(ctx, client.Endpoints()[0]); err == nil {
				size = status.DbSize
			}
		}
		cancel()
		if err != nil {
			r.t.Fatalf("at %d bytes, %d values: %v", size, key, err)
		}
	}
}
