package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
)

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.format == "json" {
				return a.printJSON(map[string]any{
					"version": version(), "format": manifest.FormatVersion, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(a.out, "lifeboat %s (format %d, %s, %s/%s)\n", version(), manifest.FormatVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	a.outputFlag(cmd)
	return cmd
}
