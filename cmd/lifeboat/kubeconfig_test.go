package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A root's shell knows no kubeconfig, and kubectl asks localhost:8080 then.
func TestEveryPrintedKubectlKnowsItsKubeconfig(t *testing.T) {
	seen := 0
	check := func(where string, lines []string) {
		exported := false
		for _, line := range lines {
			line = strings.TrimPrefix(strings.TrimSpace(line), "here: ")
			exported = exported || strings.HasPrefix(line, "export KUBECONFIG=")
			if !strings.HasPrefix(line, "kubectl ") {
				continue
			}
			seen++
			if !exported && !strings.Contains(line, " --kubeconfig ") {
				t.Errorf("%s: no kubeconfig is known to %q", where, line)
			}
		}
	}
	documents, err := filepath.Glob("../../docs/restore*.md")
	must(t, err)
	for _, path := range documents {
		text, err := os.ReadFile(path)
		must(t, err)
		for _, page := range strings.Split(string(text), "\n## ") { // one may be all that is read
			title, _, _ := strings.Cut(page, "\n")
			var code []string
			for line := range strings.Lines(page) {
				if strings.HasPrefix(line, "    ") {
					code = append(code, line)
				}
			}
			check(filepath.Base(path)+", "+title, code)
		}
	}
	check("the report", strings.Split(joinOthers([]string{"cp2", "cp3"}, ""), "\n"))
	if seen < 7 {
		t.Errorf("found only %d commands", seen)
	}
}
