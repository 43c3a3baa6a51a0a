package recoverykit

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"text/template"
	"time"

	"lifeboat/internal/manifest"
)

//go:embed sheet.md.tmpl
var sheetText string

var sheetTemplate = template.Must(template.New("sheet").Funcs(template.FuncMap{
	"when": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	// Text of others stands as code, in which Markdown has no marks.
	"code":      code,
	"indented":  indented,
	"size":      size,
	"s3":        func(url string) bool { return strings.HasPrefix(url, "s3://") },
	"first":     func(h manifest.Hash) string { return fmt.Sprintf("%.16s", h.String()) },
	"authority": authority,
	"number":    func(i int) int { return i + 1 },
}).Parse(sheetText))

// sheet is the kit's first page: what differs from cluster to cluster.
func (k *Kit) sheet(config []byte) (string, error) {
	var b strings.Builder
	err := sheetTemplate.Execute(&b, struct {
		*Kit
		Name, TrustText, ConfigText string
	}{k, k.name(), string(k.Trust), string(config)})
	if err != nil {
		return "", fmt.Errorf("write the kit's first page: %w", err)
	}
	return b.String(), nil
}

// StoreNumber is a store's number in the list of the first page; 0 if it is not
// there.
func (k *Kit) StoreNumber(url string) int {
	return 1 + slices.IndexFunc(k.Stores, func(s Store) bool { return s.URL == url })
}

// code is a span of code, also within a table.
func code(text string) string {
	text = strings.NewReplacer("`", "'", "|", `\|`, "\n", " ", "\r", " ").Replace(text)
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}

// indented is text as an indented block of code.
func indented(text string) string {
	lines := strings.Split(strings.Trim(strings.ReplaceAll(text, "\r", ""), "\n"), "\n")
	return "    " + strings.Join(lines, "\n    ")
}

// size writes a size for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
