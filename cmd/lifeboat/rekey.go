package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/session"
	"lifeboat/internal/transfer"
)

func newRekey(a *app) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "rekey --identity FILE [ID...]",
		Short: "Seal backups anew for the recipients in config.yaml",
		Long: `Seals the data of earlier backups anew, for the recipients that config.yaml names
now, in every configured store: those backups, all or the given ones, whose
recipients differ. --identity is a key that opens them as they are.

Each is read, checked and put back under a new name, and a signed manifest of
kind rekey makes readers use that from then on. The backups keep their ids, facts
and order. Run it again after an interruption: what is done is left out.

It removes nothing. The next prune promises the deletion of what was replaced,
and a prune a day later keeps it. What the OLD key opens until then, and what it
will open for ever: objects under Object Lock until their lock ends, older
versions that a bucket with versioning keeps, and every copy that somebody else
has made. If the old key may be known to others, change the secrets that are in
the backups: this command can't call back what was read.

Segments stay as they are: keep the old key until the point-in-time window
(retention.pointInTime) has passed, since points between two fulls need it.

Renew the signing key with "lifeboat rekey signer".`,
		Example: `  lifeboat rekey --dry-run
  lifeboat rekey --identity old-recovery.key
  lifeboat rekey --identity old-recovery.key --store s3://bucket/prefix 3k7q`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeIDs,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.rekey(cmd.Context(), dryRun, args) },
	}
	storeFlag(cmd, &a.storeURL, "store", "rekey only in this store, one of the configured")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be sealed anew; needs no key")
	a.identityFlag(cmd, false)
	a.outputFlag(cmd)
	check(cmd, func() error {
		if !dryRun && len(a.identities) == 0 {
			return fmt.Errorf("%w: rekey needs --identity FILE, a key that opens the backups as they are", errUsage)
		}
		return nil
	})
	cmd.AddCommand(newRekeySigner(a))
	return cmd
}

// rekeyed is what became of one store.
type rekeyed struct {
	url  string
	list []transfer.Rekeyed
	err  error
}

func (a *app) rekey(ctx context.Context, dryRun bool, ids []string) error {
	c, err := a.readConfig()
	if err != nil {
		return err
	}
	options := transfer.RekeyOptions{RecipientNames: c.Recipients, DryRun: dryRun, Now: a.now, Rand: a.rand, Events: a.listener()}
	if options.Recipients, err = seal.ParseRecipients(c.Recipients); err != nil {
		return fmt.Errorf("%w: recipients: %w", config.ErrInvalid, err)
	}
	if !dryRun {
		if options.Identities, err = a.loadIdentities(ctx); err != nil {
			return err
		}
	}
	s, err := a.openToPrune(ctx, dryRun) // the same: the configured stores, to sign unless nothing is to change
	if err != nil {
		return err
	}
	defer a.remember(s)
	options.Writer = s.Writer()
	var results []rekeyed
	for _, o := range s.Stores {
		result := rekeyed{url: o.URL, err: o.Err}
		if o.Err == nil {
			options.Repository, options.RetainDays = o.Repository, o.Settings.S3.ObjectLock.Days
			result.list, result.err = rekeyStore(ctx, options, ids)
		}
		results = append(results, result)
	}
	return a.printRekeyed(results, dryRun)
}

