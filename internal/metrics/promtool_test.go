package metrics

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// promtool finds Prometheus' tool, where the tests of alerts are asked for:
// LIFEBOAT_TEST_ALERTS=1 (make test-alerts).
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if os.Getenv("LIFEBOAT_TEST_ALERTS") == "" {
		t.Skip("needs Prometheus' promtool: run make test-alerts")
	}
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatalf("%v: install it, on Debian with apt-get install --no-install-recommends prometheus", err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = filepath.FromSlash(shipped)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPromtoolAcceptsTheRules(t *testing.T) { promtool(t, "check", "rules", "rules.yaml") }

func TestAlertsFireWhenTheyShould(t *testing.T) {
	for _, file := range []string{"rules_test.yaml", "rules_long_test.yaml"} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			promtool(t, "test", "rules", file)
		})
	}
}

// Grafana's variables become what they stand for; what is left must be PromQL.
func TestPromtoolParsesTheDashboard(t *testing.T) {
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	for _, p := range theDashboard(t).Panels {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$cluster", ".*", "$__rate_interval", "5m").Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q has a variable that the dashboard does not declare: %s", p.Title, target.Expr)
			}
			rules = append(rules, rule{"dashboard:panel", expr})
		}
	}
	var file bytes.Buffer
	if err := yaml.NewEncoder(&file).Encode(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}}); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(name, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", name)
}
