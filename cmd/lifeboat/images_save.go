package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"lifeboat/backup/host"
	saving "lifeboat/backup/images"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/session"
)

type imagesSaveFlags struct {
	also   []string
	all    bool
	anew   bool
	socket string
	dryRun bool
}

func newImagesSave(a *app) *cobra.Command {
	var flags imagesSaveFlags
	cmd := &cobra.Command{
		Use:   "save",
		Short: "Save the container images that this node needs to come up",
		Long: `Saves the container images that this node needs to come up: those of its static
pods (etcd, the API server, ...), the pause image, those of kube-system's pods on
this node (kube-proxy, CoreDNS, ...), and those of pods that bring the node its
network. --image adds one, --all takes all that containerd has.

Every part of an image is checked against its digest, sealed for the recipients in
config.yaml, and stored once: what another save or another node has stored is not
stored again, if it is sealed for these recipients and signed by a key that is
trusted. Of images for several platforms, only this machine's part is saved. If
nothing changed since this node's last save nothing is written.

What is stored is not read again. If verify has found some of it damaged, --anew
stores every part once more; later saves and loads of all nodes use the new ones.

An image that is not there or not whole is left out, and the exit code is 1; the
others are saved. containerd with discard_unpacked_layers keeps no layers: pull such
an image again with that off.

Run it on a node that works after every upgrade, and from a timer if you like. Prune
keeps what the retention policy keeps, of each node its newest always.`,
		Example: `  lifeboat images save --dry-run
  lifeboat images save
  lifeboat images save --image registry.example.org/kube-vip:v1.0.0 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.imagesSave(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&flags.also, "image", nil, "save this image too, and fail without it; may be repeated")
	f.BoolVar(&flags.all, "all", false, "save all images that containerd has for Kubernetes")
	f.BoolVar(&flags.anew, "anew", false, "store every part once more, as when verify has found some damaged")
	a.socketFlag(cmd, &flags.socket)
	f.BoolVar(&flags.dryRun, "dry-run", false, "say what would be saved, and write nothing")
	a.outputFlag(cmd)
	return cmd
}

func (a *app) imagesSave(ctx context.Context, flags imagesSaveFlags) error {
	c, err := a.readConfig()
	if err != nil {
		return err
	}
	client, err := a.containerd(ctx, c.Host.Root, flags.socket)
	if err != nil {
		return err
	}
	defer client.Close()
	static, err := host.StaticImages(c.Host.Root)
	if err != nil {
		return err
	}
	var s *session.Session
	if flags.dryRun {
		s, err = a.open(ctx)
	} else {
		s, err = session.OpenToWrite(ctx, c, a.options())
	}
	if err != nil {
		return err
	}
	defer a.remember(s)
	o, err := s.Saving()
	if err != nil {
		return err
	}
	o.Source, o.Platform, o.Static, o.Also, o.All = client, platform, static, flags.also, flags.all
	o.Anew = flags.anew
	plan, err := saving.Look(ctx, o)
	if err != nil {
		return err
	}
	if flags.dryRun {
		return a.printImagesPlan(plan, plan.Missing(ctx), o)
	}
	saved, err := plan.Save(ctx)
	return errors.Join(a.printSaved(plan, saved), err)
}

type savedJSON struct {
	DryRun  bool             `json:"dryRun"`
	Images  []savedImageJSON `json:"images"`
	LeftOut []leftOutJSON    `json:"leftOut"`
	Blobs   int              `json:"blobs"`
	Bytes   int64            `json:"bytes"`
	Stores  []savedStoreJSON `json:"stores"`
}

type savedImageJSON struct {
	imageJSON
	For   []string `json:"for"`
	Bytes int64    `json:"bytes"`
}

type leftOutJSON struct {
	Image string `json:"image"`
	For   string `json:"for"`
	Why   string `json:"why"`
}

type savedStoreJSON struct {
	URL       string      `json:"url"`
	OK        bool        `json:"ok"`
	Error     string      `json:"error"`
	ID        manifest.ID `json:"id"` // of the images; empty: a dry run, or it failed
	Unchanged bool        `json:"unchanged"`
	Put       int         `json:"put"` // blobs that were stored; in a dry run, that would be
	PutBytes  int64       `json:"putBytes"`

	images int // of the plan's; others were left out on the way
}

func describeSaved(plan *saving.Plan) savedJSON {
	out := savedJSON{Images: []savedImageJSON{}, LeftOut: []leftOutJSON{}, Stores: []savedStoreJSON{}, Blobs: plan.Blobs, Bytes: plan.Bytes}
	for _, i := range plan.Images {
		out.Images = append(out.Images, savedImageJSON{imageJSON{i.Names, oci.DigestOf(i.SHA256), i.Pinned}, i.For, i.Bytes})
	}
	for _, l := range plan.LeftOut {
		out.LeftOut = append(out.LeftOut, leftOutJSON(l))
	}
	return out
}

func (a *app) printImagesPlan(plan *saving.Plan, lacks map[string]saving.Lack, o saving.Options) error {
	out := describeSaved(plan)
	out.DryRun = true
	for _, store := range o.Stores {
		lack := lacks[store.URL]
		in := savedStoreJSON{URL: store.URL, OK: lack.Err == nil, Put: lack.Blobs, PutBytes: lack.Bytes}
		if lack.Err != nil {
			in.Error = lack.Err.Error()
		}
		out.Stores = append(out.Stores, in)
	}
	return a.printSavedJSON(out)
}

func (a *app) printSaved(plan *saving.Plan, saved *saving.Saved) error {
	out := describeSaved(plan)
	for _, in := range saved.Stores {
		j := savedStoreJSON{URL: in.URL, OK: in.Err == nil, Unchanged: in.Unchanged, Put: in.Put, PutBytes: in.PutBytes}
		if in.Err != nil {
			j.Error = in.Err.Error()
		} else {
			j.ID, j.images = in.Manifest.ID, len(in.Manifest.Images.Images)
		}
		out.Stores = append(out.Stores, j)
	}
	return a.printSavedJSON(out)
}

func (a *app) printSavedJSON(out savedJSON) error {
	if a.format == "json" {
		return a.printJSON(out)
	}
	rows := [][]string{{"IMAGE", "SIZE", "FOR"}}
	for _, i := range out.Images {
		rows = append(rows, []string{i.Names[0], humanBytes(i.Bytes), i.For[0]})
	}
	for _, l := range out.LeftOut {
		rows = append(rows, []string{l.Image, "LEFT OUT", l.For + "; " + l.Why})
	}
	if err := table(a.out, rows); err != nil {
		return err
	}
	for _, in := range out.Stores {
		switch {
		case !in.OK:
			fmt.Fprintf(a.out, "NOT saved to %s: %s\n", in.URL, in.Error)
		case out.DryRun:
			fmt.Fprintf(a.out, "%s would get %d of %d blobs, %s; nothing was written\n", in.URL, in.Put, out.Blobs, humanBytes(in.PutBytes))
		case in.Unchanged:
			fmt.Fprintf(a.out, "%s has all of it, as %s\n", in.URL, in.ID)
		default:
			fmt.Fprintf(a.out, "%s  saved to %s: %d images; %d of %d blobs were stored, %s\n", in.ID, in.URL, in.images, in.Put, out.Blobs, humanBytes(in.PutBytes))
		}
	}
	return nil
}
