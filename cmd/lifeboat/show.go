package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
)

func newShow(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one backup's manifest",
		Long: `Shows all that the signed manifest says of one backup. A beginning of the id is
enough where it fits only one.`,
		Example:           `  lifeboat show 3k7q`,
		Args:              exactArgs("ID"),
		ValidArgsFunction: a.completeID,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.show(cmd.Context(), args[0]) },
	}
	a.readFlags(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *app) show(ctx context.Context, id string) error {
	_, b, err := a.find(ctx, id)
	if err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(struct {
			*manifest.Manifest
			Proved  bool        `json:"proved"`            // as list has it
			Rekeyed manifest.ID `json:"rekeyed,omitempty"` // of the rekey whose objects, recipients and lock these are
		}{b.Manifest, b.Proved, b.Rekeyed})
	}
	rows := [][]string{
		{"id", string(b.ID)},
		{"cluster", b.Cluster},
		{"chain", fmt.Sprintf("%s, epoch %d, sequence %d", b.Chain, b.Epoch, b.Sequence)},
		{"created", fmt.Sprintf("%s (%s ago)", b.Created.Format(time.RFC3339), humanAge(a.now().Sub(b.Created)))},
		{"by", fmt.Sprintf("%s, lifeboat %s", b.Writer.Node, b.Writer.Version)},
		{"proved", yesNo(b.Proved)},
		{"manifest", b.Hash.String()},
	}
	if e := b.Etcd; e != nil {
		rows = append(rows, []string{"etcd", fmt.Sprintf("%s, storage %s, cluster %s, member %s", e.Version, e.StorageVersion, e.ClusterID, e.MemberID)})
		rows = append(rows, fileRows(e)...)
		for _, m := range e.Members {
			rows = append(rows, []string{"member", fmt.Sprintf("%s %s %s", m.ID, m.Name, strings.Join(m.PeerURLs, ","))})
		}
		for _, use := range e.Encryption {
			rows = append(rows, []string{"encryption", fmt.Sprintf("%s key %q, e.g. %s", use.Provider, use.Key, use.Example)})
		}
		for _, id := range e.Dissenting {
			rows = append(rows, []string{"corrupt", fmt.Sprintf("member %s: its HashKV differs from the majority's", id)})
		}
	}
	if b.Imported != "" {
		rows = append(rows, []string{"imported", "from " + b.Imported})
	}
	if c := b.Copied; c != nil {
		rows = append(rows, []string{"copied", fmt.Sprintf("from manifest %d of %s in %s", c.Sequence, c.Chain, c.Store)})
	}
	if b.Rekeyed != "" {
		rows = append(rows, []string{"rekeyed", fmt.Sprintf("by %s: the objects and recipients below are its own", b.Rekeyed)})
	}
	if h := b.Host; h != nil {
		rows = append(rows, []string{"files", fmt.Sprintf("%d of node %s, %s", h.Files, h.Node, humanBytes(h.Bytes))})
	}
	if i := b.Images; i != nil {
		rows = append(rows, []string{"images", fmt.Sprintf("%d of node %s, for %s, in %d blobs", len(i.Images), i.Node, i.Platform, len(i.Blobs))})
		for _, image := range i.Images {
			rows = append(rows, []string{"image", fmt.Sprintf("%s sha256:%s", image.Names[0], image.SHA256)})
		}
	}
	for _, o := range b.Objects {
		rows = append(rows, []string{"object", fmt.Sprintf("%s, %s, sha256 %s", o.Name, humanBytes(o.Size), o.SHA256)})
	}
	for _, r := range b.Recipients {
		rows = append(rows, []string{"recipient", r})
	}
	if b.RetainUntil != nil {
		rows = append(rows, []string{"locked until", b.RetainUntil.Format(time.RFC3339)})
	}
	for _, why := range b.Degraded {
		rows = append(rows, []string{"degraded", why})
	}
	for _, why := range b.Unproved {
		rows = append(rows, []string{"unproved", why})
	}
	return table(a.out, rows)
}

// fileRows says what the database file held. Nobody read one that was streamed
// without scratch: its manifest has zeros, and the least that the revision can be.
func fileRows(e *manifest.Etcd) [][]string {
	if e.HashKV == 0 && e.Keys == 0 {
		return [][]string{
			{"revision", fmt.Sprintf("%d or later: not read at capture", e.Revision)},
			{"HashKV", "not computed at capture"},
			{"keys", fmt.Sprintf("not counted, in %s", humanBytes(e.DBBytes))},
		}
	}
	compared := "compared with no member"
	if len(e.ComparedWith) > 0 {
		compared = fmt.Sprintf("equal on members %v", e.ComparedWith)
	}
	return [][]string{
		{"revision", fmt.Sprintf("%d, compacted at %d", e.Revision, e.CompactRevision)},
		{"HashKV", fmt.Sprintf("%d, %s", e.HashKV, compared)},
		{"keys", fmt.Sprintf("%d in %s", e.Keys, humanBytes(e.DBBytes))},
	}
}

// completeID offers the ids of a store's backups to the shell.
func (a *app) completeID(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.completeIDs(cmd, nil, "")
}

func (a *app) completeIDs(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completeBackups(cmd, func(b repository.Backup) string {
		return fmt.Sprintf("%s, %s", b.Chain, b.Created.Format(time.RFC3339))
	})
}

// completeBackups offers the ids of backups with a description of each; of those
// whose description is empty it offers none.
func (a *app) completeBackups(cmd *cobra.Command, describe func(repository.Backup) string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
	defer cancel()
	a.quiet = true
	_, backups, _, err := a.backups(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, b := range backups {
		if text := describe(b); text != "" {
			ids = append(ids, fmt.Sprintf("%s\t%s", b.ID, text))
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}
