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
	var point pointFlags
	var points bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls-backups"},
		Short:   "List what can be restored",
		Long: `Lists full backups of etcd and backups of host files and container images, newest
first. A backup is proved when its HashKV was compared with live members, or by a
later deep verification, and nothing about it is degraded. Host files and images
have nothing to be compared with: they count as proved unless they are degraded.

--points shows what can be restored between the fulls: from when to when every
revision and every second is recorded, what is missing between these spans and
why, and the minutes in which the most keys changed. With --at or --revision it
also says which revision that is and which flags restore it.`,
		Example: `  lifeboat list
  lifeboat list --points
  lifeboat list --points --at "yesterday 14:00"
  lifeboat list --store s3://bucket/prefix --cluster prod-eu1 --trust trust -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if points {
				return a.points(cmd.Context(), point, !cmd.Flags().Changed("etcd") && !point.given())
			}
			return a.list(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&points, "points", false, "the time line of what can be restored of etcd")
	point.addEtcd(a, cmd)
	_ = cmd.Flags().MarkHidden("backup")
	check(cmd, func() error {
		if !points && (point.given() || cmd.Flags().Changed("etcd")) {
			return fmt.Errorf("%w: --at, --revision and --etcd go with --points", errUsage)
		}
		return nil
	})
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

	images string // what it says of container images, for people
}

func (a *app) list(ctx context.Context) error {
	repo, backups, problems, err := a.backups(ctx)
	if err != nil {
		return err
	}
	list := []listJSON{}
	for _, b := range backups {
		d := describe(b.Manifest)
		images := ""
		if i := b.Images; i != nil {
			images = fmt.Sprintf("%d images of %s: lifeboat images list %.8s", len(i.Images), i.Node, b.ID)
		}
		list = append(list, listJSON{
			ID: d.ID, Chain: d.Chain, Kind: d.Kind, Created: d.Created, Revision: d.Revision,
			PlainBytes: d.PlainBytes, StoredBytes: d.StoredBytes, Proved: b.Proved, Degraded: d.Degraded, Imported: b.Imported, images: images,
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
		if b.images != "" {
			remarks = append(remarks, b.images)
		}
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
