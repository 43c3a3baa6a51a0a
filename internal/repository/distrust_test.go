package repository

import (
	"errors"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestAWriterWhoseSignatureWouldNotCountWritesNoManifest(t *testing.T) {
	for name, change := range map[string]func(*world, *Options){
		"a key that the trust does not hold": func(w *world, o *Options) { o.Signer = w.newSigner("stranger") },
		"a key that may not sign the chain": func(w *world, o *Options) {
			o.Trust = w.trusting(testCluster, w.signer)
			o.Trust.Verifiers[0].Chains = []string{"hosts/*"}
		},
		"a key whose time has passed": func(w *world, o *Options) {
			o.Trust = w.trusting(testCluster, w.signer)
			o.Trust.Verifiers[0].Until = w.clock.now().UTC().Add(-time.Hour).Truncate(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open(func(o *Options) { change(w, o) })
			m, data := w.draft(etcdMain, manifest.KindFull)
			if err := put(t.Context(), r, m, data); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Commit(t.Context(), m); !errors.Is(err, manifest.ErrUnsigned) {
				t.Errorf("got %v, want ErrUnsigned", err)
			}
			if got := names(t, w.store, testCluster+"/etcd/main/manifests/"); len(got) > 0 {
				t.Errorf("%d manifests were written", len(got))
			}
		})
	}
}
