package restore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
	"lifeboat/storage"
)

var putOptions storage.PutOptions

func TestAPlanPrintsWhatItWillDoAndThenDoesIt(t *testing.T) {
	f := newFixture(t)
	m := f.full(t, snapshotFile(t), nil)
	dataDir := filepath.Join(t.TempDir(), "etcd")
	var asides []string
	for i, want := range [][]string{
		{"Restore backup " + string(m.ID), " 1. Fetch", " 2. Check", " 3. Make it", "Revision bump 1000000000", " 4. Put the new member in place", "does not exist yet"},
		{"is moved to", "Nothing is deleted"},
	} {
		plan, err := PlanEtcd(t.Context(), f.repo, f.etcdOptions(dataDir))
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := plan.Print(&text); err != nil {
			t.Fatal(err)
		}
		for _, s := range want {
			if !strings.Contains(text.String(), s) {
				t.Errorf("plan %d lacks %q:\n%s", i, s, text.String())
			}
		}
		var stages []string
		if err := plan.Execute(t.Context(), func(e events.Event) {
			if done, ok := e.(events.StageDone); ok {
				stages = append(stages, done.Stage)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(stages, []string{"fetch", "check", "edit", "install"}) {
			t.Errorf("stages %v", stages)
		}
		if got := plan.Result; got.Last != int64(m.Etcd.Revision) || got.Revision != got.Last+minBump {
			t.Errorf("result %+v", got)
		}
		asides = append(asides, plan.Result.Aside)
	}
	if asides[0] != "" || asides[1] == "" {
		t.Errorf("old members are in %q", asides)
	}
	facts, err := snapdb.Inspect(t.Context(), filepath.Join(dataDir, "member/snap/db"), snapdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if facts.Revision != int64(m.Etcd.Revision)+minBump || facts.ScheduledCompact != facts.Revision {
		t.Errorf("revision %d, compaction at %d", facts.Revision, facts.ScheduledCompact)
	}
}

func TestARestoreThatFailsLeavesTheDataDirectoryAlone(t *testing.T) {
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	snapshot := snapshotFile(t)
	tests := []struct {
		name     string
		manifest func(*manifest.Manifest)
		damage   func([]byte) []byte
		opts     func(*EtcdOptions)
		want     error
		planned  bool // the plan already says no
	}{
		{name: "a wrong identity", opts: func(o *EtcdOptions) { o.Identities = []age.Identity{stranger} }, want: seal.ErrNoIdentity, planned: true},
		{name: "an older target", opts: func(o *EtcdOptions) { o.TargetVersion = "3.6.5-0" }, want: ErrRefused, planned: true},
		{name: "a target that is no version", opts: func(o *EtcdOptions) { o.TargetVersion = "latest" }, planned: true},
		{name: "a manifest that hides how new the snapshot is", manifest: func(m *manifest.Manifest) {
			m.Etcd.StorageVersion, m.Etcd.ClusterVersion = "3.6.0", "3.6.0"
		}, opts: func(o *EtcdOptions) { o.TargetVersion = "3.6" }, want: ErrRefused},
		{name: "another HashKV than the manifest's", manifest: func(m *manifest.Manifest) { m.Etcd.HashKV++ }, want: repository.ErrVerification},
		{name: "another revision than the manifest's", manifest: func(m *manifest.Manifest) { m.Etcd.Revision-- }, want: repository.ErrVerification},
		{name: "no HashKV, and not marked unproved", manifest: func(m *manifest.Manifest) { m.Etcd.HashKV = 0 }, want: repository.ErrVerification},
		{name: "a flipped bit at the end of the stored object", damage: func(b []byte) []byte { b[len(b)-9] ^= 4; return b }, want: repository.ErrVerification},
		{name: "a flipped bit in its middle", damage: func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, want: repository.ErrVerification},
		{name: "a stored object cut short", damage: func(b []byte) []byte { return b[:len(b)-100] }, want: repository.ErrVerification, planned: true},
		{name: "a point before all backups", opts: func(o *EtcdOptions) { o.Point = repository.Point{Time: time.Unix(1, 0)} }, want: repository.ErrNothing, planned: true},
		{name: "a chain that is empty", opts: func(o *EtcdOptions) { o.Chain = "etcd/events" }, want: repository.ErrNothing, planned: true},
		{name: "a member that the cluster lacks", opts: func(o *EtcdOptions) { o.InitialCluster = "x=http://127.0.0.1:1" }, want: datadir.ErrInvalid, planned: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			m := f.full(t, snapshot, tt.manifest)
			if tt.damage != nil {
				f.overwrite(t, m, tt.damage)
			}
			dataDir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dataDir, "member", "snap"), 0o700); err != nil {
				t.Fatal(err)
			}
			opts := f.etcdOptions(dataDir)
			if tt.opts != nil {
				tt.opts(&opts)
			}
			plan, err := PlanEtcd(t.Context(), f.repo, opts)
			if tt.planned != (err != nil) {
				t.Fatalf("planning: %v", err)
			}
			if err == nil {
				err = plan.Execute(t.Context(), nil)
			}
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if text := fmt.Sprint(err); strings.Contains(text, "AGE-SECRET-KEY") {
				t.Errorf("a secret in %q", text)
			}
			entries, _ := os.ReadDir(dataDir)
			if len(entries) != 1 || entries[0].Name() != "member" {
				t.Errorf("the data directory holds %v", entries)
			}
		})
	}
}

func TestAPlanCanBeInterruptedAtEveryStep(t *testing.T) {
	f := newFixture(t)
	f.full(t, snapshotFile(t), nil)
	for _, stage := range []string{"fetch", "check", "edit", "install"} {
		t.Run("at "+stage, func(t *testing.T) {
			dataDir := filepath.Join(t.TempDir(), "etcd")
			plan, err := PlanEtcd(t.Context(), f.repo, f.etcdOptions(dataDir))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err = plan.Execute(ctx, func(e events.Event) {
				if s, ok := e.(events.StageStarted); ok && s.Stage == stage {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if _, err := os.Stat(dataDir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("leftovers in the data directory: %v", err)
			}
		})
	}
}

func TestThePlanSaysWhatLooksWrong(t *testing.T) {
	f := newFixture(t)
	late := f.now.Add(time.Hour)
	old := f.full(t, snapshotFile(t), func(m *manifest.Manifest) {
		m.Degraded, m.Unproved = []string{"no quorum"}, []string{"only one of three members could be compared"}
		m.Etcd.Members = append(m.Etcd.Members,
			manifest.Member{ID: 3, Name: "m1", PeerURLs: []string{"http://10.0.0.2:2380"}},
			manifest.Member{ID: 4, Name: "l0", PeerURLs: []string{"http://10.0.0.3:2380"}, Learner: true})
		m.Etcd.Alarms = []string{"NOSPACE"}
	})
	f.full(t, snapshotFile(t), func(m *manifest.Manifest) { m.NextExpectedBy = &late; m.Etcd.Rate = 1_000_000 })
	f.now = f.now.Add(3 * time.Hour)
	zero := uint64(0)
	opts := f.etcdOptions(t.TempDir())
	opts.Point, opts.Bump = repository.Point{Backup: old.ID}, &zero
	opts.InitialCluster = "m0=http://127.0.0.1:2380,m1=http://10.0.0.2:2380"
	plan, err := PlanEtcd(t.Context(), f.repo, opts)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := plan.Print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"no quorum", "only one of three", "NOSPACE", "not the newest", "expected by", "without a revision bump",
		"l0 was a learner", "--initial-cluster " + opts.InitialCluster, "--token " + plan.Token, "--bump 0", "m1=http://10.0.0.2:2380"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the plan lacks %q:\n%s", want, text.String())
		}
	}
	opts.Bump = nil
	plan, err = PlanEtcd(t.Context(), f.repo, opts)
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(10 * 1_000_000 * 3 * 3600); plan.Bump != want {
		t.Errorf("bump %d, want %d: ten times the rate since the head", plan.Bump, want)
	}
}

// routeOf is the route that is a full alone.
func routeOf(m *manifest.Manifest) *repository.Route {
	return &repository.Route{
		Base: repository.Backup{Manifest: m}, Epoch: m.Epoch, Revision: m.Etcd.Revision, At: m.Created,
		After: repository.After{Revision: m.Etcd.Revision, Until: m.Created, Epoch: m.Epoch},
	}
}

func TestTheDefaultBump(t *testing.T) {
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	full := func(age time.Duration, revision manifest.Revision, rate float64, epoch uint64) *manifest.Manifest {
		return &manifest.Manifest{Created: at.Add(-age), Epoch: epoch, Etcd: &manifest.Etcd{Revision: revision, Rate: rate}}
	}
	tests := []struct {
		name        string
		point, head *manifest.Manifest
		want        uint64
	}{
		{"a quiet cluster", full(time.Hour, 100, 1, 1), full(time.Hour, 100, 1, 1), 1_000_000_000},
		{"a busy cluster", full(time.Hour, 100, 100_000, 1), full(time.Hour, 100, 100_000, 1), 3_600_000_000},
		{"an old point of a chain that went on", full(240*time.Hour, 100, 100, 1), full(time.Hour, 5_000_000_100, 100, 1), 6_000_000_000},
		{"a head of another history says nothing of revisions", full(240*time.Hour, 100, 0, 1), full(time.Hour, 5_000_000_100, 0, 2), 1_000_000_000},
		{"a clock before the backup", full(-time.Hour, 100, 1e9, 1), nil, 1_000_000_000},
		{"a rate beyond all bounds", full(time.Hour, 100, 1e300, 1), nil, 1 << 62},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := defaultBump(placeOf(routeOf(tt.point)), tipOf(routeOf(tt.point), tt.head), at); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}

func TestTargetVersions(t *testing.T) {
	tests := []struct {
		target, storage, cluster, server string
		refused, invalid                 bool
	}{
		{target: "", storage: "3.7.0"},
		{target: "3.7.3", storage: "3.7.0", cluster: "3.7.0"},
		{target: "v3.8.0-rc.1", storage: "3.7.0"},
		{target: "3.6.5-0", storage: "3.7.0", refused: true},
		{target: "3.6", storage: "3.6.0", cluster: "3.7.0", refused: true},
		{target: "3.6.1", storage: "3.6.0", cluster: "3.6.0", server: "3.7.3"}, // a half-finished upgrade
		{target: "3.5.24", server: "3.6.1", refused: true},
		{target: "3.5.24", storage: "3.5.0", server: "3.5.1"},
		{target: "2.3.8", storage: "3.5.0", refused: true},
		{target: "4.0.0", storage: "3.5.0"},
		{target: "3.5.24"},
		{target: "three", invalid: true},
		{target: "3.5", storage: "x", invalid: true},
	}
	for _, tt := range tests {
		err := checkTarget(tt.target, "Do this.", tt.storage, tt.cluster, tt.server)
		if tt.refused && !strings.HasSuffix(err.Error(), "downgrades it. Do this.") {
			t.Errorf("%+v: nothing to do is said: %v", tt, err)
		}
		if errors.Is(err, ErrRefused) != tt.refused || (err != nil) != (tt.refused || tt.invalid) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

func FuzzParseMinor(f *testing.F) {
	for _, s := range []string{"3.6.5", "v3.6", "3.6.5-0", "", "3", "99999.1", "3.5.0+git"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parseMinor(s)
		if err == nil {
			if again, err := parseMinor(v.String()); err != nil || again != v {
				t.Errorf("%q gave %v, which gave %v, %v", s, v, again, err)
			}
		}
	})
}

func TestExportedSnapshotsAreWhatEtcdutlAccepts(t *testing.T) {
	for _, version := range []string{"3.5", "3.6", "3.7"} {
		t.Run("etcd "+version, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			c := cluster.StartBinary(t, version, cluster.Options{})
			filled, err := etcdtest.Fill(t.Context(), c.Client(), etcdtest.FillOptions{Objects: 200})
			if err != nil {
				t.Fatal(err)
			}
			snapshot := filepath.Join(t.TempDir(), "etcdctl.db")
			run(t, version, "etcdctl", "--endpoints", c.Members[0].Endpoint, "snapshot", "save", snapshot)
			c.Stop(0)
			m := f.full(t, snapshot, nil)
			for _, bump := range []uint64{0, 5000} {
				out := filepath.Join(t.TempDir(), "out.db")
				opts := ExportOptions{Identities: []age.Identity{f.id}, Out: out, Bump: bump, Now: time.Now, Rand: rand.Reader}
				res, err := Export(t.Context(), f.repo, opts)
				if err != nil {
					t.Fatal(err)
				}
				if want := filled.Revision + int64(bump); res.Revision != want || res.HashKV != m.Etcd.HashKV {
					t.Errorf("revision %d (want %d), HashKV %d", res.Revision, want, res.HashKV)
				}
				if bump == 0 {
					a, _ := os.ReadFile(snapshot)
					b, _ := os.ReadFile(out)
					if !bytes.Equal(a, b) {
						t.Error("the exported file differs from the snapshot")
					}
				}
				if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 || info.Size() != res.Bytes {
					t.Errorf("%v, %v", info, err)
				}
				run(t, version, "etcdutl", "snapshot", "status", out)
				restored := filepath.Join(t.TempDir(), "data")
				run(t, version, "etcdutl", "snapshot", "restore", out, "--data-dir", restored)
				again := cluster.StartBinary(t, version, cluster.Options{DataDir: restored, Name: "default"})
				get, err := again.Client().Get(t.Context(), "/registry", withCount)
				if err != nil {
					t.Fatal(err)
				}
				if get.Header.Revision != filled.Revision+int64(bump) || get.Count != filled.Live {
					t.Errorf("bump %d: revision %d with %d keys, want %d with %d", bump, get.Header.Revision, get.Count, filled.Revision+int64(bump), filled.Live)
				}
				again.Stop(0)

				// A file that is there is not touched, unless told to.
				if _, err := Export(t.Context(), f.repo, opts); !errors.Is(err, ErrRefused) || !errors.Is(err, fs.ErrExist) {
					t.Errorf("over an existing file: %v", err)
				}
				opts.Force = true
				if _, err := Export(t.Context(), f.repo, opts); err != nil {
					t.Error(err)
				}
				if entries, _ := os.ReadDir(filepath.Dir(out)); len(entries) != 1 {
					t.Errorf("leftovers: %v", entries)
				}
			}
		})
	}
}

func run(t *testing.T, version, program string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), cluster.Binary(t, version, program), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, version, err, out)
	}
}

