package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/storage"
	"lifeboat/storage/local"
)

// moment is a point in a backup's life that can be seen from outside: pattern,
// below the site's folder, matches one more path than before it began.
type moment struct{ name, pattern string }

var (
	streaming = moment{"streaming to scratch", "state/scratch/*/snapshot.db"}
	storing   = moment{"writing to the store", "store/.*/*"}
	stored    = moment{"between storing and committing", "store/*/etcd/main/data/*/*"}
	committed = moment{"committed and not yet told", "store/*/etcd/main/manifests/*"}
)

func (m moment) paths(s *site) []string {
	s.t.Helper()
	paths, err := filepath.Glob(filepath.Join(s.dir, m.pattern))
	if err != nil {
		s.t.Fatal(err)
	}
	return paths
}

// signalAt starts a backup and sends it a signal at the moment, again and again
// until a process was caught there. The caller waits for the process.
func (s *site) signalAt(m moment, signal os.Signal) (cmd *exec.Cmd, errs *bytes.Buffer, path string) {
	s.t.Helper()
	for range 50 {
		before := m.paths(s)
		cmd, errs := s.process("backup", "-q", "--only", "etcd")
		if err := cmd.Start(); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = cmd.Process.Kill() }) // also of one that is stopped
		deadline := time.Now().Add(20 * time.Second)
		for time.Now().Before(deadline) {
			var news []string
			for _, path := range m.paths(s) {
				if !slices.Contains(before, path) {
					news = append(news, path)
				}
			}
			if len(news) > 0 {
				_ = cmd.Process.Signal(signal)
				return cmd, errs, news[0]
			}
			if over(cmd) {
				break
			}
			time.Sleep(50 * time.Microsecond)
		}
		if err := cmd.Wait(); err != nil {
			s.t.Fatalf("a backup that was let alone: %v\n%s", err, errs)
		}
	}
	s.t.Fatalf("no process was seen %s", m.name)
	return nil, nil, ""
}

// over reports whether the process has ended, without waiting for it.
func over(cmd *exec.Cmd) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat"))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // after the name
	return strings.HasPrefix(rest, "Z")
}

func TestAProcessKilledAtEachStageLosesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run(exitDone, "backup", "-q", "--config", s.config)
	for _, m := range []moment{streaming, storing, stored, committed} {
		t.Run(m.name, func(t *testing.T) {
			s := s.in(t)
			for range 3 {
				before := s.ids("etcd/main")
				cmd, _, _ := s.signalAt(m, syscall.SIGKILL)
				err := cmd.Wait()
				after := s.ids("etcd/main")
				if slices.Contains(after, "") || len(after) > len(before)+1 || !slices.Equal(after[len(after)-len(before):], before) {
					t.Fatalf("listed before: %v, after: %v", before, after)
				}
				if (err == nil || m == committed) && len(after) != len(before)+1 {
					t.Errorf("the manifest was there, and the backup is not listed: %v, the process ended with %v", after, err)
				}
				s.sound()
				s.run(exitDone, "backup", "-q", "--config", s.config)
				s.clean()
				s.sound()
			}
		})
	}
}

// in is the site as a subtest sees it.
func (s *site) in(t *testing.T) *site {
	sub := *s
	sub.t = t
	return &sub
}

func TestAProcessInterruptedAtEachStageCleansUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, m := range []moment{streaming, storing, stored} {
		t.Run(m.name, func(t *testing.T) {
			s := s.in(t)
			for try := 1; ; try++ {
				before := len(s.ids("etcd/main"))
				cmd, errs, _ := s.signalAt(m, os.Interrupt)
				err := cmd.Wait()
				s.clean()
				s.sound()
				if err == nil { // it was just done
					if len(s.ids("etcd/main")) == before {
						t.Fatal("it said that it was done, and nothing is there")
					}
					if try < 20 {
						continue
					}
				}
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != exitCanceled {
					t.Errorf("it ended with %v, want exit code %d\n%s", err, exitCanceled, errs)
				}
				return
			}
		})
	}
}

