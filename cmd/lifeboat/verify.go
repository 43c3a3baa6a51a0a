package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/restore"
)

func newVerify(a *app) *cobra.Command {
	var deep bool
	var point pointFlags
	cmd := &cobra.Command{
		Use:   "verify [ID...]",
		Short: "Check signatures, chains and stored bytes",
		Long: `Checks every manifest's signature and place in its chain, and the size and
SHA-256 of every stored byte that a manifest names, in every configured store.
With ids, only those backups' bytes are read; chains are always checked whole.

--deep also unseals each backup into scratch and checks the etcd file's hash
trailer, pages, revision and HashKV, or the archive and every file in it. That
proves backups which could not be proved at capture; where this machine may
sign, the proof is committed to the chain. The changes that were recorded after
each full are applied to it, up to the next full or as far as they reach, and
HashKV must then be what etcd's members gave. With --at or --revision, that
state alone is made and proved.

A warning tells of an encryption key that the newest snapshot needs and that the
newest backups of nodes' files lack.

Exit code 3 means that something was lost, damaged or tampered with; each
object concerned stands on a line of its own. Harmless notes that say the same,
such as what a prune is still to delete, are one line; -o json has each object.`,
		Example: `  lifeboat verify
  lifeboat verify --deep --identity recovery.key
  lifeboat verify --deep --identity recovery.key --at "yesterday 14:00"
  lifeboat verify 3k7q --store file:///mnt/usb --cluster prod-eu1 --trust trust`,
		ValidArgsFunction: a.completeIDs,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.verify(cmd.Context(), args, deep, point) },
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "unseal and check the contents too; needs --identity")
	point.addEtcd(a, cmd)
	a.readFlags(cmd)
	a.identityFlag(cmd, false)
	a.outputFlag(cmd)
	check(cmd, func() error {
		if point.given() && (!deep || len(cmd.Flags().Args()) > 0) {
			return fmt.Errorf("%w: --at, --revision and --backup go with --deep, and without ids", errUsage)
		}
		if deep && len(a.identities) == 0 {
			return fmt.Errorf("%w: --deep unseals, which needs --identity FILE", errUsage)
		}
		return nil
	})
	return cmd
}

type verifyJSON struct {
	Store     string               `json:"store"`
	OK        bool                 `json:"ok"`
	Error     string               `json:"error,omitempty"`
	Chains    []manifest.Chain     `json:"chains"`
	Manifests int                  `json:"manifests"`
	Objects   int                  `json:"objects"`
	Bytes     int64                `json:"bytes"`
	Deep      []deepJSON           `json:"deep"`
	Problems  []repository.Problem `json:"problems"`
	Warnings  []string             `json:"warnings"` // what is whole, but not enough
}

type deepJSON struct {
	ID       manifest.ID    `json:"id"`
	Chain    manifest.Chain `json:"chain"`
	OK       bool           `json:"ok"`
	Error    string         `json:"error,omitempty"`
	Proved   bool           `json:"proved"` // by this verification
	Warnings []string       `json:"warnings"`
	Point    *pointJSON     `json:"point,omitempty"`   // the furthest state that was made
	Applied  *appliedJSON   `json:"applied,omitempty"` // the segments that led there
	beyond   string
}

func (a *app) verify(ctx context.Context, ids []string, deep bool, point pointFlags) error {
	identities, err := a.loadIdentities(ctx)
	if err != nil {
		return err
	}
	s, prover, err := a.openToProve(ctx, deep)
	if err != nil {
		return err
	}
	options := restore.DeepOptions{Identities: identities, Scratch: filepath.Join(s.Config.StateDir, "scratch"), Now: a.now, Events: a.listener()}
	results, errs := []verifyJSON{}, []error{}
	for _, o := range s.Stores {
		result := verifyJSON{Store: o.URL, Chains: []manifest.Chain{}, Problems: []repository.Problem{}, Deep: []deepJSON{}, Warnings: []string{}}
		err := o.Err
		if err == nil && s.Memory == nil { // nothing tells an empty store from a wrong one
			err = o.Repository.Require(ctx)
		}
		if err == nil {
			err = a.verifyIn(ctx, o.Repository, ids, deep, point, prover, options, &result)
		}
		if err != nil {
			errs = append(errs, err)
			result.Error = err.Error()
		}
		result.OK = err == nil
		results = append(results, result)
	}
	a.remember(s)
	if a.format == "json" {
		errs = append(errs, a.printJSON(results))
	} else {
		a.printVerify(results)
	}
	return errors.Join(errs...)
}

