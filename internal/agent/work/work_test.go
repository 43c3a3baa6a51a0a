package work

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/backup/etcd"
	"lifeboat/internal/agent"
	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/kit"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
	"lifeboat/storage"
)

// world is a node with files, keys and a directory store, and no etcd.
type world struct {
	t      *testing.T
	dir    string
	config *config.Config
	*Work

	opened atomic.Int64 // objects read
	hang   atomic.Bool  // the store does not answer
	freed  chan struct{}
	keeps  atomic.Bool // the store lets nobody delete

	mu    sync.Mutex
	told  []string
	now   time.Time
	ahead time.Duration // of the store's clock
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), freed: make(chan struct{}), now: time.Now()}
	if err := os.MkdirAll(filepath.Join(w.dir, "root/etc/kubernetes/pki"), 0o755); err != nil {
		t.Fatal(err)
	}
	k, err := kit.Create(kit.Options{
		Cluster: "prod", Node: "cp1", Stores: []string{"file://" + filepath.Join(w.dir, "store")}, Out: filepath.Join(w.dir, "keys"),
		HostRoot: filepath.Join(w.dir, "root"), StateDir: filepath.Join(w.dir, "state"), Now: time.Now(), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.config = k.Config
	w.Work = w.works(w.config)
	return w
}

func (w *world) works(c *config.Config) *Work {
	return New(Options{
		Config: c, Rand: rand.Reader, Version: "test", Events: w.listen,
		Now:  func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now },
		Wrap: func(_ string, s storage.Store) storage.Store { return &watched{s, w} },
	})
}

func (w *world) listen(e events.Event) {
	if e, ok := e.(events.Warning); ok {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.told = append(w.told, e.Subject+": "+e.Message)
	}
}

func (w *world) forward(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// watched counts what is read, and hangs when told to, as a dead NFS server
// does: whatever the context says.
type watched struct {
	storage.Store
	w *world
}

func (s *watched) Open(ctx context.Context, name string, r storage.Range) (io.ReadCloser, storage.Info, error) {
	s.w.opened.Add(1)
	return s.Store.Open(ctx, name, r)
}

func (s *watched) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	if s.w.hang.Load() {
		<-s.w.freed
	}
	return s.Store.List(ctx, prefix)
}

func (s *watched) Delete(ctx context.Context, name string) error {
	if s.w.keeps.Load() {
		return fmt.Errorf("delete %s: %w", name, storage.ErrPermission)
	}
	return s.Store.Delete(ctx, name)
}

func (s *watched) Now(ctx context.Context) (time.Time, error) {
	now, _, err := storage.NowOf(ctx, s.Store)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return now.Add(s.w.ahead), err
}

