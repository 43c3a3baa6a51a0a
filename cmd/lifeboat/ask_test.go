package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"
)

func TestAConfirmationEndsWithTheContext(t *testing.T) {
	in, other := io.Pipe() // never answers
	defer other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	a := &app{streams: streams{in: in, err: new(bytes.Buffer)}}
	done := make(chan error, 1)
	go func() { done <- a.confirm(ctx, confirmation{}) }()
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("error %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it still waits for an answer")
	}
}

// terminal is a pseudo terminal: what a person holds, and what a program sees.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	// Blocking, so that reading needs no poller.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	person = os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { person.Close(); program.Close() })
	return person, program
}

// TestInterruptsAreHeardAtEveryPrompt types Ctrl-C at a real process's prompts.
func TestInterruptsAreHeardAtEveryPrompt(t *testing.T) {
	s := newSite(t)
	s.run(exitDone, "backup", "-q", "--config", s.config)
	locked := filepath.Join(s.dir, "locked.key")
	lockIdentity(t, s.identity, locked)
	restored := filepath.Join(s.dir, "restored")
	if err := os.Mkdir(restored, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		prompt, identity string
	}{
		"the confirmation": {"[y/N]", s.identity},
		"a passphrase":     {"assphrase", locked},
	} {
		t.Run(name, func(t *testing.T) {
			person, program := terminal(t)
			cmd, _ := s.process("restore", "files", "--identity", test.identity, "--node", "cp1", "--root", restored)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
			before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			waitFor(t, person, test.prompt)
			time.Sleep(200 * time.Millisecond) // the prompt comes before the reading
			if _, err := person.Write([]byte{3}); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case err := <-ended:
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != exitCanceled {
					t.Errorf("ended with %v, want exit code %d", err, exitCanceled)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it still asks")
			}
			after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			if *after != *before {
				t.Errorf("the terminal is left as %+v, was %+v", *after, *before)
			}
			if left, _ := os.ReadDir(restored); len(left) > 0 {
				t.Errorf("restored: %v", left)
			}
		})
	}
}

// waitFor reads what the program shows until the prompt is there.
func waitFor(t *testing.T, person *os.File, prompt string) {
	t.Helper()
	found := make(chan string, 1)
	go func() {
		var shown strings.Builder
		buf := make([]byte, 4096)
		for !strings.Contains(shown.String(), prompt) {
			n, err := person.Read(buf)
			shown.Write(buf[:n])
			if err != nil {
				break
			}
		}
		found <- shown.String()
	}()
	select {
	case shown := <-found:
		if !strings.Contains(shown, prompt) {
			t.Fatalf("no %q in %q", prompt, shown)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("no prompt %q", prompt)
	}
}

// lockIdentity writes an identity file that a passphrase opens.
func lockIdentity(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	recipient, err := age.NewScryptRecipient("hunter2")
	if err != nil {
		t.Fatal(err)
	}
	recipient.SetWorkFactor(10)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, sealed.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