// TestAProcessStoppedAcrossAPruneGivesUp stops a writer between its data
// objects and its commit. A prune, made hours later by its own clock, takes the
// objects for garbage and names the writer's id. When the writer goes on it
// must not commit what a sweep is going to delete.
func TestAProcessStoppedAcrossAPruneGivesUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run(exitDone, "backup", "-q", "--config", s.config)
	for {
		before := s.ids("etcd/main")
		cmd, errs, object := s.signalAt(stored, syscall.SIGSTOP)
		if !stopped(cmd) || len(s.ids("etcd/main")) != len(before) { // too late: it has committed
			_ = cmd.Process.Signal(syscall.SIGCONT)
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, errs)
			}
			continue
		}
		id := manifest.ID(filepath.Base(filepath.Dir(object)))
		s.modified(object, -5*time.Hour) // by the store's clock, too, it is garbage
		repo := s.repository(5 * time.Hour)
		pruned, err := repo.Prune(t.Context(), "etcd/main", nil, repository.PruneOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(pruned.Dropped, id) {
			t.Fatalf("the prune drops %v, not %s", pruned.Dropped, id)
		}
		s.sound()
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
			t.Errorf("it ended with %v, want exit code %d", err, exitFailed)
		}
		if !strings.Contains(errs.String(), repository.ErrSuperseded.Error()) {
			t.Errorf("it does not say that it gave up: %s", errs)
		}
		if after := s.ids("etcd/main"); !slices.Equal(after, before) {
			t.Errorf("listed before: %v, after: %v", before, after)
		}
		s.clean()
		s.sound()
		// A sweep goes by the later of two clocks' agreement: the store's is as
		// late as its newest object.
		late := 5*time.Hour + repository.ObjectGrace + time.Hour
		readme, err := filepath.Glob(filepath.Join(s.dir, "store", "*", "README.txt"))
		if err != nil || len(readme) != 1 {
			t.Fatalf("README.txt: %v, %v", readme, err)
		}
		s.modified(readme[0], late)
		swept, err := s.repository(late).Sweep(t.Context(), repository.SweepOptions{})
		if err != nil || swept.Objects == 0 {
			t.Errorf("swept %+v, %v", swept, err)
		}
		if _, err := os.Stat(object); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the object that was given up is still there: %v", err)
		}
		s.sound()
		s.run(exitDone, "backup", "-q", "--config", s.config)
		if after := s.ids("etcd/main"); len(after) != len(before)+1 {
			t.Errorf("after the next backup: %v", after)
		}
		s.sound()
		return
	}
}

// modified sets when the store took an object, from now.
func (s *site) modified(path string, from time.Duration) {
	s.t.Helper()
	at := time.Now().Add(from)
	if err := os.Chtimes(path, at, at); err != nil {
		s.t.Fatal(err)
	}
}

// stopped waits until the process is stopped; false if it has ended.
func stopped(cmd *exec.Cmd) bool {
	for !over(cmd) {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat"))
		if _, rest, _ := strings.Cut(string(stat), ") "); err == nil && strings.HasPrefix(rest, "T") {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// repository is the site's store, opened by another of its nodes whose clock
// is ahead.
func (s *site) repository(ahead time.Duration) *repository.Repository {
	s.t.Helper()
	signer, err := session.LoadSigner(filepath.Join(s.dir, "keys/signing.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	trust, err := session.LoadTrust(filepath.Join(s.dir, "keys/trust"), "")
	if err != nil {
		s.t.Fatal(err)
	}
	store, err := local.New(filepath.Join(s.dir, "store"))
	if err != nil {
		s.t.Fatal(err)
	}
	// A store that tells its time would say that ours is wrong.
	repo, err := repository.Open(struct{ storage.Store }{store}, repository.Options{
		Trust: trust, Signer: signer, Name: "test", Now: func() time.Time { return time.Now().Add(ahead) }, Rand: rand.Reader,
		Writer: manifest.Writer{Node: "cp2", Version: "test"},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return repo
}