// rekeyStore rekeys one store. A chain's failures don't keep the backups that
// are whole from it, and are an error at the end.
func rekeyStore(ctx context.Context, options transfer.RekeyOptions, prefixes []string) ([]transfer.Rekeyed, error) {
	repo := options.Repository
	backups, problems, err := repo.Backups(ctx)
	if err != nil {
		return nil, err
	}
	blobs, err := repo.Blobs(ctx) // of container images, sealed one by one
	if err != nil {
		return nil, err
	}
	needed := func(blob repository.Backup) bool { return true }
	if len(prefixes) > 0 {
		var ids []manifest.ID
		for _, prefix := range prefixes {
			b, err := repo.Find(ctx, prefix)
			if err != nil {
				return nil, err
			}
			ids = append(ids, b.ID)
		}
		backups = slices.DeleteFunc(backups, func(b repository.Backup) bool { return !slices.Contains(ids, b.ID) })
		needed = func(blob repository.Backup) bool {
			return slices.ContainsFunc(backups, func(b repository.Backup) bool { return b.Images != nil && b.Images.Needs(blob.Blob.SHA256) })
		}
	}
	for _, blob := range blobs.All() {
		if needed(blob) {
			backups = append(backups, blob)
		}
	}
	var refused error
	if options.Backups, refused = repo.Confirmed(ctx, backups); refused != nil && !errors.Is(refused, repository.ErrVerification) {
		return nil, refused
	}
	list, err := transfer.Rekey(ctx, options)
	if failed := failedOf(list); len(failed) > 0 {
		err = &rekeyError{store: repo.Name(), failed: len(failed), of: len(list), err: errors.Join(failed...)}
		if ctx.Err() != nil {
			err = errors.Join(err, context.Cause(ctx))
		}
	}
	err = errors.Join(err, refused)
	if failures := repository.Failures(problems); len(failures) > 0 {
		err = errors.Join(err, &repository.VerificationError{Doing: "rekey in " + repo.Name(), Problems: failures})
	}
	return list, err
}

// rekeyError stands for the failures of single backups in one store, which are
// listed with those: it says how many there are, and is all of them.
type rekeyError struct {
	store      string
	failed, of int
	err        error
}

func (e *rekeyError) Error() string {
	return fmt.Sprintf("rekey in %s: %d of %d backups failed, for the reasons listed", e.store, e.failed, e.of)
}

func (e *rekeyError) Unwrap() error { return e.err }

func failedOf(list []transfer.Rekeyed) []error {
	var errs []error
	for _, r := range list {
		if r.Err != nil {
			errs = append(errs, r.Err)
		}
	}
	return errs
}

type rekeyJSON struct {
	Store   string        `json:"store"`
	OK      bool          `json:"ok"`
	Error   string        `json:"error,omitempty"`
	DryRun  bool          `json:"dryRun"`
	Rekeyed int           `json:"rekeyed"` // with dryRun: that would be
	Backups []rekeyedJSON `json:"backups"`
}

type rekeyedJSON struct {
	ID         manifest.ID    `json:"id"`
	Chain      manifest.Chain `json:"chain"`
	Created    time.Time      `json:"created"`
	Recipients []string       `json:"recipients"` // until now
	Wanted     bool           `json:"wanted"`     // they differ from those in the configuration
	Rekey      manifest.ID    `json:"rekey,omitempty"`
	Error      string         `json:"error,omitempty"`
}

