package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/etcdtest"
)

// kills is how often the process is killed.
const kills = 50

// site is an etcd, a node's files and a directory store, set up by init.
type site struct {
	t        *testing.T
	dir      string
	config   string
	identity string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	m, err := etcdtest.StartEmbedded(filepath.Join(s.dir, "etcd"), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	client, err := m.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := etcdtest.Fill(t.Context(), client, etcdtest.FillOptions{Objects: 400}); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(s.dir, "root/etc/kubernetes")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "admin.conf"), []byte("apiVersion: v1\nkind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(exitDone, "init", "--cluster", "prod", "--store", "file://"+filepath.Join(s.dir, "store"), "--out", filepath.Join(s.dir, "keys"),
		"--host-root", filepath.Join(s.dir, "root"), "--node", "cp1", "--etcd", m.Endpoint)
	s.config, s.identity = filepath.Join(s.dir, "keys/config.yaml"), filepath.Join(s.dir, "keys/recovery.key")
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "stateDir:") {
			line = "stateDir: " + s.state() + "\n"
		}
		lines = append(lines, line)
	}
	if err := os.WriteFile(s.config, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) state() string { return filepath.Join(s.dir, "state") }

// run runs lifeboat in this process and returns its standard output.
func (s *site) run(want int, args ...string) string {
	s.t.Helper()
	var out, errs bytes.Buffer
	if code := run(s.t.Context(), args, streams{in: strings.NewReader(""), out: &out, err: &errs}); code != want {
		s.t.Fatalf("lifeboat %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, out.String(), errs.String())
	}
	return out.String()
}

// process is the real program, which testscript.Main has put into PATH.
func (s *site) process(args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.Command("lifeboat", append(args, "--config", s.config)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	return cmd, &errs
}

// ids are the backups that list shows, newest first.
func (s *site) ids(chain string) []string {
	s.t.Helper()
	var list []listJSON
	if err := json.Unmarshal([]byte(s.run(exitDone, "list", "-o", "json", "--config", s.config)), &list); err != nil {
		s.t.Fatal(err)
	}
	var ids []string
	for _, b := range list {
		if string(b.Chain) == chain {
			ids = append(ids, string(b.ID))
		}
	}
	return ids
}

// sound fails the test unless everything listed verifies and the newest full
// can be restored.
func (s *site) sound() {
	s.t.Helper()
	s.run(exitDone, "verify", "--config", s.config)
	if len(s.ids("etcd/main")) == 0 {
		return
	}
	out := filepath.Join(s.dir, "exported.db")
	s.run(exitDone, "export", "--config", s.config, "--identity", s.identity, "--out", out, "--force")
	if err := os.Remove(out); err != nil {
		s.t.Fatal(err)
	}
}

// clean fails the test if a process that ended well has left something: in
// scratch, or among the store's unfinished objects, which are hidden.
func (s *site) clean() {
	s.t.Helper()
	for _, folder := range []string{filepath.Join(s.state(), "scratch"), filepath.Join(s.dir, "store")} {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			hidden := strings.Contains(strings.TrimPrefix(path, folder), "/.")
			if err == nil && !entry.IsDir() && (hidden || filepath.Base(folder) == "scratch") && !strings.HasSuffix(path, "lock") {
				s.t.Errorf("left behind: %s", path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.t.Fatal(err)
		}
	}
}

func TestAProcessKilledAtAnyMomentLosesNothingThatWasAcknowledged(t *testing.T) {
	if testing.Short() {
		t.Skip("kills 50 processes")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	moments := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t)
	took := time.Hour
	for range 3 { // the shortest, since a busy moment would choose moments when all is over
		began := time.Now()
		whole, errs := s.process("backup", "-q")
		if err := whole.Run(); err != nil {
			t.Fatalf("%v\n%s", err, errs)
		}
		took = min(took, time.Since(began))
	}
	died := 0
	for i := range kills {
		before := s.ids("etcd/main")
		cmd, errs := s.process("backup", "-q")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Evenly over a backup's time, and a little beyond.
		time.Sleep(took * time.Duration(moments.IntN(110)) / 100)
		_ = cmd.Process.Kill()
		err := cmd.Wait()
		var exit *exec.ExitError
		switch {
		case err == nil:
		case errors.As(err, &exit) && exit.ExitCode() == -1:
			died++
		default:
			t.Fatalf("kill %d: %v\n%s", i, err, errs)
		}
		after := s.ids("etcd/main")
		if len(after) < len(before) || (err == nil && len(after) == len(before)) || len(after) > len(before)+1 {
			t.Fatalf("kill %d: %d backups before, %d after, process ended with %v", i, len(before), len(after), err)
		}
		s.sound()
		s.run(exitDone, "backup", "--config", s.config) // the next one succeeds, and sweeps
		s.clean()
		if i%10 == 9 { // begin anew, so that verifying stays quick
			s.sound()
			for _, dir := range []string{filepath.Join(s.dir, "store"), s.state()} {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	t.Logf("a backup takes %v; of %d processes %d died at work", took, kills, died)
	if died < kills/5 {
		t.Errorf("only %d of %d were killed at work: the moments are badly chosen", died, kills)
	}
}

func TestTwoProcessesMayBackUpTheSameChainsAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const rounds, writers = 10, 2
	for range rounds {
		var group sync.WaitGroup
		for range writers {
			group.Go(func() {
				cmd, errs := s.process("backup", "-q")
				if err := cmd.Run(); err != nil {
					t.Errorf("%v\n%s", err, errs)
				}
			})
		}
		group.Wait()
	}
	for _, chain := range []string{"etcd/main", "hosts/cp1"} {
		if got := len(s.ids(chain)); got != rounds*writers {
			t.Errorf("%s has %d backups, want %d", chain, got, rounds*writers)
		}
	}
	s.sound()
	s.clean()
}

func TestAnInterruptedBackupCleansUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, after := range []time.Duration{20 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond} {
		cmd, errs := s.process("backup", "-q")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		_ = cmd.Process.Signal(os.Interrupt)
		err := cmd.Wait()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitCanceled && exit.ExitCode() != -1) {
			t.Errorf("after %v: %v\n%s", after, err, errs)
		}
		if exit == nil || exit.ExitCode() == exitCanceled { // -1: it had not begun to listen for signals
			s.clean()
		}
		s.sound()
	}
}