func TestAFailedExportLeavesNothing(t *testing.T) {
	f := newFixture(t)
	m := f.full(t, snapshotFile(t), nil)
	f.overwrite(t, m, func(b []byte) []byte { b[len(b)-50] ^= 1; return b })
	dir := t.TempDir()
	_, err := Export(t.Context(), f.repo, ExportOptions{Identities: []age.Identity{f.id}, Out: filepath.Join(dir, "out.db"), Now: time.Now, Rand: rand.Reader})
	if !errors.Is(err, repository.ErrVerification) {
		t.Errorf("error %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("leftovers: %v", entries)
	}
}

func TestEveryWayToPlaceAnExportTakesAFreeNameOnly(t *testing.T) {
	for name, place := range map[string]func(tmp, out string) error{"link": linked, "rename": renamed, "claim": claimed} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tmp, out := filepath.Join(dir, "tmp"), filepath.Join(dir, "out")
			write := func(path, text string) {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(tmp, "new")
			write(out, "old")
			if err := place(tmp, out); !errors.Is(err, fs.ErrExist) {
				t.Errorf("over a file: %v", err)
			}
			if text, _ := os.ReadFile(out); string(text) != "old" {
				t.Errorf("the old file holds %q", text)
			}
			if err := os.Remove(out); err != nil {
				t.Fatal(err)
			}
			if err := place(tmp, out); err != nil {
				t.Fatal(err)
			}
			if text, _ := os.ReadFile(out); string(text) != "new" {
				t.Errorf("the new file holds %q", text)
			}
			if _, err := os.Lstat(tmp); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the temporary file: %v", err)
			}
		})
	}
}

