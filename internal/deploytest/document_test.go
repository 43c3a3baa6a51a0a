//go:build deploy

package deploytest

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// chapter is the indented blocks of a chapter of docs/deploy.md, each without
// its indent.
func chapter(t *testing.T, title string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "deploy.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## "+title+"\n")
	if !found {
		t.Fatalf("docs/deploy.md has no chapter %q", title)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var block []string
	for _, line := range append(strings.Split(rest, "\n"), "end") {
		if strings.HasPrefix(line, "       ") || strings.HasPrefix(line, "    ") && !strings.HasPrefix(strings.TrimSpace(line), "|") {
			block = append(block, line)
			continue
		}
		if line != "" && len(block) > 0 {
			blocks = append(blocks, unindented(block))
			block = nil
		}
	}
	return blocks
}

func unindented(lines []string) string {
	indent := regexp.MustCompile(`^ *`).FindString(lines[0])
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(strings.TrimPrefix(line, indent) + "\n")
	}
	return b.String()
}

// one finds the only block that holds a text.
func one(t *testing.T, blocks []string, holds string) string {
	t.Helper()
	var found []string
	for _, b := range blocks {
		if strings.Contains(b, holds) {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d blocks hold %q:\n%s", len(found), holds, strings.Join(blocks, "---\n"))
	}
	return found[0]
}

func TestTheFiveStepsOfTheDocumentInstallTheChart(t *testing.T) {
	p := startPlane(t)
	dir := t.TempDir()
	program, lifeboat := build(t)
	lifeboat("", "init", "--cluster", "prod-eu1", "--store", "s3://my-bucket/lifeboat", "--out", filepath.Join(dir, "kit"), "--host-root", t.TempDir())
	repository, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(repository, "deploy"), filepath.Join(dir, "deploy")); err != nil {
		t.Fatal(err)
	}
	sh := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-eu", "-c", script)
		cmd.Dir = dir
		cmd.Env = []string{
			"HOME=" + dir, "KUBECONFIG=" + p.kubeconfig(),
			"PATH=" + strings.Join([]string{filepath.Dir(program), filepath.Dir(tool(t, "helm")), filepath.Dir(tool(t, "kube/kubectl")), os.Getenv("PATH")}, ":"),
		}
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", script, err, out, errs.String())
		}
		return string(out)
	}
	sh(one(t, chapter(t, "Before: keys, bucket, credentials"), "aws_access_key_id"))
	steps := chapter(t, "Helm, in five steps")
	sh(one(t, steps, "create secret generic lifeboat-signing"))
	values := strings.ReplaceAll(one(t, steps, "cluster: prod-eu1"), "age1…", recipient)
	if err := os.WriteFile(filepath.Join(dir, "values.yaml"), []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	sh(one(t, steps, "helm install"))

	// Everything that the pods mount is there, under the keys that they name.
	got := parse(t, sh("kubectl -n lifeboat get daemonset lifeboat -o yaml"))[0]
	for _, v := range got.part("spec.template.spec").list("volumes") {
		for _, source := range v.list("projected.sources") {
			for kind, plural := range map[string]string{"secret": "secrets", "configMap": "configmaps"} {
				s := source.part(kind)
				if s == nil {
					continue
				}
				code, answer := p.ask("GET", "/api/v1/namespaces/lifeboat/"+plural+"/"+s["name"].(string), "", nil)
				if code != http.StatusOK {
					t.Errorf("%s %v: %d", kind, s["name"], code)
					continue
				}
				for _, item := range s.list("items") {
					if _, ok := parse(t, answer)[0].part("data")[item["key"].(string)]; !ok {
						t.Errorf("%s %v has no %v", kind, s["name"], item["key"])
					}
				}
			}
		}
	}
	// The namespace as the document labels it admits the pod.
	if err := p.apply(podIn("lifeboat", "agent", got.part("spec.template.spec")), true); err != nil {
		t.Error(err)
	}
	sh("helm upgrade lifeboat deploy/helm/lifeboat --namespace lifeboat --values values.yaml --set prune.enabled=true")
	sh("kubectl -n lifeboat get cronjob lifeboat-prune")
	sh(one(t, chapter(t, "Taking it out"), "helm uninstall"))
	sh("kubectl -n lifeboat get secret lifeboat-signing") // stays

	// kubectl's own kustomize makes the same of the example.
	if diff := cmp.Diff(kustomized(t, "overlays/example"), parse(t, sh("kubectl kustomize deploy/kustomize/overlays/example"))); diff != "" {
		t.Errorf("kubectl's kustomize differs (-kustomize +kubectl):\n%s", diff)
	}
}
