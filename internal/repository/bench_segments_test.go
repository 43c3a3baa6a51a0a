package repository

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/s3"
)

// recorded writes the manifests of a chain as a recorder leaves it that nobody
// prunes behind: n segments, a full each six hours of two-second segments.
func (w *world) recorded(write func(name string, data []byte), n int) {
	w.t.Helper()
	const fullEvery = 6 * 60 * 60 / 2
	var live, recent []manifest.Entry
	var previous manifest.Hash
	indexed, listed := 0, 0
	for i := range n + n/fullEvery + 1 {
		var m *manifest.Manifest
		if rev := manifest.Revision(10 * (i + 1)); i%(fullEvery+1) == 0 {
			m, _ = w.draft(etcdMain, manifest.KindFull)
			m.Etcd.Revision = rev
			if i-indexed >= len(live)/4 {
				m.Index, indexed, listed, recent = live, i, i, nil
			}
		} else {
			m, _ = w.segmentDraft(rev-9, rev)
			if i-listed >= recentEvery {
				m.Recent, listed, recent = recent, i, nil
			}
		}
		w.clock.forward(2 * time.Second)
		m.Format, m.Cluster, m.Epoch, m.Created = 1, testCluster, 1, whole(m.Created)
		m.Sequence, m.Previous = manifest.Sequence(i+1), previous
		signed, err := manifest.Sign(m, w.signer)
		if err != nil {
			w.t.Fatal(err)
		}
		if previous, err = manifest.TextHash(signed); err != nil {
			w.t.Fatal(err)
		}
		write(ManifestName(etcdMain, m.Sequence), signed)
		e := manifest.Entry{Sequence: m.Sequence, Hash: previous, Kind: m.Kind, ID: m.ID, Reach: m.Reach()}
		if live = append(live, e); m.Kind == manifest.KindSegment {
			recent = append(recent, e)
		}
	}
}

// into writes files below a folder.
func into(t testing.TB, folder string) func(name string, data []byte) {
	if err := os.MkdirAll(filepath.Join(folder, testCluster, string(etcdMain), "manifests"), 0o755); err != nil {
		t.Fatal(err)
	}
	return func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(folder, testCluster, filepath.FromSlash(name)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func s3Store(t testing.TB) (storage.Store, *s3test.Server) {
	server := s3test.Start(t, s3test.Options{})
	server.Setenv(t)
	store, err := s3.New(t.Context(), s3.Config{Bucket: server.Bucket, Endpoint: server.Endpoint})
	if err != nil {
		t.Fatal(err)
	}
	return store, server
}

// BenchmarkOpen opens a chain of 130,000 segments that nobody pruned (three days,
// one each two seconds), with no local state, as a commit does and as a restore.
func BenchmarkOpen(b *testing.B) {
	const segments = 130_000
	for _, on := range []string{"directory", "S3"} {
		b.Run(on, func(b *testing.B) {
			var store storage.Store
			folder := b.TempDir()
			if on == "S3" {
				s, server := s3Store(b)
				store, folder = s, server.Folder()
			} else {
				s, err := local.New(folder)
				if err != nil {
					b.Fatal(err)
				}
				store = s
			}
			w := newWorld(b, store)
			w.recorded(into(b, folder), segments)
			check := func(b *testing.B, v *View, err error) {
				if err != nil || len(v.Problems) > 0 || len(v.st.live) != int(v.Head.Sequence) {
					b.Fatal(err, v)
				}
			}
			b.Run("load", func(b *testing.B) {
				for b.Loop() {
					v, err := w.open().Load(b.Context(), etcdMain)
					check(b, v, err)
				}
			})
			b.Run("tip", func(b *testing.B) {
				for b.Loop() {
					if tip, err := w.open().Appender(etcdMain).Head(b.Context()); err != nil || tip.Last == 0 || tip.Last != tip.Recorded {
						b.Fatal(tip, err)
					}
				}
			})
			b.Run("witnesses", func(b *testing.B) {
				for b.Loop() {
					v, _, err := w.open().withWitnesses(b.Context(), etcdMain)
					check(b, v, err)
				}
			})
			b.Run("full listing", func(b *testing.B) { // for comparison: no more than the names
				for b.Loop() {
					n := 0
					for _, err := range store.List(b.Context(), testCluster+"/etcd/main/manifests/") {
						if n++; err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		})
	}
}

// BenchmarkAppend commits small segments one after the other, each with its
// object: what bounds how often a recorder can commit.
func BenchmarkAppend(b *testing.B) {
	for _, on := range []string{"directory", "S3"} {
		for _, how := range []string{"appender", "whole protocol"} {
			b.Run(fmt.Sprintf("%s/%s", on, how), func(b *testing.B) {
				var store storage.Store
				if on == "S3" {
					store, _ = s3Store(b)
				} else {
					s, err := local.New(b.TempDir())
					if err != nil {
						b.Fatal(err)
					}
					store = s
				}
				w := newWorld(b, store)
				r := w.open()
				w.full(r, at(1))
				a := r.Appender(etcdMain)
				rev := manifest.Revision(1)
				for b.Loop() {
					rev++
					m, data := w.segmentDraft(rev, rev)
					if err := put(b.Context(), r, m, data); err != nil {
						b.Fatal(err)
					}
					var err error
					if how == "appender" {
						_, err = a.Commit(b.Context(), m)
					} else {
						_, err = r.Commit(b.Context(), m)
					}
					if err != nil {
						b.Fatal(err)
					}
					w.clock.forward(time.Millisecond)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			})
		}
	}
}
