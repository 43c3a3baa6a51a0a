package repository

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage/local"
	"lifeboat/storage/memory"
)

// chainOf writes a chain of n backups straight into a directory, as n commits
// would have left it.
func (w *world) chainOf(write func(name string, data []byte), chain manifest.Chain, kind manifest.Kind, n int) {
	w.t.Helper()
	var live []manifest.Entry
	var previous manifest.Hash
	since := 0
	for i := range n {
		m, data := w.draft(chain, kind)
		for name, b := range data {
			write(name, b)
		}
		w.clock.forward(time.Second)
		m.Format, m.Cluster, m.Epoch, m.Created = 1, testCluster, 1, whole(m.Created)
		m.Sequence, m.Previous = manifest.Sequence(i+1), previous
		if since++; len(live) <= alwaysIndexed || since >= len(live)/4 {
			m.Index, since = live, 0
		}
		signed, err := manifest.Sign(m, w.signer)
		if err != nil {
			w.t.Fatal(err)
		}
		text, _ := m.Text()
		previous = sha256.Sum256(text)
		write(ManifestName(chain, m.Sequence), signed)
		live = append(live, manifest.Entry{Sequence: m.Sequence, Hash: previous, Kind: kind, ID: m.ID})
	}
}

// thousands is a repository of 10,000 backups, in a directory or in memory.
func thousands(t testing.TB, inMemory bool) *world {
	t.Helper()
	dir := t.TempDir()
	s, err := local.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, s)
	write := func(name string, data []byte) {
		path := filepath.Join(dir, testCluster, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if inMemory {
		w.store = memory.New(memory.WithClock(w.clock.now))
		write = func(name string, data []byte) { set(t, w.store, testCluster+"/"+name, data) }
	}
	w.chainOf(write, etcdMain, manifest.KindFull, 4000)
	for _, chain := range []manifest.Chain{"hosts/cp1", "hosts/cp2", "hosts/cp3"} {
		w.chainOf(write, chain, manifest.KindFiles, 2000)
	}
	return w
}

// BenchmarkList lists 10,000 backups from a directory.
func BenchmarkList(b *testing.B) {
	for store, inMemory := range map[string]bool{"directory": false, "memory": true} {
		b.Run(store, func(b *testing.B) {
			w := thousands(b, inMemory)
			for b.Loop() {
				backups, problems, err := w.open().Backups(b.Context())
				if err != nil || len(problems) > 0 || len(backups) != 10_000 {
					b.Fatal(len(backups), problems, err)
				}
			}
		})
	}
}

// BenchmarkNames lists the names alone.
func BenchmarkNames(b *testing.B) {
	w := thousands(b, false)
	for b.Loop() {
		if l, err := w.open().list(b.Context()); err != nil || len(l.chains) != 4 {
			b.Fatal(l, err)
		}
	}
}

// BenchmarkResolve opens a chain of 4,000 fulls and finds the latest.
func BenchmarkResolve(b *testing.B) {
	w := thousands(b, false)
	for b.Loop() {
		if m, err := w.open().Resolve(b.Context(), etcdMain, Point{}); err != nil || m.Sequence != 4000 {
			b.Fatal(m, err)
		}
	}
}

// BenchmarkVerifyManifests verifies every signature and link of 4,000 fulls.
func BenchmarkVerifyManifests(b *testing.B) {
	w := thousands(b, false)
	for b.Loop() {
		v, err := w.open().load(b.Context(), etcdMain, depth{signatures: true})
		if err != nil || len(v.Problems) > 0 {
			b.Fatal(v.Problems, err)
		}
	}
}

// BenchmarkTail reads what a commit needs to know of a chain of 4,000 fulls.
func BenchmarkTail(b *testing.B) {
	w := thousands(b, false)
	for b.Loop() {
		if _, err := w.open().load(b.Context(), etcdMain, depth{tail: true, since: w.clock.now()}); err != nil {
			b.Fatal(err)
		}
	}
}
