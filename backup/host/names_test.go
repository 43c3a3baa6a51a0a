package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
)

// File names are chosen by whoever may write the folder. One that no archive
// holds degrades a backup and never stops it, neither by itself nor by way of
// the reason, which a manifest must be able to say.
func TestHostileFileNamesDegradeAndNeverRefuse(t *testing.T) {
	for about, name := range map[string]string{
		"a control sequence":              "a\x1b[2Jb",
		"a control sequence of one sign":  "a\u009b2Jb",
		"a next line":                     "a\u0085b",
		"a turn of direction":             "a\u202etxt",
		"a space of no width":             "a\u200bb",
		"a line separator":                "a\u2028b",
		"bytes that are no UTF-8":         "a\xffb",
		"an end of a message and another": "a\n{\"ok\":true}",
	} {
		t.Run(about, func(t *testing.T) {
			root := nodeWith(t, kubefixture.Options{})
			dir := filepath.Join(root, "etc/kubernetes")
			must(t, errors.Join(
				os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600),
				os.Mkdir(filepath.Join(dir, "folder"+name), 0o700),
				os.WriteFile(filepath.Join(dir, "folder"+name, "huge"), nil, 0o600),
				os.Truncate(filepath.Join(dir, "folder"+name, "huge"), 65<<20),
				os.Symlink("missing"+name, filepath.Join(dir, "link")),
			))
			r, headers, _ := captured(t, options(root))
			if headers["etc/kubernetes/admin.conf"] == nil {
				t.Error("the rest is not stored")
			}
			if !has(r.Degraded, "can't be archived") || !has(r.Degraded, "larger than the limit") {
				t.Errorf("degraded %q", r.Degraded)
			}
			for _, reason := range append(r.Degraded, r.Warnings...) {
				if reason != manifest.Line(reason) || strings.ContainsRune(reason, '\uFFFD') {
					t.Errorf("no manifest can hold %q", reason)
				}
			}
		})
	}
}
