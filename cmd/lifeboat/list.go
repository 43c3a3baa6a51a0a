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

func newList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls-backups"},
		Short:   "List what can be restored",
		Long: `Lists full backups of etcd and backups of host files, newest first. A backup is
proved when its HashKV was compared with live members, or by a later deep
verification, and nothing about it is degraded. Host files have nothing to be
compared with: they count as proved unless they are degraded.`,
		Example: `  lifeboat list
  lifeboat list --store s3://bucket/prefix --cluster prod-eu1 --trust trust -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.list(cmd.Context()) },
	}
	a.readFlags(cmd)
	a.outputFlag(cmd)
	return cmd
}

type listJSON struct {
	ID          manifest.ID       `json:"id"`
	Chain       manifest.Chain    `json:"chain"`
	Kind        manifest.Kind     `json:"kind"`
	Created     time.Time         `json:"created"`
	Revision    manifest.Revision `json:"revision"`
	PlainBytes  int64             `json:"plainBytes"`
	StoredBytes int64             `json:"storedBytes"`
	Proved      bool              `json:"proved"`
	Degraded    []string          `json:"degraded"`
	Imported    string            `json:"imported,omitempty"`
}

func (a *app) list(ctx context.Context) error {
	repo, backups, problems, err := a.backups(ctx)
	if err != nil {
		return err
	}
	list := []listJSON{}
	for _, b := range backups {
		d := describe(b.Manifest)
		list = append(list, listJSON{
			ID: d.ID, Chain: d.Chain, Kind: d.Kind, Created: d.Created, Revision: d.Revision,
			PlainBytes: d.PlainBytes, StoredBytes: d.StoredBytes, Proved: b.Proved, Degraded: d.Degraded, Imported: b.Imported,
		})
	}
	if a.format == "json" {
		err = a.printJSON(list)
	} else {
		err = a.printList(list)
	}
	if err != nil {
		return err
	}
	for _, p := range problems {
		if p.Kind == repository.Late {
			fmt.Fprintf(a.err, "WARNING: no new backup where one was expected: %s\n", p)
		}
	}
	if failures := repository.Failures(problems); len(failures) > 0 {
		return &repository.VerificationError{Doing: "list " + repo.Name(), Problems: failures}
	}
	return nil
}

func (a *app) printList(list []listJSON) error {
	if len(list) == 0 {
		fmt.Fprintln(a.err, "no backups yet")
		return nil
	}
	rows := [][]string{{"ID", "CHAIN", "AGE", "REVISION", "SIZE", "STORED", "PROVED", "REMARK"}}
	for _, b := range list {
		revision := ""
		if b.Kind == manifest.KindFull {
			revision = fmt.Sprint(b.Revision)
		}
		var remarks []string
		if b.Imported != "" {
			remarks = append(remarks, "imported from "+b.Imported+";")
		}
		if len(b.Degraded) > 0 {
			remarks = append(remarks, b.Degraded[0])
		}
		if more := len(b.Degraded) - 1; more > 0 {
			remarks = append(remarks, fmt.Sprintf("(+%d more)", more))
		}
		rows = append(rows, []string{
			string(b.ID), string(b.Chain), humanAge(a.now().Sub(b.Created)), revision,
			humanBytes(b.PlainBytes), humanBytes(b.StoredBytes), yesNo(b.Proved), strings.Join(remarks, " "),
		})
	}
	return table(a.out, rows)
}
