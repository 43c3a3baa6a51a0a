package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/restore"
	"lifeboat/restore/files"
)

func newLs(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls ID",
		Short: "List the files in a backup of host files",
		Example: `  lifeboat ls 3k7q --identity recovery.key
  lifeboat ls 3k7q --identity recovery.key -o json`,
		Args:              exactArgs("ID"),
		ValidArgsFunction: a.completeID,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.ls(cmd.Context(), args[0]) },
	}
	a.readFlags(cmd)
	a.identityFlag(cmd, true)
	a.outputFlag(cmd)
	return cmd
}

func newCat(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cat ID PATH",
		Short: "Print one file out of a backup of host files",
		Long: `Prints one file to standard output. Links inside the backup are followed. If the
command fails, what it printed is not to be trusted: the sums are checked at the
archive's end.`,
		Example: `  lifeboat cat 3k7q etc/kubernetes/pki/ca.crt --identity recovery.key
  lifeboat cat 3k7q lifeboat/facts.json --identity recovery.key | jq .`,
		Args:              exactArgs("ID", "PATH"),
		ValidArgsFunction: a.completeID,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.cat(cmd.Context(), args[0], args[1]) },
	}
	a.readFlags(cmd)
	a.identityFlag(cmd, true)
	return cmd
}

// archive finds a backup of host files and returns a function that opens its
// archive from the start.
func (a *app) archive(ctx context.Context, repo *repository.Repository, m *manifest.Manifest) (func() (io.ReadCloser, seal.Limits, error), error) {
	if m.Kind != manifest.KindFiles {
		return nil, fmt.Errorf("%w: backup %s is of %s and holds no files; `lifeboat export` gets an etcd snapshot", errUsage, m.ID, m.Chain)
	}
	ids, err := a.loadIdentities(ctx)
	if err != nil {
		return nil, err
	}
	return func() (io.ReadCloser, seal.Limits, error) { return restore.OpenFiles(ctx, repo, m, ids) }, nil
}

func (a *app) findArchive(ctx context.Context, id string) (func() (io.ReadCloser, seal.Limits, error), error) {
	repo, b, err := a.find(ctx, id)
	if err != nil {
		return nil, err
	}
	return a.archive(ctx, repo, b.Manifest)
}

type entryJSON struct {
	Name     string    `json:"name"`
	Type     string    `json:"type"`
	Mode     string    `json:"mode"` // octal
	UID      int       `json:"uid"`
	GID      int       `json:"gid"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	Target   string    `json:"target,omitempty"`
}

func (a *app) ls(ctx context.Context, id string) error {
	open, err := a.findArchive(ctx, id)
	if err != nil {
		return err
	}
	r, limits, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	headers, err := files.List(ctx, r, limits)
	if err != nil {
		return fmt.Errorf("list the files of %s: %w", id, err)
	}
	list, rows := []entryJSON{}, [][]string{}
	for _, h := range headers {
		e := entryJSON{
			Name: h.Name, Type: typeName(h.Type), Mode: fmt.Sprintf("%04o", h.Mode.Perm()),
			UID: h.UID, GID: h.GID, Size: h.Size, Modified: h.ModTime.UTC(), Target: h.Linkname,
		}
		list = append(list, e)
		name := e.Name
		if e.Target != "" {
			name += " -> " + e.Target
		}
		rows = append(rows, []string{e.Mode, fmt.Sprintf("%d:%d", e.UID, e.GID), fmt.Sprint(e.Size), e.Modified.Format(time.DateTime), name})
	}
	if a.format == "json" {
		return a.printJSON(list)
	}
	return table(a.out, rows)
}

func typeName(t seal.Type) string {
	switch t {
	case seal.TypeDir:
		return "folder"
	case seal.TypeSymlink:
		return "link"
	}
	return "file"
}

// linkLimit is how many links a cat follows.
const linkLimit = 8

func (a *app) cat(ctx context.Context, id, name string) error {
	open, err := a.findArchive(ctx, id)
	if err != nil {
		return err
	}
	for range linkLimit {
		err := catOnce(ctx, open, name, a.out)
		var link *files.LinkError
		if !errors.As(err, &link) {
			return err
		}
		name = link.Target
	}
	return fmt.Errorf("cat %s: more than %d links", name, linkLimit)
}

func catOnce(ctx context.Context, open func() (io.ReadCloser, seal.Limits, error), name string, w io.Writer) error {
	r, limits, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return files.Cat(ctx, r, name, w, limits)
}
