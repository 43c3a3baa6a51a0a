//go:build deploy

package deploytest

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// update writes what is generated from the chart: its schema and the
// kustomization's objects.
var update = flag.Bool("update", false, "write the schema and the kustomization from the chart")

// tool is a program that `make test-deploy` builds.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", "tools", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing (%v): run make test-deploy", name, err)
	}
	return path
}

// run returns what a program prints on its standard output, and its errors.
func run(t testing.TB, program string, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(program, args...)
	home := t.TempDir()
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")} // nobody's own settings and plugins
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// minimal is what must be given and nothing else.
func minimal() []string {
	return []string{"-f", deploy("helm", "lifeboat", "ci", "minimal-values.yaml")}
}

// template renders the chart as release lifeboat in the namespace lifeboat.
func template(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return run(t, tool(t, "helm"), append([]string{"template", "lifeboat", deploy("helm", "lifeboat"), "--namespace", "lifeboat"}, args...)...)
}

// rendered is the chart's objects with the minimal values and these.
func rendered(t testing.TB, args ...string) []object {
	t.Helper()
	text, err := template(t, append(minimal(), args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, text)
}

// object is any Kubernetes object, or a part of one.
type object map[string]any

func parse(t testing.TB, text string) (out []object) {
	t.Helper()
	for _, document := range documents(text) {
		var o object
		if err := yaml.UnmarshalStrict([]byte(document), &o); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		if len(o) > 0 {
			out = append(out, o)
		}
	}
	return out
}

// documents splits a stream of YAML.
func documents(text string) (out []string) {
	for _, d := range strings.Split("\n"+text, "\n---") {
		if d = strings.TrimSpace(d); d != "" {
			out = append(out, d+"\n")
		}
	}
	return out
}

// kind finds the only object of a kind.
func kind(t testing.TB, objects []object, kind string) object {
	t.Helper()
	var found []object
	for _, o := range objects {
		if o["kind"] == kind {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects are a %s, want one", len(found), kind)
	}
	return found[0]
}

func has(objects []object, kind string) bool {
	for _, o := range objects {
		if o["kind"] == kind {
			return true
		}
	}
	return false
}

// at walks down to a value: at("spec.containers.0.args"). It is nil where the
// way ends.
func (o object) at(path string) any {
	var here any = map[string]any(o)
	for _, step := range strings.Split(path, ".") {
		switch v := here.(type) {
		case map[string]any:
			here = v[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(v) {
				return nil
			}
			here = v[i]
		default:
			return nil
		}
	}
	return here
}

// list is the maps of a list.
func (o object) list(path string) (out []object) {
	items, _ := o.at(path).([]any)
	for _, item := range items {
		if m, ok := item.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

// part is a map within.
func (o object) part(path string) object {
	m, _ := o.at(path).(map[string]any)
	return m
}

func (o object) name() string { return fmt.Sprint(o.at("metadata.name")) }

// named finds an element of a list by its name.
func named(list []object, name string) object {
	for _, o := range list {
		if o["name"] == name {
			return o
		}
	}
	return nil
}