func (a *app) printRekeyed(results []rekeyed, dryRun bool) error {
	out, errs := []rekeyJSON{}, []error{}
	rows := [][]string{{"STORE", "ID", "CHAIN", "AGE", "RESULT"}}
	blobs := map[string]int{} // of container images, by result: there may be hundreds
	done := 0
	for _, r := range results {
		j := rekeyJSON{Store: r.url, OK: r.err == nil, DryRun: dryRun, Backups: []rekeyedJSON{}}
		if r.err != nil {
			j.Error = r.err.Error()
			errs = append(errs, r.err)
		}
		for _, b := range r.list {
			bj := rekeyedJSON{ID: b.Backup.ID, Chain: b.Chain, Created: b.Created, Recipients: orEmpty(b.Recipients), Wanted: b.Wanted, Rekey: b.ID}
			result := "sealed for these recipients already"
			switch {
			case b.Err != nil:
				bj.Error, result = b.Err.Error(), "FAILED: "+b.Err.Error()
			case b.ID != "":
				result = "sealed anew"
				j.Rekeyed++
			case b.Wanted && dryRun:
				result = "would be sealed anew; now for " + strings.Join(b.Recipients, ", ")
				j.Rekeyed++
			case b.Wanted:
				result = "not tried"
			}
			j.Backups = append(j.Backups, bj)
			if b.Blob != nil && b.Err == nil {
				blobs[r.url+": "+result]++
				continue
			}
			rows = append(rows, []string{r.url, string(bj.ID), string(b.Chain), humanAge(a.now().Sub(b.Created)), result})
		}
		done += j.Rekeyed
		out = append(out, j)
	}
	if a.format == "json" {
		return errors.Join(append(errs, a.printJSON(out))...)
	}
	errs = append(errs, table(a.out, rows))
	for _, result := range slices.Sorted(maps.Keys(blobs)) {
		fmt.Fprintf(a.out, "%d parts of container images in %s\n", blobs[result], result)
	}
	if done > 0 && !dryRun {
		fmt.Fprint(a.out, `
The old key still opens what was replaced until prune has deleted it (promised by
the next one, deleted a day later), objects that the store has locked, older
versions that it keeps, and every copy that others have made. Keep the old key
until then: backups that were not sealed anew need it.
`)
	}
	return errors.Join(errs...)
}

func newRekeySigner(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "signer [--out FILE]",
		Short: "Make a new signing key and trust it",
		Long: `Makes a new key for signing manifests, in a new file next to the present one (mode
0600, nothing is overwritten), and adds its public half to the trust file, for the
chains and kinds that the present key may sign. Nothing is signed with it until
signing.keyFile in config.yaml names it, so this is safe while agents run: they
read key and trust anew for each backup.

Every machine that reads needs the new trust file BEFORE any machine signs with
the new key. What to do next is printed.`,
		Example: `  lifeboat rekey signer
  lifeboat rekey signer --out /etc/lifeboat/signing-2027.key`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.rekeySigner(out) },
	}
	cmd.Flags().StringVar(&out, "out", "", "the new key's file (default: signing-HASH.key next to the present key)")
	a.outputFlag(cmd)
	return cmd
}

type signerJSON struct {
	Key      string `json:"key"`   // the new key's file
	Trust    string `json:"trust"` // the trust file that was added to
	Verifier string `json:"verifier"`
	Old      string `json:"old"` // the present key's verifier
}

func (a *app) rekeySigner(out string) error {
	c, err := a.readConfig()
	if err != nil {
		return err
	}
	r, err := session.RotateSigner(c, out, a.rand)
	if err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(signerJSON{Key: r.KeyFile, Trust: r.TrustFile, Verifier: r.New, Old: r.Old})
	}
	old, _, _ := strings.Cut(r.Old, "+")
	_, err = fmt.Fprintf(a.out, `A new signing key: %s
%s believes it from now on, besides the old one.

Next, in this order:

  1. Copy %s to every machine that reads or writes backups, and into
     the recovery kit. A reader without it takes what the new key signs for junk.
  2. Copy the new key to every machine that backs up, mode 0600, and set
     signing.keyFile to it in each config.yaml; then reload the agents (SIGHUP).
  3. lifeboat backup && lifeboat verify
  4. In the trust file, on the old key's line (%s...), replace until=never by
     until=%s once no machine signs with it any more (a time after its last
     backup). If the old key was STOLEN, remove its line instead: until= does
     not stop a thief, who can write any date. What only it has signed is then
     not restored any more.
  5. Delete the old key's file, %s.
`, r.KeyFile, r.TrustFile, r.TrustFile, clipKey(r.Old, old), a.now().UTC().Truncate(time.Hour).Add(25*time.Hour).Format("2006-01-02T15:04:05Z"), c.Signing.KeyFile)
	return err
}

// clipKey is a verifier key up to its hash, as its line in the trust file begins.
func clipKey(key, name string) string { return key[:min(len(key), len(name)+1+8)] }
