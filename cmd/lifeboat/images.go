package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/containerd"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
)

func newImages(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images",
		Short: "Keep the control plane's container images beside the backups",
		Long: `A machine whose image store is empty starts no control plane without a registry,
and the registry may be what was lost, or out of reach. These verbs keep the
container images of the control plane beside the backups, sealed for the same
recipients, signed, and each part of an image once whoever needs it; and put them
back on a machine, so that kubelet starts everything without any registry.

The images are read and written through the containerd of this machine. With CRI-O
use its own means (skopeo).`,
		Example: `  lifeboat images save                                on a node that works, after every upgrade
  lifeboat images list
  lifeboat images load --identity recovery.key        on the machine that has none`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImagesSave(a), newImagesLoad(a), newImagesList(a))
	return cmd
}

// platform is this machine's.
var platform = oci.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}

func (a *app) socketFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", "", "containerd's socket (default: the one that kubelet uses)")
}

// containerd connects to the containerd of a machine.
func (a *app) containerd(ctx context.Context, root, socket string) (*containerd.Client, error) {
	path, err := session.Containerd(ctx, root, socket)
	if err != nil {
		return nil, err
	}
	return containerd.Dial(path)
}

type imagesListFlags struct {
	node string
}

func newImagesList(a *app) *cobra.Command {
	var flags imagesListFlags
	cmd := &cobra.Command{
		Use:   "list [ID]",
		Short: "List the saved images",
		Long: `Lists what was saved of each node, newest first; with an ID, the images of that
save with their digests. It needs no key: names and digests of images are signed,
and not sealed.`,
		Example: `  lifeboat images list
  lifeboat images list 3k7q
  lifeboat images list --node cp1 -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%w: images list takes one ID at most", errUsage)
			}
			return nil
		},
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.imagesList(cmd.Context(), flags, strings.Join(args, ""))
		},
	}
	cmd.Flags().StringVar(&flags.node, "node", "", "only what was saved of this node")
	a.readFlags(cmd)
	a.outputFlag(cmd)
	return cmd
}

type imagesJSON struct {
	ID       manifest.ID `json:"id"`
	Node     string      `json:"node"`
	Platform string      `json:"platform"`
	Created  time.Time   `json:"created"`
	Blobs    int         `json:"blobs"`
	Bytes    int64       `json:"bytes"` // as stored; what several saves share counts in each
	Whole    bool        `json:"whole"` // the store has all blobs
	Images   []imageJSON `json:"images"`
	Degraded []string    `json:"degraded"`
}

type imageJSON struct {
	Names  []string   `json:"names"`
	Digest oci.Digest `json:"digest"`
	Pinned bool       `json:"pinned"`
}

func describeImages(b repository.Backup, blobs *repository.Blobs) imagesJSON {
	out := imagesJSON{
		ID: b.ID, Node: b.Images.Node, Platform: b.Images.Platform, Created: b.Created, Blobs: len(b.Images.Blobs),
		Whole: true, Images: []imageJSON{}, Degraded: orEmpty(b.Degraded),
	}
	for _, sum := range b.Images.Blobs {
		blob, ok := blobs.Of(sum)
		if !ok {
			out.Whole = false
			continue
		}
		out.Bytes += blob.Objects[0].Size
	}
	for _, i := range b.Images.Images {
		out.Images = append(out.Images, imageJSON{Names: i.Names, Digest: oci.DigestOf(i.SHA256), Pinned: i.Pinned})
	}
	return out
}

func (a *app) imagesList(ctx context.Context, flags imagesListFlags, id string) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	list := []imagesJSON{}
	err = a.read(ctx, s, manifest.ImagesChain, func(r *repository.Repository) error {
		blobs, err := r.Blobs(ctx)
		if err != nil {
			return err
		}
		list = list[:0]
		for _, b := range slices.Backward(blobs.Images) {
			if strings.HasPrefix(string(b.ID), id) && (flags.node == "" || flags.node == b.Images.Node) {
				list = append(list, describeImages(b, blobs))
			}
		}
		switch {
		case len(list) == 0:
			return fmt.Errorf("list images in %s: %w", r.Name(), repository.ErrNothing)
		case id != "" && len(list) > 1:
			return fmt.Errorf("list images %q in %s: %w: %d begin so; give more of it", id, r.Name(), repository.ErrAmbiguous, len(list))
		}
		return nil
	})
	if errors.Is(err, repository.ErrNothing) && id == "" && flags.node == "" {
		err = nil
	}
	if err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.err, "no images are saved yet: `lifeboat images save` on a node that works")
		return nil
	}
	return a.printImages(list, id != "")
}

func (a *app) printImages(list []imagesJSON, each bool) error {
	if each {
		rows := [][]string{{"IMAGE", "DIGEST", "ALSO NAMED"}}
		for _, i := range list[0].Images {
			rows = append(rows, []string{i.Names[0], string(i.Digest), strings.Join(i.Names[1:], " ")})
		}
		return table(a.out, rows)
	}
	rows := [][]string{{"ID", "NODE", "AGE", "PLATFORM", "IMAGES", "BLOBS", "STORED", "REMARK"}}
	for _, b := range list {
		remark := ""
		if len(b.Degraded) > 0 {
			remark = b.Degraded[0]
		}
		if !b.Whole {
			remark = "NOT WHOLE: the store has lost blobs of it; `lifeboat images save` on a node that works puts them back"
		}
		rows = append(rows, []string{
			string(b.ID), b.Node, humanAge(a.now().Sub(b.Created)), b.Platform, fmt.Sprint(len(b.Images)), fmt.Sprint(b.Blobs), humanBytes(b.Bytes), remark,
		})
	}
	return table(a.out, rows)
}

// completeImages offers the ids of saved images to the shell.
func (a *app) completeImages(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeBackups(cmd, func(b repository.Backup) string {
		if b.Images == nil {
			return ""
		}
		return fmt.Sprintf("of %s, %s", b.Images.Node, b.Created.Format(time.DateTime))
	})
}
