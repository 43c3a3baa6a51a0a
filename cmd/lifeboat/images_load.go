package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"lifeboat/internal/containerd"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/restore/images"
)

type imagesLoadFlags struct {
	node    string
	only    []string
	replace bool
	socket  string
	dryRun  bool
}

func newImagesLoad(a *app) *cobra.Command {
	var flags imagesLoadFlags
	cmd := &cobra.Command{
		Use:   "load [ID] --identity FILE",
		Short: "Put saved container images into this machine's containerd",
		Long: `Puts saved container images back into the image store of this machine, through
containerd, which must run; kubelet need not, and nothing else must live. kubelet
then starts pods from them without any registry.

Without an ID it takes this node's newest, by the node's name in config.yaml or the
machine's host name; --node takes another node's, as on a machine with a new name. If
there are none it takes the newest of any node of the same platform, and says so. If
the save left images out it warns of each, and names the last one that lacks nothing:
loading that too adds its images to these.

Every blob is checked against its digest before containerd is told to keep it, and
an image is named only when all of it is there: run it again after an interruption.
What is there already is checked and left as it is. A name that stands for another
image on this machine is refused (exit code 4) unless --replace is given.`,
		Example: `  lifeboat images load --identity recovery.key --dry-run
  lifeboat images load --identity recovery.key
  lifeboat images load --node cp1 --identity recovery.key \
    --store s3://bucket/prefix --cluster prod-eu1 --trust trust`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%w: images load takes one ID at most", errUsage)
			}
			return nil
		},
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.imagesLoad(cmd.Context(), flags, strings.Join(args, ""))
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.node, "node", "", "take what was saved of this node (default: this machine's name)")
	f.StringArrayVar(&flags.only, "image", nil, "load only this image; may be repeated")
	f.BoolVar(&flags.replace, "replace", false, "take names from other images that have them on this machine")
	a.socketFlag(cmd, &flags.socket)
	f.BoolVar(&flags.dryRun, "dry-run", false, "read and check what would be loaded, and write nothing")
	a.readFlags(cmd)
	a.identityFlag(cmd, true)
	a.outputFlag(cmd)
	return cmd
}

func (a *app) imagesLoad(ctx context.Context, flags imagesLoadFlags, id string) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	client, err := a.containerd(ctx, "", flags.socket)
	if err != nil {
		return err
	}
	defer client.Close()
	node := flags.node
	if node == "" {
		if node = s.Config.Node; node == "" {
			node, _ = os.Hostname() // without, the newest of any node is taken
		}
	}
	var repo *repository.Repository
	var picked pickedImages
	err = a.read(ctx, s, manifest.ImagesChain, func(r *repository.Repository) (err error) {
		repo = r
		picked, err = a.pickImages(ctx, r, id, node, flags.node != "")
		return err
	})
	if err != nil {
		return err
	}
	a.warnOfLack(picked)
	ids, err := a.loadIdentities(ctx)
	if err != nil {
		return err
	}
	o := images.Options{
		Backup: picked.Manifest, Target: client, Platform: platform, Only: flags.only, Replace: flags.replace,
		Now: a.now, Rand: a.rand, Events: a.listener(),
	}
	tried := tried{repo.Name(): true}
	for {
		o.Repository = repo
		err := a.loadFrom(ctx, o, ids, picked, flags.dryRun)
		if err == nil || errors.Is(err, errReported) {
			return err
		}
		if repo, err = a.elsewhere(ctx, s, picked.Manifest, tried, err); err != nil {
			return err
		}
	}
}

// pickedImages is the save to load.
type pickedImages struct {
	*manifest.Manifest
	lastWhole *repository.Backup // the node's newest that lacks nothing, if this one does; nil: there is none
}

// pickImages finds what to load: a save by the beginning of its id, or the newest
// of a node. One that left images out is taken all the same: what it has is of the
// versions that the node's newest backup names.
func (a *app) pickImages(ctx context.Context, r *repository.Repository, id, node string, strict bool) (picked pickedImages, err error) {
	stored, err := r.Blobs(ctx)
	if err != nil {
		return picked, err
	}
	fits := slices.DeleteFunc(slices.Clone(stored.Images), func(b repository.Backup) bool {
		if id != "" {
			return !strings.HasPrefix(string(b.ID), id)
		}
		return b.Images.Platform != platform.String()
	})
	own := slices.DeleteFunc(slices.Clone(fits), func(b repository.Backup) bool { return b.Images.Node != node })
	switch {
	case id != "" && len(fits) > 1:
		return picked, fmt.Errorf("find images %q in %s: %w: %d begin so; give more of it", id, r.Name(), repository.ErrAmbiguous, len(fits))
	case id == "" && len(own) > 0:
		fits = own
	case id == "" && strict:
		return picked, fmt.Errorf("find images of node %s in %s: %w", node, r.Name(), repository.ErrNothing)
	}
	if len(fits) == 0 {
		return picked, fmt.Errorf("find images %s in %s: %w", cmp.Or(id, "for "+platform.String()), r.Name(), repository.ErrNothing)
	}
	newest := fits[len(fits)-1]
	if newest.Images.Node != node { // of several nodes, whose order among each other copies may change
		newest = slices.MaxFunc(fits, func(x, y repository.Backup) int { return x.Created.Compare(y.Created) })
	}
	if id == "" && newest.Images.Node != node {
		a.warn("no images of node %q are saved; taking those of %s, saved %s ago", node, newest.Images.Node, humanAge(a.now().Sub(newest.Created)))
	}
	if len(newest.Degraded) > 0 {
		for _, b := range stored.Images {
			if d := describeImages(b, stored); len(d.Degraded) == 0 && d.Whole && d.Node == newest.Images.Node && d.Platform == newest.Images.Platform {
				picked.lastWhole = &b
			}
		}
	}
	picked.Manifest, err = r.Resolve(ctx, manifest.ImagesChain, repository.Point{Backup: newest.ID})
	return picked, err
}

