package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/recoverykit"
	"lifeboat/restore"
)

// kitFlags say what kit to make and where.
type kitFlags struct {
	out, html    string
	identityKept string
	binaryKept   string
	withBinary   bool
	force        bool
}

func newKit(a *app) *cobra.Command {
	var flags kitFlags
	cmd := &cobra.Command{
		Use:   "kit --out DIR | --html FILE",
		Short: "Print the recovery kit: what to do and what is needed when all is lost",
		Long: `Makes the part of the recovery kit that may lie open: the pages that say what to
do, with this cluster's names and addresses in them; where the backups are; the
trust file; a configuration that reads the backups; the nodes; the newest
backups; and the binary's checksum. Print it, and keep the folder off the cluster.

It holds no secret, and refuses to. The identity stays where it is: say where with
--identity-kept, in words that those understand who will look for it. With
--identity it is tried on the newest files backup of each node, and what these
tell of the nodes comes into the kit; the identity itself does not.

--out makes a folder: restore.html to print, restore.md to read on a console, trust,
config.yaml, kit.json and SHA256SUMS. --html makes one self-contained page that
holds the same, and prints on A4.

Make it anew after each change of nodes, stores, keys or version: --force replaces
an older kit's files, and nothing else in its folder.`,
		Example: `  lifeboat kit --out /root/lifeboat-kit --identity-kept "safe in Berlin, envelope 3"
  lifeboat kit --html lifeboat-kit.html --identity-kept "Ada and Grace, one paper key each"
  lifeboat kit --out /media/usb/lifeboat --with-binary --force --identity recovery.key`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.kit(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.out, "out", "", "folder for the kit; made if missing")
	f.StringVar(&flags.html, "html", "", "one HTML file instead, to print")
	f.StringVar(&flags.identityKept, "identity-kept", "", "where the identity is kept, in words; never the identity")
	f.StringVar(&flags.binaryKept, "binary-kept", "", "where this version of lifeboat can be had, in words")
	f.BoolVar(&flags.withBinary, "with-binary", false, "copy this binary into the folder")
	f.BoolVar(&flags.force, "force", false, "replace an older kit's files")
	a.readFlags(cmd)
	a.identityFlag(cmd, false)
	a.outputFlag(cmd)
	check(cmd, func() error {
		switch {
		case flags.out == "" && flags.html == "":
			return fmt.Errorf("%w: kit needs --out DIR, or --html FILE", errUsage)
		case flags.out != "" && flags.html != "":
			return fmt.Errorf("%w: kit takes --out DIR or --html FILE, not both: the folder holds the page too", errUsage)
		case flags.withBinary && flags.out == "":
			return fmt.Errorf("%w: --with-binary goes with --out", errUsage)
		}
		return nil
	})
	return cmd
}

// kitJSON is what was written.
type kitJSON struct {
	Cluster  string        `json:"cluster"`
	Folder   string        `json:"folder"` // empty with --html
	Files    []kitFileJSON `json:"files"`
	Nodes    []string      `json:"nodes"`
	Warnings []string      `json:"warnings"`
}

type kitFileJSON struct {
	Path   string `json:"path"`
	Mode   string `json:"mode"` // octal
	SHA256 string `json:"sha256"`
}

func (a *app) kit(ctx context.Context, flags kitFlags) error {
	made, err := a.makeKit(ctx, flags)
	if err != nil {
		return err
	}
	if a.format == "json" {
		return a.printJSON(made)
	}
	fmt.Fprintf(a.out, "Recovery kit of cluster %s, without secrets:\n\n", made.Cluster)
	for _, f := range made.Files {
		fmt.Fprintf(a.out, "  %s\n", f.Path)
	}
	fmt.Fprintln(a.out)
	for _, w := range made.Warnings {
		fmt.Fprintf(a.out, "WARNING: %s\n", w)
	}
	page := flags.html
	if page == "" {
		page = filepath.Join(flags.out, recoverykit.HTMLFile)
	}
	fmt.Fprintf(a.out, "Print %s, and keep it off this cluster.\n", page)
	return nil
}

// makeKit collects what belongs into a kit and writes it.
func (a *app) makeKit(ctx context.Context, flags kitFlags) (*kitJSON, error) {
	s, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	g := &gathering{app: a, session: s, kit: &recoverykit.Kit{
		Made: a.now().UTC(), Cluster: s.Trust.Cluster, IdentityKept: strings.TrimSpace(flags.identityKept), StateDir: s.Config.StateDir,
	}}
	if err := g.all(ctx, flags); err != nil {
		return nil, err
	}
	files, err := recoverykit.Files(g.kit)
	if err != nil {
		if errors.Is(err, recoverykit.ErrSecret) {
			err = fmt.Errorf("%w: %w; nothing was written", restore.ErrRefused, err)
		}
		return nil, err
	}
	made := &kitJSON{Cluster: g.kit.Cluster, Nodes: []string{}}
	for _, n := range g.kit.Nodes {
		made.Nodes = append(made.Nodes, n.Name)
	}
	if flags.html != "" {
		files = files[:1]
		err = recoverykit.WriteOne(flags.html, files[0], flags.force)
	} else {
		var others []string
		if others, err = recoverykit.Write(flags.out, files, flags.force); len(others) > 0 {
			g.warn("%s holds what is not of this kit, left as it is: %s", flags.out, strings.Join(others, ", "))
		}
		made.Folder = flags.out
	}
	if errors.Is(err, recoverykit.ErrExists) {
		return nil, fmt.Errorf("%w: %w; --force replaces an older kit's files", restore.ErrRefused, err)
	}
	if err != nil {
		return nil, fmt.Errorf("write the recovery kit: %w", err)
	}
	for _, f := range files {
		path := cmp.Or(flags.html, filepath.Join(flags.out, f.Name))
		made.Files = append(made.Files, kitFileJSON{Path: path, Mode: fmt.Sprintf("%04o", f.Mode), SHA256: f.Sum})
	}
	made.Warnings = orEmpty(g.kit.Warnings)
	return made, nil
}

// kitCommand is what makes a kit by a configuration.
func kitCommand(configPath string) string {
	flag := ""
	if configPath != config.DefaultPath {
		flag = " --config " + configPath
	}
	return "lifeboat kit" + flag + ` --out DIR --identity-kept "WHERE"`
}

// secretsOf reads files that hold secrets and returns each of their lines, for a
// kit to look for. What can't be read can't come into a kit either.
func secretsOf(paths []string) (secrets [][]byte) {
	const least = 12 // bytes: less is found by chance
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); len(line) >= least && !strings.HasPrefix(line, "#") {
				secrets = append(secrets, []byte(line))
			}
		}
	}
	for _, name := range []string{"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		if value := os.Getenv(name); len(value) >= least {
			secrets = append(secrets, []byte(value))
		}
	}
	return secrets
}
