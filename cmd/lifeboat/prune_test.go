package main

import (
	"bytes"
	"crypto/rand"
	mathrand "math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// keeping sets a site's retention to the newest of all and so many more.
func (s *site) keeping(minimum string) {
	s.t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	for key, value := range map[string]string{"hourly": "0", "daily": "0", "weekly": "0", "monthly": "0", "minimum": minimum, "pointInTime": "0s"} {
		text = regexp.MustCompile(`(?m)^( +`+key+`): .*$`).ReplaceAll(text, []byte("${1}: "+value))
	}
	if err := os.WriteFile(s.config, text, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// as runs a command line as a machine whose clock is off, whose person answers.
func (s *site) as(off time.Duration, answer string, args ...string) (code int, out, errs string) {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{
		streams: streams{in: strings.NewReader(answer), out: &stdout, err: &stderr}, rand: rand.Reader,
		now: func() time.Time { return time.Now().Add(off) },
	}
	root := newRoot(a)
	root.SetArgs(append(args, "--config", s.config))
	err := root.ExecuteContext(s.t.Context())
	code = exitCode(s.t.Context(), err)
	if err != nil {
		stderr.WriteString(err.Error() + "\nhint: " + hint(err, code))
	}
	return code, stdout.String(), stderr.String()
}

func TestPruneHaltsWhereTheClocksDiffer(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.keeping("1")
	for range 3 {
		s.run(exitDone, "backup", "-q", "--only", "etcd", "--config", s.config)
	}
	before := s.ids("etcd/main")
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		for _, args := range [][]string{{"prune", "--yes"}, {"prune", "--dry-run"}, {"prune", "--yes", "-o", "json"}} {
			code, _, errs := s.as(off, "", args...)
			if code != exitRefused || !strings.Contains(errs, "the clocks differ") || !strings.Contains(errs, "hint: synchronize") {
				t.Errorf("%s, %q: exit code %d, %s", off, args, code, errs)
			}
		}
	}
	if after := s.ids("etcd/main"); len(after) != len(before) {
		t.Errorf("%d backups are left of %d", len(after), len(before))
	}
	if code, out, errs := s.as(2*time.Minute, "", "prune", "--yes"); code != exitDone || !strings.Contains(out, "2 of 3 backups removed") {
		t.Errorf("clocks that nearly agree: exit code %d, %s%s", code, out, errs)
	}
}

func TestPruneAsksBeforeItRemoves(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.keeping("1")
	for range 2 {
		s.run(exitDone, "backup", "-q", "--only", "etcd", "--config", s.config)
	}
	before := s.ids("etcd/main")
	for _, answer := range []string{"", "n\n", "what?\n"} {
		code, _, errs := s.as(0, answer, "prune")
		if code != exitFailed || !strings.Contains(errs, "1 of 2 backups would go") || !strings.Contains(errs, "Go on?") {
			t.Errorf("answered %q: exit code %d, %s", answer, code, errs)
		}
	}
	if after := s.ids("etcd/main"); len(after) != 2 {
		t.Errorf("left are %v of %v", after, before)
	}
	code, out, errs := s.as(0, "y\n", "prune")
	if code != exitDone || !strings.Contains(out, "1 of 2 backups removed") || !strings.Contains(out, before[1]) {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	if code, out, errs := s.as(0, "", "prune"); code != exitDone || strings.Contains(errs, "Go on?") {
		t.Errorf("with nothing to do: exit code %d, %s%s", code, out, errs)
	}
	s.clean()
}

func TestProcessesThatPruneAndBackUpAtOnceLoseNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.keeping("2")
	s.run(exitDone, "backup", "-q", "--config", s.config)
	for range 4 {
		var running sync.WaitGroup
		process := func(kill bool, args ...string) {
			cmd, errs := s.process(append(args, "-q")...)
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			if kill {
				time.Sleep(time.Duration(mathrand.IntN(60)) * time.Millisecond)
				_ = cmd.Process.Signal(syscall.SIGKILL)
			}
			if err := cmd.Wait(); err != nil && !kill {
				t.Errorf("%q: %v\n%s", args, err, errs)
			}
		}
		for _, kill := range []bool{false, true, false} {
			running.Go(func() { process(kill, "prune", "--yes") })
		}
		running.Go(func() { process(false, "backup") })
		running.Wait()
		s.sound()
		if n := len(s.ids("etcd/main")); n < 2 || n > 3 {
			t.Errorf("%d backups are left", n)
		}
	}
}