// verifyIn verifies what one store holds.
func (a *app) verifyIn(ctx context.Context, repo *repository.Repository, ids []string, deep bool, flags pointFlags, prover *manifest.Writer, options restore.DeepOptions, result *verifyJSON) error {
	var route *repository.Route
	if flags.given() {
		point, chain, err := flags.point(ctx, repo, flags.chain())
		if err != nil {
			return err
		}
		if route, err = repo.Route(ctx, chain, point); err != nil {
			return err
		}
		ids = []string{string(route.Base.ID)} // and of the segments every byte is read when they are applied
	}
	err := a.verifyStore(ctx, repo, ids, result)
	if err == nil && len(ids) == 0 {
		keys, keysErr := repo.KeyCoverage(ctx)
		for _, g := range keys.Gaps {
			result.Warnings = append(result.Warnings, manifest.Line(g.String()))
		}
		err = keysErr
	}
	// One damaged object is no reason to leave all others unopened.
	if !deep || err != nil && !errors.Is(err, repository.ErrVerification) {
		return err
	}
	return errors.Join(err, a.verifyDeep(ctx, repo, prover, ids, route, options, result))
}

// openToProve opens the stores, and says who may sign proofs of what a deep
// verification finds: nil where this machine may not.
func (a *app) openToProve(ctx context.Context, deep bool) (*session.Session, *manifest.Writer, error) {
	if !deep || a.trustPath != "" {
		s, err := a.open(ctx)
		return s, nil, err
	}
	c, trust, err := a.loadConfig()
	if err != nil {
		return nil, nil, err
	}
	signer, err := session.LoadSigner(c.Signing.KeyFile)
	if err != nil || !session.Believes(trust, signer) {
		s, err := a.openConfigured(ctx, c, trust, nil)
		return s, nil, err
	}
	s, err := a.openConfigured(ctx, c, trust, signer)
	if err != nil {
		return nil, nil, err
	}
	writer := s.Writer()
	return s, &writer, nil
}

func (a *app) verifyStore(ctx context.Context, repo *repository.Repository, prefixes []string, result *verifyJSON) error {
	var ids []manifest.ID
	for _, prefix := range prefixes {
		b, err := repo.Find(ctx, prefix)
		if err != nil {
			return err
		}
		ids = append(ids, b.ID)
	}
	report, err := repo.Verify(ctx, repository.VerifyOptions{IDs: ids})
	if report != nil {
		result.Chains, result.Problems = orEmpty(report.Chains), orEmpty(report.Problems)
		result.Manifests, result.Objects, result.Bytes = report.Manifests, report.Objects, report.Bytes
	}
	if err != nil {
		return err
	}
	return report.Err()
}

func begins(id string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(id, prefix) {
			return true
		}
	}
	return false
}

func (a *app) printVerify(results []verifyJSON) {
	for _, r := range results {
		for _, p := range repository.Failures(r.Problems) {
			fmt.Fprintf(a.out, "PROBLEM  %s\n", p)
		}
		printNotes(a.out, r.Problems)
		for _, w := range r.Warnings {
			fmt.Fprintf(a.out, "warning  %s\n", w)
		}
		for _, d := range r.Deep {
			switch {
			case !d.OK:
				fmt.Fprintf(a.out, "PROBLEM  %s %s: %s\n", d.Chain, d.ID, d.Error)
			case d.Proved:
				fmt.Fprintf(a.out, "%s %s: whole, and now proved%s\n", d.Chain, d.ID, d.beyond)
			default:
				fmt.Fprintf(a.out, "%s %s: whole%s\n", d.Chain, d.ID, d.beyond)
			}
			for _, w := range d.Warnings {
				fmt.Fprintf(a.out, "  warning: %s\n", w)
			}
		}
		fmt.Fprintf(a.out, "%s: %d manifests in %d chains, %d objects, %s read: %s\n",
			r.Store, r.Manifests, len(r.Chains), r.Objects, humanBytes(r.Bytes), verdict(r.OK))
	}
}

// printNotes writes one line for all notes of a kind that say the same, with the
// first object: a store that is pruned has a leftover or more for each backup
// that is gone. Other words are another line: whether something waits for a
// prune or because of a rekey tells which keys are still needed.
func printNotes(w io.Writer, problems []repository.Problem) {
	type note struct {
		kind    repository.Kind
		message string
	}
	var notes []note
	objects := map[note][]string{}
	for _, p := range problems {
		if !p.Kind.Note() {
			continue
		}
		n := note{p.Kind, p.Message}
		if objects[n] == nil {
			notes = append(notes, n)
		}
		objects[n] = append(objects[n], p.Object)
	}
	for _, n := range notes {
		object := objects[n][0]
		if more := len(objects[n]) - 1; more > 0 {
			object += fmt.Sprintf(" and %d more", more)
		}
		fmt.Fprintf(w, "note  %s: %s: %s\n", object, n.kind, n.message)
	}
}

func verdict(ok bool) string {
	if ok {
		return "good"
	}
	return "NOT GOOD"
}