func TestAnExportNeedsNoHardLinks(t *testing.T) {
	before := placing
	defer func() { placing = before }()
	for n := 1; n < len(before); n++ {
		placing = slices.Clone(before)
		for i := range n { // as FAT answers a link, and an old kernel a rename that may not replace
			placing[i] = func(tmp, out string) error { return &os.LinkError{Op: "link", Old: tmp, New: out, Err: syscall.EPERM} }
		}
		dir := t.TempDir()
		tmp, out := filepath.Join(dir, "tmp"), filepath.Join(dir, "out")
		if err := os.WriteFile(tmp, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := publish(tmp, out, false); err != nil {
			t.Errorf("without the first %d ways: %v", n, err)
		}
		if text, _ := os.ReadFile(out); string(text) != "new" {
			t.Errorf("without the first %d ways: %q", n, text)
		}
		if err := os.WriteFile(tmp, []byte("newer"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := publish(tmp, out, false); !errors.Is(err, ErrRefused) {
			t.Errorf("over a file: %v", err)
		}
	}
}

func TestSizesAreInBinaryUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 19: "1.5 MiB", 2 << 30: "2.0 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

func TestThePlanSaysWhichEtcdToStart(t *testing.T) {
	for _, test := range []struct {
		target string
		known  manifest.Etcd
		want   string
	}{
		{"3.6.9", manifest.Etcd{Version: "3.6.5"}, "etcd 3.6.9 or newer of the same minor version"},
		{"", manifest.Etcd{Version: "3.6.5", StorageVersion: "3.6.0"}, "etcd 3.6.5 or newer of the same minor version"},
		{"", manifest.Etcd{StorageVersion: "3.6.0"}, "an etcd 3.6, or the version that the snapshot was made by"},
		{"", manifest.Etcd{}, "the etcd version that the snapshot was made by"},
	} {
		if got := startWith(test.target, &manifest.Manifest{Etcd: &test.known}); got != test.want {
			t.Errorf("%+v: got %q, want %q", test.known, got, test.want)
		}
	}
}