func (w *world) files() *agent.Outcome {
	w.t.Helper()
	o, err := w.Files(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.forward(time.Minute)
	return o
}

func (w *world) look() agent.StorePicture {
	w.t.Helper()
	p, err := w.Look(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return p.Stores[0]
}

func (w *world) only(pattern string) string {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(w.dir, "store", pattern))
	if err != nil || len(found) != 1 {
		w.t.Fatalf("%s: %q, %v", pattern, found, err)
	}
	return found[0]
}

func TestALookTellsWhatAStoreHolds(t *testing.T) {
	w := newWorld(t)
	if s := w.look(); s.Err != nil || len(s.Chains) != 0 || !s.SkewKnown {
		t.Errorf("an empty store: %+v", s)
	}
	first := w.files()
	second := w.files()
	s := w.look()
	in := s.Chains["hosts/cp1"]
	if s.Err != nil || in.Head != 2 || in.Backups != 2 || !in.Valid || in.Regressed || len(in.Failures) > 0 {
		t.Fatalf("%+v, %+v", s, in)
	}
	if !in.Newest.Equal(second.Created) || in.StoredBytes != second.StoredBytes || in.PlainBytes != second.PlainBytes || in.Previous != first.StoredBytes {
		t.Errorf("%+v, the newest is %+v after %+v", in, second, first)
	}
	if in.TotalBytes != first.StoredBytes+second.StoredBytes || !in.Late.IsZero() {
		t.Errorf("%+v", in)
	}
}

func TestALookReadsOnlyWhatChanged(t *testing.T) {
	w := newWorld(t)
	for range 5 {
		w.files()
	}
	w.look()
	read := func() int64 {
		before := w.opened.Load()
		if s := w.look(); s.Err != nil || s.Chains["hosts/cp1"].Head == 0 {
			t.Fatalf("%+v", s)
		}
		return w.opened.Load() - before
	}
	if n := read(); n != 0 {
		t.Errorf("a look at an unchanged store read %d objects", n)
	}
	w.files()
	if n := read(); n == 0 {
		t.Error("a new backup was not read")
	}
	if n := read(); n != 0 {
		t.Errorf("the look after that read %d objects", n)
	}
	w.forward(2 * time.Hour)
	if n := read(); n == 0 {
		t.Error("after hours nothing was read again")
	}
}

func TestALookSeesWhatTheClockAndThievesDo(t *testing.T) {
	w := newWorld(t)
	w.files()
	last := w.files()
	w.look()
	w.forward(24 * time.Hour)
	if in := w.look().Chains["hosts/cp1"]; in.Late.IsZero() || !in.Valid {
		t.Errorf("a day later: %+v", in)
	}
	data := w.only("*/hosts/cp1/data/" + string(last.ID) + "/*")
	if err := os.Rename(data, filepath.Join(w.dir, "aside")); err != nil {
		t.Fatal(err)
	}
	if in := w.look().Chains["hosts/cp1"]; in.Valid || len(in.Failures) != 1 || !strings.Contains(in.Failures[0], "not in the store") {
		t.Errorf("without the data: %+v", in)
	}
	if err := os.WriteFile(data, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if in := w.look().Chains["hosts/cp1"]; in.Valid || !strings.Contains(strings.Join(in.Failures, ""), "5 bytes") {
		t.Errorf("with a shorter object: %+v", in)
	}
	if err := os.Rename(filepath.Join(w.dir, "aside"), data); err != nil {
		t.Fatal(err)
	}
	if in := w.look().Chains["hosts/cp1"]; !in.Valid {
		t.Errorf("with the data back: %+v", in)
	}
	if err := os.Remove(w.only("*/hosts/cp1/manifests/*2")); err != nil {
		t.Fatal(err)
	}
	if in := w.look().Chains["hosts/cp1"]; !in.Regressed || in.Valid {
		t.Errorf("rolled back: %+v", in)
	}
	// So sees one that starts now: the machine remembers.
	w.Work = w.works(w.config)
	if in := w.look().Chains["hosts/cp1"]; !in.Regressed {
		t.Errorf("rolled back, seen after a restart: %+v", in)
	}
	if _, err := w.Verify(t.Context(), []manifest.Chain{"hosts/cp1"}); agent.ReasonOf(err) != status.Verification {
		t.Errorf("verify: %v", err)
	}
}

func TestAnEmptiedStoreIsNoEmptyStore(t *testing.T) {
	w := newWorld(t)
	w.files()
	if err := os.Rename(filepath.Join(w.dir, "store"), filepath.Join(w.dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	s := w.look()
	if in := s.Chains["hosts/cp1"]; s.Err == nil && !in.Regressed {
		t.Errorf("%+v", s)
	}
	if _, err := w.Files(t.Context()); agent.ReasonOf(err) != status.StoreDown || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("a backup into it: %v", err)
	}
}

func TestAStoreThatHangsIsLeftBehindAndNotCalledForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.files()
	w.hang.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := w.Look(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("a look that may take 200 ms took %s", took)
	}
	w.hang.Store(false)
	close(w.freed)
	for range 2000 { // the one that hung still holds what it reads
		if s := w.look(); s.Err == nil && s.Chains["hosts/cp1"].Head == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a store that came back is not read")
}

func TestPruningAndVerifyingSayWhatTheyDid(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		w.files()
	}
	o, err := w.Verify(t.Context(), []manifest.Chain{"hosts/cp1", "etcd/not-there-yet"})
	if err != nil || !strings.Contains(o.Message, "3 manifests") {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := w.Prune(t.Context()); err != nil || !strings.Contains(o.Message, "0 backups") {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestReloadRefusesKeysThatCannotBeUsed(t *testing.T) {
	w := newWorld(t)
	bad := *w.config
	bad.Signing.KeyFile = filepath.Join(w.dir, "none")
	if err := w.Reload(t.Context(), &bad); !errors.Is(err, config.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	w.files() // the old one goes on
	if err := os.Remove(w.config.Signing.KeyFile); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Files(t.Context()); agent.ReasonOf(err) != status.Config {
		t.Errorf("without the key: %v", err)
	}
}

func TestWithoutAnyStoreEtcdIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	c := *w.config
	nowhere := config.DefaultStore("file:///proc/nowhere")
	c.Stores = []config.Store{nowhere}
	c.Etcd = []config.Etcd{{Name: "main", Endpoints: []string{"http://127.0.0.1:1"}}} // asking it would be another reason
	w.Work = w.works(&c)
	if _, err := w.Full(t.Context(), "main"); agent.ReasonOf(err) != status.StoreDown {
		t.Errorf("got %v", err)
	}
	c.Stores, c.MinStores = append(slices.Clone(w.config.Stores), nowhere), 2
	w.Work = w.works(&c)
	if _, err := w.Full(t.Context(), "main"); agent.ReasonOf(err) != status.EtcdDown {
		t.Errorf("with one store of two: %v", err)
	}
	if _, err := w.Standing(t.Context(), "main"); agent.ReasonOf(err) != status.EtcdDown {
		t.Errorf("standing: %v", err)
	}
	if _, err := w.Full(t.Context(), "unknown"); agent.ReasonOf(err) != status.Config {
		t.Errorf("an unknown cluster: %v", err)
	}
}

func TestTooFewStoresAreAFailureThatLeavesABackup(t *testing.T) {
	w := newWorld(t)
	c := *w.config
	c.Stores = append(slices.Clone(c.Stores), config.DefaultStore("file:///proc/nowhere"))
	c.MinStores = 2
	w.Work = w.works(&c)
	did, err := w.Files(t.Context())
	if agent.ReasonOf(err) != status.StoreDown || did == nil || did.ID == "" || !strings.Contains(err.Error(), "in 1 of 2, at least 2 needed") {
		t.Errorf("got %+v, %v", did, err)
	}
	if in := w.look().Chains["hosts/"+manifest.Chain(c.Node)]; in.Backups != 1 || !in.Valid {
		t.Errorf("the store that answers holds %+v", in)
	}
}

func TestADamagedMemoryOfHeadsStopsNoBackup(t *testing.T) {
	w := newWorld(t)
	w.files()
	heads := filepath.Join(w.config.StateDir, "heads.json")
	if err := os.WriteFile(heads, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.files()
	if !slices.ContainsFunc(w.told, func(s string) bool { return strings.Contains(s, "move the file away") }) {
		t.Errorf("told %q", w.told)
	}
	if in := w.look().Chains["hosts/"+manifest.Chain(w.config.Node)]; in.Backups != 2 || !in.Valid {
		t.Errorf("%+v", in)
	}
	if _, err := w.Verify(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "heads.json") {
		t.Errorf("verify: %v", err)
	}
	if _, err := w.Prune(t.Context()); err == nil || !strings.Contains(err.Error(), "heads.json") {
		t.Errorf("prune: %v", err)
	}
	if data, err := os.ReadFile(heads); err != nil || len(data) != 0 {
		t.Errorf("the damaged file was replaced: %q, %v", data, err)
	}
}

func TestTheOwnMemberIsTheLocalOne(t *testing.T) {
	member := func(id manifest.EtcdID, local bool, url string) etcd.MemberState {
		return etcd.MemberState{Member: manifest.Member{ID: id, ClientURLs: []string{url}}, Local: local, Endpoint: url}
	}
	for name, test := range map[string]struct {
		members   []etcd.MemberState
		endpoints []string
		want      manifest.EtcdID
	}{
		"none is local":                    {[]etcd.MemberState{member(1, false, "https://10.0.0.1:2379")}, []string{"https://10.0.0.1:2379"}, 0},
		"the one that is":                  {[]etcd.MemberState{member(1, false, "https://a:1"), member(2, true, "https://b:1")}, []string{"https://a:1"}, 2},
		"of two the one configured first":  {[]etcd.MemberState{member(1, true, "https://a:1"), member(2, true, "https://b:1")}, []string{"https://b:1", "https://a:1"}, 2},
		"of two that no endpoint leads to": {[]etcd.MemberState{member(1, true, "https://a:1"), member(2, true, "https://b:1")}, []string{"https://c:1"}, 1},
	} {
		if got := own(&etcd.Survey{Members: test.members}, test.endpoints); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestAHostileStoreFillsNoMemoryWithFailures(t *testing.T) {
	c := &seenChain{}
	for i := range 10_000 {
		c.objects = append(c.objects, storedObject{fmt.Sprintf("object%d", i), 1})
	}
	in, lost := c.now(time.Now(), nil)
	if in.Valid || !lost || len(in.Failures) != mostFailures+1 || in.Failures[mostFailures] != "and 9900 more: `lifeboat verify` lists all" {
		t.Errorf("%v, %v, %d failures, the last %q", in.Valid, lost, len(in.Failures), in.Failures[len(in.Failures)-1])
	}
}
