package image

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// billOfMaterials compares what make sbom says, which must be of the image's
// binary, with what go.mod and go.sum say of the command's packages.
func billOfMaterials(t *testing.T, binary []byte, source string) {
	makeTarget(t, source, nil, "sbom")
	out, err := os.ReadFile(filepath.Join(source, "bin", "lifeboat.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		BOMFormat string
		Metadata  struct {
			Component struct {
				Name, Version string
				Hashes        []struct{ Alg, Content string }
			}
		}
		Components []struct {
			Name, Version, PURL string
			Properties          []struct{ Name, Value string }
		}
	}
	if err := json.Unmarshal(out, &bom); err != nil {
		t.Fatal(err)
	}
	subject := bom.Metadata.Component
	if bom.BOMFormat != "CycloneDX" || subject.Name != "lifeboat" || subject.Version != version ||
		len(subject.Hashes) != 1 || subject.Hashes[0].Content != digest(binary) {
		t.Errorf("format %s, subject %+v", bom.BOMFormat, subject)
	}
	got := map[string]string{}
	for _, c := range bom.Components {
		sum := ""
		for _, p := range c.Properties {
			if p.Name == "go:sum" {
				sum = p.Value
			}
		}
		got[c.Name] = c.Version + " " + sum
		if !strings.HasPrefix(c.PURL, "pkg:golang/") {
			t.Errorf("%s has the package URL %q", c.Name, c.PURL)
		}
	}
	delete(got, "std")

	list := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Sum}}{{end}}{{end}}", "./cmd/lifeboat")
	list.Dir = source
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOPROXY=off")
	modules, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	want := map[string]string{}
	for _, line := range strings.Split(string(modules), "\n") {
		if path, rest, ok := strings.Cut(line, " "); ok {
			want[path] = rest
		}
	}
	for path, rest := range want {
		if got[path] != rest || !strings.Contains(rest, " h1:") {
			t.Errorf("module %s is listed as %q, want %q", path, got[path], rest)
		}
	}
	for path := range got {
		if want[path] == "" {
			t.Errorf("module %s is listed and not used", path)
		}
	}
	t.Logf("%d modules", len(want))
}
