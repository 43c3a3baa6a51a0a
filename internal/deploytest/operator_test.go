//go:build deploy

package deploytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// monitors are the Prometheus operator's kinds that deploy/ holds, and the
// files of their definitions.
var monitors = map[string]string{"PodMonitor": "podmonitors", "ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"}

// operatorsDefinitions gives the API server the operator's own definitions,
// which refuse every field that the operator does not know. They are in the
// operator's module, at the version and hash of internal/tools/crds.
func operatorsDefinitions(t *testing.T, p *plane) {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", "github.com/prometheus-operator/prometheus-operator")
	cmd.Dir = filepath.Join("..", "tools", "crds")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the Prometheus operator's module: %v\n%s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil || module.Dir == "" {
		t.Fatalf("%v\n%s", err, out)
	}
	for kind, name := range monitors {
		text, err := os.ReadFile(filepath.Join(module.Dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		objects := parse(t, string(text))
		if len(objects) != 1 || objects[0].at("spec.names.kind") != kind {
			t.Fatalf("%s does not define %s", name, kind)
		}
		if err := p.apply(objects[0], false); err != nil {
			t.Fatal(err)
		}
	}
	for kind := range monitors {
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			if code, answer := p.ask("GET", fmt.Sprintf(places[kind], "default"), "", nil); code == http.StatusOK {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%s is not served: %d %s", kind, code, answer)
			}
		}
	}
}

// misspelt are fields deep inside each of the operator's kinds.
var misspelt = []struct{ kind, within, field string }{
	{"PodMonitor", "spec", "podMetricEndpoints"},
	{"PodMonitor", "spec.podMetricsEndpoints.0", "honourLabels"},
	{"PodMonitor", "spec.podMetricsEndpoints.0.authorization.credentials", "keys"},
	{"ServiceMonitor", "spec", "endpoint"},
	{"ServiceMonitor", "spec.endpoints.0", "intervall"},
	{"ServiceMonitor", "spec.endpoints.0.tlsConfig", "insecureSkipVerification"},
	{"PrometheusRule", "spec.groups.0", "rule"},
	{"PrometheusRule", "spec.groups.0.rules.0", "annotation"},
}

// refusesMisspeltMonitors shows that the API server looks inside these kinds,
// so that what it takes has no field that the operator would ignore.
func refusesMisspeltMonitors(t *testing.T, p *plane) {
	whole := func() []object {
		return rendered(t, "--set", "metrics.podMonitor.enabled=true", "--set", "metrics.serviceMonitor.enabled=true", "--set", "metrics.prometheusRule.enabled=true",
			"--set", "http.tokenSecret=web", "--set", "http.tlsSecret=tls")
	}
	for _, m := range misspelt {
		o := kind(t, whole(), m.kind)
		if err := p.apply(o, true); err != nil {
			t.Fatalf("as it should be: %v", err)
		}
		within, ok := o.at(m.within).(map[string]any)
		if !ok {
			t.Fatalf("%s has no %s", m.kind, m.within)
		}
		within[m.field] = "x"
		if err := p.apply(o, true); err == nil || !strings.Contains(err.Error(), m.field) || !strings.Contains(err.Error(), "field not declared in schema") {
			t.Errorf("%s with %s.%s: %v", m.kind, m.within, m.field, err)
		}
	}
}