// warnOfLack tells what the save left out, and where it may be.
func (a *app) warnOfLack(picked pickedImages) {
	for _, line := range picked.Degraded {
		a.warn("save %s lacks images: %s", picked.ID, line)
	}
	switch {
	case len(picked.Degraded) == 0:
	case picked.lastWhole == nil:
		a.warn("no save of node %s is there that lacks nothing", picked.Images.Node)
	default:
		a.warn("the last save of node %s that lacks nothing was %s ago: `lifeboat images load %s` adds its images to these",
			picked.Images.Node, humanAge(a.now().Sub(picked.lastWhole.Created)), picked.lastWhole.ID)
	}
}

type loadedJSON struct {
	ID      manifest.ID       `json:"id"`
	Node    string            `json:"node"`
	Created time.Time         `json:"created"`
	Store   string            `json:"store"`
	DryRun  bool              `json:"dryRun"`
	Blobs   int               `json:"blobs"` // written; in a dry run, that would be
	Bytes   int64             `json:"bytes"`
	Images  []loadedImageJSON `json:"images"`

	Degraded  []string     `json:"degraded"`  // what the save left out
	LastWhole *manifest.ID `json:"lastWhole"` // the node's newest save that lacks nothing, if this one does
}

type loadedImageJSON struct {
	Names     []string   `json:"names"`
	Digest    oci.Digest `json:"digest"`
	Present   bool       `json:"present"`   // it was there before
	Conflicts []string   `json:"conflicts"` // names that stood for other images
}

func (a *app) loadFrom(ctx context.Context, o images.Options, ids []age.Identity, picked pickedImages, dryRun bool) error {
	o.Identities = ids
	plan, err := images.Prepare(ctx, o)
	if err != nil {
		return err
	}
	out := loadedJSON{
		ID: o.Backup.ID, Node: o.Backup.Images.Node, Created: o.Backup.Created, Store: o.Repository.Name(), DryRun: dryRun,
		Blobs: plan.Blobs, Bytes: plan.Bytes, Images: []loadedImageJSON{},
		Degraded: orEmpty(picked.Degraded),
	}
	if picked.lastWhole != nil {
		out.LastWhole = &picked.lastWhole.ID
	}
	for _, i := range plan.Images {
		out.Images = append(out.Images, loadedImageJSON{i.Names, i.Digest, i.Present, orEmpty(i.Conflicts)})
	}
	if dryRun {
		return errors.Join(a.printLoaded(out), plan.Conflict())
	}
	done, err := plan.Execute(ctx)
	if err != nil {
		return err
	}
	out.Blobs, out.Bytes = done.Blobs, done.Bytes
	return a.printLoaded(out)
}

func (a *app) printLoaded(out loadedJSON) error {
	if a.format == "json" {
		return a.printJSON(out)
	}
	rows := [][]string{{"IMAGE", "DIGEST", "RESULT"}}
	for _, i := range out.Images {
		result := "loaded"
		switch {
		case i.Present:
			result = "there already"
		case out.DryRun && len(i.Conflicts) > 0:
			result = "CONFLICT: " + strings.Join(i.Conflicts, ", ") + " is another image here; --replace takes the name from it"
		case out.DryRun:
			result = "would be loaded"
		}
		if len(i.Names) == 0 {
			continue
		}
		rows = append(rows, []string{i.Names[0], string(i.Digest), result})
	}
	if err := table(a.out, rows); err != nil {
		return err
	}
	what := "were written to containerd; kubelet finds the images from now on"
	if out.DryRun {
		what = "would be written; nothing was changed"
	}
	_, err := fmt.Fprintf(a.out, "images %s of node %s, of %s: %d blobs, %s, %s\n",
		out.ID, out.Node, out.Created.Format(time.RFC3339), out.Blobs, humanBytes(out.Bytes), what)
	return err
}

// ofContainerd says what to do about errors of containerd; empty for others.
func ofContainerd(err error) string {
	switch {
	case errors.Is(err, containerd.ErrUnavailable):
		return "start containerd (systemctl start containerd), run as root, or name its socket with --socket"
	case errors.Is(err, images.ErrRefused):
		return "`lifeboat images load --dry-run` shows all images with what this machine has"
	case errors.Is(err, repository.ErrMayNotSign):
		return "in the trust file of every machine, add images to the chains= of this key's line (after chains=etcd/*,hosts/*: \",images\")"
	}
	return ""
}
