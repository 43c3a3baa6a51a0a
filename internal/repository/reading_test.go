package repository

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
	"lifeboat/storage/memory"
)

// opener is a store whose Open a test replaces.
type opener struct {
	storage.Store
	open func(name string, body io.ReadCloser, info storage.Info) (io.ReadCloser, storage.Info)
}

func (o opener) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	body, info, err := o.Store.Open(ctx, name, rng)
	if err == nil {
		body, info = o.open(name, body, info)
	}
	return body, info, err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// counted counts what is read through it.
type counted struct {
	io.Reader
	n *int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	*c.n += int64(n)
	return n, err
}

func (counted) Close() error { return nil }

func TestJunkOfAnyLengthIsReadOnceAndInItsBeginningOnly(t *testing.T) {
	const limit = manifest.MaxNoteSize + 1
	w := newWorld(t, nil)
	w.full(w.open())
	junk := w.stored(w.open(), etcdMain, 2)
	set(t, w.store, junk, []byte("junk"))
	opens, read := 0, int64(0)
	endless := opener{w.store, func(name string, body io.ReadCloser, info storage.Info) (io.ReadCloser, storage.Info) {
		if name != junk {
			return body, info
		}
		opens++
		info.Size = 1 << 40
		return counted{io.LimitReader(zeros{}, info.Size), &read}, info
	}}
	v, err := on(w.open(), endless).Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, v.Problems, junk, Damaged)
	if opens != 1 || read > limit {
		t.Errorf("opened %d times, %d bytes read", opens, read)
	}
	c := w.full(on(w.open(), endless))
	want := sha256.New()
	if _, err := io.CopyN(want, zeros{}, limit); err != nil {
		t.Fatal(err)
	}
	if s := c.Manifest.Skipped; c.Sequence != 3 || len(s) != 1 || s[0].SHA256 != manifest.Hash(want.Sum(nil)) {
		t.Errorf("committed %d, skipped %v", c.Sequence, s)
	}
	w.clean(on(w.open(), endless))
}

func TestManyChainsTogetherKeepOneBudgetOfBytes(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 4 {
		w.backup(w.open(), manifest.Chain(fmt.Sprintf("hosts/cp%d", i)), manifest.KindFiles)
	}
	var mu sync.Mutex
	reading, most := 0, 0
	heavy := opener{w.store, func(name string, body io.ReadCloser, info storage.Info) (io.ReadCloser, storage.Info) {
		info.Size = budget/2 + 1
		first := true
		return struct {
			io.Reader
			io.Closer
		}{readerFunc(func(p []byte) (int, error) {
			if first {
				first = false
				mu.Lock()
				reading++
				most = max(most, reading)
				mu.Unlock()
				time.Sleep(5 * time.Millisecond)
			}
			n, err := body.Read(p)
			if err != nil {
				mu.Lock()
				reading--
				mu.Unlock()
			}
			return n, err
		}), body}, info
	}}
	backups, _, err := on(w.open(), heavy).Backups(t.Context())
	if err != nil || len(backups) != 4 || most != 1 {
		t.Errorf("%d backups, %v; %d large manifests in memory at once", len(backups), err, most)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAManifestOfANewerFormatCountsOnlyInItsPlace(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	c := w.full(r)
	w.full(r)
	text, err := c.Manifest.Text()
	if err != nil {
		t.Fatal(err)
	}
	limited := w.limited(manifest.KindProof)
	for name, test := range map[string]struct {
		signer *manifest.Signer
		edit   []string // from, to
		want   Kind
	}{
		"in its place":         {w.signer, []string{`:1,"previous`, `:3,"previous`}, NewerFormat},
		"in another place":     {w.signer, []string{`:1,"previous`, `:4,"previous`}, Misplaced},
		"of another chain":     {w.signer, []string{`:1,"previous`, `:3,"previous`, `"chain":"etcd/main"`, `"chain":"etcd/other"`}, Misplaced},
		"of another cluster":   {w.signer, []string{`:1,"previous`, `:3,"previous`, testCluster, "prod-eu1-aaaaaaaa"}, Misplaced},
		"by a key for another": {limited, []string{`:1,"previous`, `:3,"previous`}, Unsigned},
	} {
		t.Run(name, func(t *testing.T) {
			newer := strings.NewReplacer(append(test.edit, `"format":1`, `"format":2,"new":[]`)...).Replace(string(text))
			private := test.signer.PrivateText()
			key, err := note.NewSigner(strings.TrimSpace(private[strings.Index(private, "PRIVATE+KEY"):]))
			if err != nil {
				t.Fatal(err)
			}
			signed, err := note.Sign(&note.Note{Text: newer}, key)
			if err != nil {
				t.Fatal(err)
			}
			object := w.stored(r, etcdMain, 3)
			set(t, w.store, object, signed)
			wantProblem(t, w.failures(w.open()), object, test.want)
			m, data := w.draft(etcdMain, manifest.KindFull)
			if err := put(t.Context(), r, m, data); err != nil {
				t.Fatal(err)
			}
			if _, err := w.open().Commit(t.Context(), m); (err != nil) != (test.want == NewerFormat) {
				t.Errorf("commit: %v", err)
			}
			for _, name := range names(t, w.store, testCluster+"/etcd/main/manifests/")[2:] {
				remove(t, w.store, name)
			}
		})
	}
}

// versions counts the versions that are opened.
type versions struct {
	*memory.Store
	opened *int
}

func (v versions) OpenVersion(ctx context.Context, version storage.Version) (io.ReadCloser, storage.Info, error) {
	*v.opened++
	return v.Store.OpenVersion(ctx, version)
}

func TestTheGenuineVersionOfAnObjectIsTriedFirst(t *testing.T) {
	w := newWorld(t, nil)
	kept := memory.New(memory.WithClock(w.clock.now), memory.WithVersioning())
	w.store = kept
	c := w.full(w.open())
	o := c.Manifest.Objects[0]
	want := get(t, kept, w.open().stored(o.Name))
	for i := range 20 { // each of the right size, so that only reading tells
		set(t, kept, w.open().stored(o.Name), bytes.Repeat([]byte{byte(i)}, len(want)))
	}
	opened := 0
	body, err := on(w.open(), versions{kept, &opened}).OpenObject(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, want) || opened != 2 { // once to see, once to serve
		t.Errorf("%d versions opened: %q, %v", opened, got, err)
	}
}

func TestTheIndexIsCutOutOfAVouchedTextAndNothingElse(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.fulls(r, 2)
	c := w.full(r, func(m *manifest.Manifest) {
		m.Recipients = []string{`a,"index":[1]`, "b]"}
		m.Degraded = []string{`,"index":[`}
	})
	with, err := c.Manifest.Text()
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(with)
	m := *c.Manifest
	m.Index = nil
	without, err := m.Text()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Manifest.Index) != 2 || !bytes.Equal(withoutIndex(with), without) || !bytes.Equal(withoutIndex(without), without) || !bytes.Equal(with, before) {
		t.Errorf("got %s", withoutIndex(with))
	}
}
