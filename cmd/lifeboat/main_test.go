package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/backup"
	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
	"lifeboat/restore"
	"lifeboat/restore/datadir"
	"lifeboat/restore/files"
	"lifeboat/restore/journal"
	"lifeboat/restore/node"
	"lifeboat/restore/pki"
	"lifeboat/restore/plane"
	"lifeboat/restore/readdress"
	"lifeboat/storage"
)

func TestEveryKindOfFailureHasItsExitCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("anything"), 1},
		{storage.ErrPermission, 1},
		{storage.ErrFull, 1},
		{backup.ErrTooFewStores, 1},
		{seal.ErrNoIdentity, 1},
		{fs.ErrNotExist, 1},
		{errUsage, 2},
		{config.ErrInvalid, 2},
		{datadir.ErrInvalid, 2},
		{files.ErrInvalid, 2},
		{files.ErrNoMatch, 2},
		{repository.ErrAmbiguous, 2},
		{repository.ErrVerification, 3},
		{&repository.VerificationError{}, 3},
		{seal.ErrDamaged, 3},
		{&seal.RefusedError{}, 3},
		{files.ErrChanged, 3},
		{snapdb.ErrCorrupt, 3},
		{datadir.ErrDamaged, 3},
		{restore.ErrRefused, 4},
		{files.ErrConflict, 4},
		{files.ErrInUse, 4},
		{repository.ErrRefused, 4},
		{manifest.ErrOtherCluster, 4},
		{plane.ErrUnfinished, 4},
		{journal.ErrBusy, 4},
		{journal.ErrNewer, 4},
		{node.ErrAlive, 4},
		{&pki.AuthorityError{}, 4},
		{fmt.Errorf("%w: %w", restore.ErrRefused, plane.ErrShared), 4},
		{plane.ErrShared, 2},
		{readdress.ErrMapping, 2},
		{node.ErrByHand, 1},
		{errNothingBegun, 5},
		{repository.ErrNothing, 5},
	} {
		err := test.err
		if err != nil {
			err = errors.Join(fmt.Errorf("restore to /x: %w", err))
		}
		if got := exitCode(t.Context(), err); got != test.want {
			t.Errorf("%v: got %d, want %d", test.err, got, test.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := exitCode(ctx, context.Canceled); got != exitCanceled {
		t.Errorf("interrupted: got %d, want %d", got, exitCanceled)
	}
	if got := exitCode(ctx, nil); got != exitDone {
		t.Errorf("interrupted after all was done: got %d, want %d", got, exitDone)
	}
}

func TestAgesAndSizesAreForPeople(t *testing.T) {
	for age, want := range map[time.Duration]string{
		0: "now", 900 * time.Millisecond: "now", 59 * time.Second: "59s", 61 * time.Second: "1m 1s",
		2 * time.Hour: "2h", 26*time.Hour + 3*time.Minute: "1d 2h", -time.Minute: "in 1m",
	} {
		if got := humanAge(age); got != want {
			t.Errorf("%v: got %q, want %q", age, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1 << 20: "1.00 MiB", 1536 << 20: "1.50 GiB", 123 << 30: "123 GiB"} {
		if got := humanBytes(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

func TestEveryVerbSaysWhatItDoesWithAnExample(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		for _, child := range c.Commands() {
			if child.Short == "" {
				t.Errorf("%s has no description", child.CommandPath())
			}
			if child.Runnable() && !child.HasSubCommands() && child.Example == "" && child.Name() != "version" {
				t.Errorf("%s has no example", child.CommandPath())
			}
			visit(child)
		}
	}
	visit(newRoot(&app{}))
}

func TestWarningsGoToStandardErrorAndBarsOnlyToTerminals(t *testing.T) {
	var out, errs bytes.Buffer
	a := &app{streams: streams{in: strings.NewReader(""), out: &out, err: &errs}}
	listen := a.listener()
	listen.Emit(events.StageStarted{Stage: "snapshot", Total: 100})
	listen.Emit(events.StageProgress{Stage: "snapshot", Done: 50})
	listen.Emit(events.StageDone{Stage: "snapshot"})
	if errs.Len() > 0 {
		t.Errorf("progress without a terminal: %q", errs.String())
	}
	listen.Emit(events.Warning{Chain: "etcd/main", Subject: "member 1", Message: "is slow"})
	listen.Emit(events.StoreFailed{Store: "s3://b", Err: errors.New("no route")})
	for _, want := range []string{"is slow", "etcd/main", "s3://b", "no route"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("no %q in %q", want, errs.String())
		}
	}
	if out.Len() > 0 {
		t.Errorf("on standard output: %q", out.String())
	}
	shown := a.shown
	if a.listener(); a.shown != shown {
		t.Error("a second set of bars")
	}
	a.quiet = true
	if a.listener() != nil {
		t.Error("quiet is not silent")
	}
}

func TestOnlyYesIsConsent(t *testing.T) {
	for answer, want := range map[string]error{"y\n": nil, "YES\n": nil, "n\n": errDeclined, "\n": errDeclined, "": errDeclined, "yep\n": errDeclined} {
		a := &app{streams: streams{in: strings.NewReader(answer), err: new(bytes.Buffer)}}
		if err := a.confirm(t.Context(), confirmation{}); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", answer, err, want)
		}
	}
	if err := (&app{}).confirm(t.Context(), confirmation{yes: true}); err != nil {
		t.Errorf("--yes: %v", err)
	}
}
