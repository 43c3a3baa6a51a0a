package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/kit"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/storage"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

// healthy is a machine on which nothing is wrong but the missing protection.
func healthy(t *testing.T, store storage.Store) Options {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "etc/kubernetes"), 0o755); err != nil {
		t.Fatal(err)
	}
	k, err := kit.Create(kit.Options{
		Cluster: "prod", Node: "cp1", Stores: []string{"file:///nowhere"}, Out: filepath.Join(dir, "keys"), HostRoot: root,
		Endpoints: []string{"http://127.0.0.1:1"}, StateDir: filepath.Join(dir, "state"), Now: time.Now(), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(k.IdentityPath, filepath.Join(dir, "recovery.key")); err != nil {
		t.Fatal(err)
	}
	k.Config.Etcd = nil
	return Options{
		Config: k.Config, ConfigDir: filepath.Dir(k.ConfigPath), Now: time.Now, Rand: rand.Reader,
		OpenStore: func(context.Context, config.Store) (storage.Store, error) { return store, nil },
		Report:    func(Finding) {},
	}
}

func find(findings []Finding, check string) Finding {
	for _, f := range findings {
		if f.Check == check && f.Level != OK {
			return f
		}
	}
	for _, f := range findings {
		if f.Check == check {
			return f
		}
	}
	return Finding{Message: fmt.Sprintf("no finding %q among %v", check, findings)}
}

func TestAHealthyMachineHasNoProblem(t *testing.T) {
	opts := healthy(t, memory.New())
	member, err := etcdtest.StartEmbedded(filepath.Join(t.TempDir(), "etcd"), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	opts.Config.Etcd = []config.Etcd{{Name: "main", Endpoints: []string{member.Endpoint}}}
	var reported []Finding
	opts.Report = func(f Finding) { reported = append(reported, f) }
	findings := Run(t.Context(), opts)
	for _, f := range findings {
		if f.Level == Problem {
			t.Errorf("problem: %+v", f)
		}
		if f.Level != OK && f.Remedy == "" {
			t.Errorf("no remedy: %+v", f)
		}
	}
	if f := find(findings, "etcd main"); f.Level != OK || !strings.Contains(f.Message, "1 of 1 member") {
		t.Errorf("etcd: %+v", f)
	}
	if len(reported) != len(findings) {
		t.Errorf("%d findings were reported, %d returned", len(reported), len(findings))
	}
}

func TestEveryIllIsFoundWithARemedy(t *testing.T) {
	const store = "store file:///nowhere"
	for name, test := range map[string]struct {
		change func(*testing.T, *Options)
		store  storage.Store
		check  string
		level  Level
		says   string
	}{
		"the trust file is missing": {
			change: func(_ *testing.T, o *Options) { o.Config.Signing.TrustFile += "x" },
			check:  "trust", level: Problem, says: "no such file",
		},
		"the trust file is another cluster's": {
			change: func(_ *testing.T, o *Options) { o.Config.Cluster = "other" },
			check:  "trust", level: Problem, says: "other",
		},
		"the signing key is not trusted": {
			change: func(t *testing.T, o *Options) {
				o.Config.Signing.KeyFile = healthy(t, memory.New()).Config.Signing.KeyFile
			},
			check: "signing key", level: Problem, says: "not in the trust file",
		},
		"the signing key is readable by all": {
			change: func(t *testing.T, o *Options) {
				if err := os.Chmod(o.Config.Signing.KeyFile, 0o644); err != nil {
					t.Fatal(err)
				}
			},
			check: "signing key", level: Warning, says: "mode",
		},
		"a recipient is nonsense": {
			change: func(_ *testing.T, o *Options) { o.Config.Recipients = []string{"age1nonsense"} },
			check:  "recipients", level: Problem,
		},
		"the recovery key is still there": {
			change: func(t *testing.T, o *Options) {
				if err := os.WriteFile(filepath.Join(o.ConfigDir, "recovery.key"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			check: "recipients", level: Warning, says: "still here",
		},
		"etcd does not answer": {
			change: func(_ *testing.T, o *Options) {
				o.Config.Etcd = []config.Etcd{{Name: "main", Endpoints: []string{"http://127.0.0.1:1"}}}
			},
			check: "etcd main", level: Problem, says: "refused",
		},
		"no etcd is configured": {check: "etcd", level: Warning},
		"the host's root is missing": {
			change: func(_ *testing.T, o *Options) { o.Config.Host.Root = "/does/not/exist" },
			check:  "host files", level: Problem,
		},
		"not root": {
			change: func(_ *testing.T, o *Options) { o.UID = 1000 },
			check:  "host files", level: Warning, says: "not root",
		},
		"scratch can't be made": {
			change: func(_ *testing.T, o *Options) { o.Config.StateDir = "/dev/null" },
			check:  "scratch", level: Problem,
		},
		"the store can't be opened": {
			change: func(_ *testing.T, o *Options) {
				o.OpenStore = func(context.Context, config.Store) (storage.Store, error) { return nil, errors.New("no such bucket") }
			},
			check: store, level: Problem, says: "no such bucket",
		},
		"too few stores work": {
			store: refusing{memory.New()}, check: "stores", level: Problem, says: "0 of 1",
		},
		"the store refuses writes": {
			store: refusing{memory.New()}, check: store, level: Problem, says: "reading only",
		},
		"the store overwrites in conditional creates": {
			store: overwriting{memory.New()}, check: store, level: Problem, says: "conditional create replaced",
		},
		"the store's clock is off a little": {
			store: memory.New(memory.WithClock(func() time.Time { return time.Now().Add(-time.Minute) })),
			check: store + " clock", level: Warning, says: "differs by -",
		},
		"the store's clock is far off": {
			store: memory.New(memory.WithClock(func() time.Time { return time.Now().Add(2 * time.Hour) })),
			check: store + " clock", level: Problem, says: "2h",
		},
		"nothing protects the store": {check: store + " protection", level: Warning, says: "none"},
		"the store changes bytes":    {store: changing{memory.New()}, check: store, level: Problem, says: "not what was written"},
		"the store forgets to list":  {store: forgetful{memory.New()}, check: store, level: Problem, says: "not listed"},
		"a versioned store":          {store: memory.New(memory.WithVersioning()), check: store + " protection", level: OK, says: "versioned"},
		"a store with Object Lock": {
			change: func(_ *testing.T, o *Options) {
				o.Config.Stores[0].S3.ObjectLock = config.ObjectLock{Mode: "compliance", Days: 30}
			},
			store: memory.New(memory.WithVersioning()), check: store + " protection", level: OK, says: "Object Lock, compliance, 30 days",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if test.store == nil {
				test.store = memory.New()
			}
			opts := healthy(t, test.store)
			if test.change != nil {
				test.change(t, &opts)
			}
			f := find(Run(t.Context(), opts), test.check)
			if f.Level != test.level || !strings.Contains(f.Message, test.says) || (f.Level != OK && f.Remedy == "") {
				t.Errorf("got %+v, want %s %q with a remedy", f, test.level, test.says)
			}
		})
	}
}

func TestNothingIsLeftInTheStore(t *testing.T) {
	for name, store := range map[string]storage.Store{
		"a good one": memory.New(), "one that changes bytes": changing{memory.New()},
		"one that does not answer": unanswered{memory.New()},
	} {
		opts := healthy(t, store)
		Run(t.Context(), opts)
		for info, err := range store.List(t.Context(), "") {
			t.Errorf("%s: left behind: %s %v", name, info.Name, err)
		}
	}
}

// refusing is a store that lets nothing be written.
type refusing struct{ *memory.Store }

func (refusing) Put(_ context.Context, name string, _ io.Reader, _ storage.PutOptions) error {
	return fmt.Errorf("put %s: %w: for reading only", name, storage.ErrPermission)
}

// overwriting is a store that does not know conditional creates.
type overwriting struct{ *memory.Store }

func (s overwriting) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	opts.IfAbsent = false
	return s.Store.Put(ctx, name, r, opts)
}

// changing returns other bytes than it was given.
type changing struct{ *memory.Store }

func (s changing) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	r, info, err := s.Store.Open(ctx, name, rng)
	if err != nil {
		return nil, info, err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	return io.NopCloser(bytes.NewReader(bytes.ToUpper(text))), info, err
}

// forgetful does not list what it has, but for a look at everything.
type forgetful struct{ *memory.Store }

func (s forgetful) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	if prefix != "" {
		return func(func(storage.Info, error) bool) {}
	}
	return s.Store.List(ctx, prefix)
}

// unanswered takes an object and then says that it does not know.
type unanswered struct{ *memory.Store }

func (s unanswered) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	return errors.Join(s.Store.Put(ctx, name, r, opts), errors.New("no answer"))
}

// hanging lists nothing and deletes nothing, for as long as it may.
type hanging struct {
	*memory.Store
	deadline chan bool // whether a deletion had one
}

func (s hanging) List(context.Context, string) iter.Seq2[storage.Info, error] {
	return func(func(storage.Info, error) bool) {}
}

func (s hanging) Delete(ctx context.Context, _ string) error {
	_, has := ctx.Deadline()
	s.deadline <- has
	return errors.New("no answer")
}

func TestCleaningUpHasADeadlineOfItsOwn(t *testing.T) {
	store := hanging{memory.New(), make(chan bool, 1)}
	Run(t.Context(), healthy(t, store))
	select {
	case has := <-store.deadline:
		if !has {
			t.Error("the clean-up may hang for ever")
		}
	default:
		t.Error("nothing was cleaned up")
	}
}

// deaf answers nothing before it is told to stop. What it was sent may be there.
type deaf struct{ *memory.Store }

func (s deaf) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	if err := s.Store.Put(ctx, name, r, opts); err != nil {
		return err
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (s deaf) Delete(ctx context.Context, _ string) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func TestAnInterruptIsAnsweredThoughAStoreDoesNotAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		after time.Duration
		finds int
	}{
		"while it is tried":   {5 * time.Second, 0},
		"while it is cleaned": {storeTimeout + 3*time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			opts := healthy(t, deaf{memory.New()})
			opts.Config.Stores = append(opts.Config.Stores, opts.Config.Stores[0])
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				interrupted := time.Now().Add(test.after)
				time.AfterFunc(test.after, cancel)
				findings := Run(ctx, opts)
				if late := time.Since(interrupted); late < 0 || late > 1500*time.Millisecond {
					t.Errorf("it ended %s after the interrupt", late)
				}
				found := 0
				for _, f := range findings {
					if strings.HasPrefix(f.Check, "store") {
						found++
					}
				}
				if found != test.finds {
					t.Errorf("what was interrupted is no finding: %+v", findings)
				}
			})
		})
	}
}

