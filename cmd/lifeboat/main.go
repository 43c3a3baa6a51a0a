// Command lifeboat keeps a Kubernetes control plane recoverable: it backs up
// etcd and host files, proves and verifies the backups, and restores them.
//
// One file per verb. A verb turns flags into a struct, calls the package that
// does the work, and prints the result; what goes wrong becomes an exit code
// in one place, exitCode.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/containerd"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
	"lifeboat/internal/spool"
	"lifeboat/restore"
	"lifeboat/restore/datadir"
	"lifeboat/restore/files"
	"lifeboat/restore/images"
	"lifeboat/restore/journal"
	"lifeboat/restore/node"
	"lifeboat/restore/pki"
	"lifeboat/restore/plane"
	"lifeboat/restore/readdress"
	"lifeboat/storage"
)

// Exit codes, as the README has them.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitVerify   = 3
	exitRefused  = 4
	exitNothing  = 5
	exitCanceled = 130 // 128 + SIGINT, as shells do
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	os.Exit(run(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}))
}

// streams are the standard three.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// run is the whole program but the process around it.
func run(ctx context.Context, args []string, std streams) int {
	return (&app{streams: std, now: time.Now, rand: rand.Reader}).run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := newRoot(a)
	strictCompletion(root)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	code := exitCode(ctx, err)
	if err != nil && !errors.Is(err, errReported) {
		fmt.Fprintf(a.err, "lifeboat: %v\n", err)
		if h := hint(err, code); h != "" && !(code == exitVerify && isVerify(root, args)) {
			fmt.Fprintf(a.err, "hint: %s\n", h)
		}
	}
	return code
}

// isVerify reports whether the verb is the one that a hint would name.
func isVerify(root *cobra.Command, args []string) bool {
	cmd, _, err := root.Find(args)
	return err == nil && cmd.Name() == "verify"
}

// errUsage marks mistakes in the command line.
var errUsage = errors.New("usage")

// errReported marks an error that the verb has printed itself.
var errReported = errors.New("reported")

func exitCode(ctx context.Context, err error) int {
	var refused *seal.RefusedError
	var expired *pki.AuthorityError
	switch {
	case err == nil:
		return exitDone
	case ctx.Err() != nil:
		return exitCanceled
	case isAny(err, errUsage, readdress.ErrMapping, config.ErrInvalid, datadir.ErrInvalid, files.ErrInvalid, files.ErrNoMatch, images.ErrNoImage, repository.ErrAmbiguous):
		return exitUsage
	case isAny(err, repository.ErrVerification, seal.ErrDamaged, snapdb.ErrCorrupt, datadir.ErrDamaged, files.ErrChanged), errors.As(err, &refused):
		return exitVerify
	case isAny(err, restore.ErrRefused, files.ErrConflict, files.ErrInUse, repository.ErrRefused, repository.ErrClock, repository.ErrMayNotPrune, repository.ErrMayNotRekey, repository.ErrMayNotSign, repository.ErrOrder, manifest.ErrOtherCluster, images.ErrRefused, containerd.ErrOtherImage),
		isAny(err, plane.ErrUnfinished, journal.ErrBusy, journal.ErrNewer, node.ErrAlive), errors.As(err, &expired):
		return exitRefused
	case errors.Is(err, plane.ErrShared):
		return exitUsage
	case isAny(err, repository.ErrNothing, errNothingBegun):
		return exitNothing
	}
	return exitFailed
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// hint says what to do next about errors that everybody meets once.
func hint(err error, code int) string {
	switch {
	case errors.Is(err, seal.ErrNoIdentity):
		return "none of the keys given with --identity fits this backup; `lifeboat show ID` lists the recipients it was sealed for"
	case errors.Is(err, repository.ErrUnreachable):
		return "give the flags in brackets to restore the nearest point; `lifeboat list --points` shows all that can be restored"
	case errors.Is(err, errNothingBegun):
		return "`lifeboat restore clean` lists what earlier restores have kept aside"
	case errors.Is(err, node.ErrByHand):
		return "do that, then give the same command again: it goes on from there"
	case errors.Is(err, spool.ErrLocked):
		return "the agent of this machine, or another `lifeboat record`, records this etcd already"
	case errors.Is(err, repository.ErrClock):
		return "synchronize this machine's clock (chrony, systemd-timesyncd) or the store's, then run it again; nothing was deleted"
	case errors.Is(err, repository.ErrMayNotPrune):
		return "give this key kinds=prune in the trust file of every machine, or prune where a key is that may"
	case errors.Is(err, repository.ErrMayNotRekey):
		return "what replaces a backup's data needs a key with kinds=rekey and the backup's own kind in the trust file; see docs/security.md"
	case ofContainerd(err) != "":
		return ofContainerd(err)
	case errors.Is(err, repository.ErrOrder):
		return "copy to another, empty prefix and put that into config.yaml; copies come before a store's first backup"
	case errors.Is(err, storage.ErrPermission):
		return "check the credentials and the store's policy; `lifeboat doctor` tries each operation"
	case errors.Is(err, storage.ErrFull):
		return "make room in the store; nothing of this backup counts until its manifest is there"
	}
	switch text := err.Error(); {
	case code != exitFailed:
	case strings.Contains(text, "credentials") && strings.Contains(text, "s3"):
		return "no credentials for the bucket: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use the shared files (~/.aws/credentials, with profile in the configuration) or the instance's role"
	case strings.Contains(text, "NoSuchBucket"):
		return "make the bucket first, with versioning and Object Lock if you can, or correct the store's URL; lifeboat makes no buckets"
	case strings.Contains(text, "connection refused"):
		return "nothing listens there: is the endpoint right, and does the server run? `lifeboat doctor` tries each"
	}
	switch code {
	case exitUsage:
		return "`lifeboat help` and `lifeboat VERB --help` have examples"
	case exitVerify:
		return "`lifeboat verify` lists every object concerned; a backup named with --backup can still be restored if its own bytes verify"
	case exitNothing:
		return "are store, cluster and trust file the right ones? `lifeboat list` shows what a store holds that they name"
	}
	return ""
}