// counting counts what is written.
type counting struct {
	*memory.Store
	puts int
}

func (c *counting) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	c.puts++
	return c.Store.Put(ctx, name, r, opts)
}

func TestNothingIsWrittenToAStoreThatIsNotTheOneKnown(t *testing.T) {
	for _, gone := range []error{errors.New("is it mounted?"), nil} {
		store := &counting{Store: memory.New()}
		opts := healthy(t, store)
		opts.Vanished = func(context.Context, config.Store, storage.Store) error { return gone }
		f := find(Run(t.Context(), opts), "store file:///nowhere")
		if gone == nil {
			if f.Level != OK || store.puts == 0 {
				t.Errorf("a store that is the one known: %+v, %d puts", f, store.puts)
			}
			continue
		}
		if f.Level != Problem || f.Message != gone.Error() || f.Remedy == "" || store.puts != 0 {
			t.Errorf("%+v, %d puts", f, store.puts)
		}
	}
}

func TestAKeyThatNoBackupHoldsIsAProblem(t *testing.T) {
	use := manifest.KeyUse{Provider: "aescbc", Key: "one", Objects: 3, Example: "/registry/secrets/a/b"}
	for name, c := range map[string]struct {
		keys  int
		fulls int
		gaps  []repository.KeyGap
		err   error
		level Level
		says  string
	}{
		"all keys are there": {keys: 2, fulls: 1, level: OK, says: "every key"},
		"there is no full":   {level: OK, says: "no full backup"},
		"nothing encrypted":  {fulls: 1, level: OK, says: "no value in the newest full backups is encrypted"},
		"nobody has one":     {keys: 1, fulls: 1, gaps: []repository.KeyGap{{Chain: "etcd/main", Use: use, Lacking: []string{"cp1"}}}, level: Problem, says: "/registry/secrets/a/b"},
		"a node is behind":   {keys: 1, fulls: 1, gaps: []repository.KeyGap{{Chain: "etcd/main", Use: use, Held: []string{"cp1"}, Lacking: []string{"cp2"}}}, level: Warning, says: "cp2"},
		"it can't be read":   {err: errors.New("no answer"), level: Warning, says: "no answer"},
	} {
		opts := healthy(t, memory.New())
		opts.KeyCoverage = func(context.Context, config.Store, storage.Store) (repository.KeyCoverage, error) {
			return repository.KeyCoverage{Fulls: c.fulls, Keys: c.keys, Gaps: c.gaps}, c.err
		}
		f := find(Run(t.Context(), opts), "store file:///nowhere encryption keys")
		if f.Level != c.level || !strings.Contains(f.Message, c.says) || (f.Level != OK) != (f.Remedy != "") {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestTheRemedyFitsTheStore(t *testing.T) {
	for _, c := range []struct {
		url  string
		err  error
		want string
	}{
		{"file:///nowhere", storage.ErrFull, "make room"},
		{"s3://b/p", storage.ErrFull, "make room"},
		{"file:///nowhere", storage.ErrPermission, "the folder's owner"},
		{"s3://b/p", storage.ErrPermission, "credentials"},
	} {
		store := fault.New(memory.New())
		store.FailOn(fault.Put, 1, fault.Before, c.err)
		opts := healthy(t, store)
		opts.Config.Stores[0].URL = c.url
		f := find(Run(t.Context(), opts), "store "+c.url)
		if f.Level != Problem || !strings.Contains(f.Message, c.err.Error()) || !strings.Contains(f.Remedy, c.want) {
			t.Errorf("%s, %v: %+v", c.url, c.err, f)
		}
	}
}
