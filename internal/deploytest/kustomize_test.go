//go:build deploy

package deploytest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/config"
)

// own are lines of the chart's output that mean nothing without Helm. The
// checksum's work is done by the suffix of a generated ConfigMap's name.
var own = regexp.MustCompile(`(?m)^(# Source: .*| *app\.kubernetes\.io/managed-by: Helm| *helm\.sh/chart: .*| *checksum/config: .*| *# Only the configuration rolls.*| *# for every run\.)\n`)

// keep is Helm's, and the last annotation of a namespace.
var keep = regexp.MustCompile(`(?m)^  annotations:\n    # Uninstalling.*\n    helm\.sh/resource-policy: keep\n`)

// stripped is the chart's objects as text, by kind, without what is Helm's.
func stripped(t *testing.T) map[string]string {
	t.Helper()
	text, err := template(t, append(minimal(), "--set", "namespace.create=true", "--set", "metrics.podMonitor.enabled=true",
		"--set", "metrics.prometheusRule.enabled=true", "--set", "networkPolicy.enabled=true", "--set", "prune.enabled=true")...)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, document := range documents(text) {
		document = keep.ReplaceAllString(own.ReplaceAllString(document, ""), "")
		o := parse(t, document)[0]
		k := fmt.Sprint(o["kind"])
		if out[k] != "" {
			t.Fatalf("two objects are a %s", k)
		}
		out[k] = "# Made from the Helm chart by go test -tags deploy ./internal/deploytest -update.\n" + document
	}
	return out
}

func TestTheKustomizationIsTheChart(t *testing.T) {
	chart := stripped(t)
	for file, k := range map[string]string{
		"base/namespace.yaml":                          "Namespace",
		"base/serviceaccount.yaml":                     "ServiceAccount",
		"base/daemonset.yaml":                          "DaemonSet",
		"components/monitoring/podmonitor.yaml":        "PodMonitor",
		"components/monitoring/prometheusrule.yaml":    "PrometheusRule",
		"components/network-policy/networkpolicy.yaml": "NetworkPolicy",
		"components/prune/cronjob.yaml":                "CronJob",
	} {
		compare(t, deploy("kustomize", file), chart[k])
		delete(chart, k)
	}
	delete(chart, "ConfigMap") // the overlay's
	for k := range chart {
		t.Errorf("the kustomization has no %s", k)
	}
}

func kustomized(t *testing.T, folder string) []object {
	t.Helper()
	out, err := run(t, tool(t, "kustomize"), "build", deploy("kustomize", folder))
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

func TestTheBaseIsWhatTheChartInstalls(t *testing.T) {
	base := kustomized(t, "base")
	var kinds []string
	for _, o := range base {
		kinds = append(kinds, fmt.Sprint(o["kind"]))
		labels := o.part("metadata.labels")
		if labels["app.kubernetes.io/name"] != "lifeboat" || labels["helm.sh/chart"] != nil {
			t.Errorf("%s has labels %v", o["kind"], labels)
		}
	}
	slices.Sort(kinds)
	if want := []string{"DaemonSet", "Namespace", "ServiceAccount"}; !slices.Equal(kinds, want) {
		t.Errorf("the base has %v, want %v", kinds, want)
	}
	if diff := cmp.Diff(pod(t, rendered(t)), pod(t, base)); diff != "" {
		t.Errorf("the base's pods are not the chart's (-chart +base):\n%s", diff)
	}
	ns := kind(t, base, "Namespace")
	if ns.part("metadata.labels")["pod-security.kubernetes.io/enforce"] != "privileged" {
		t.Errorf("the namespace admits no hostPath: %v", ns)
	}
}

// With TLS kubelet must ask over HTTPS, or it kills the pods; with a token
// Prometheus must send it.
func TestTheAccessComponentIsWhatTheChartMakesOfItsSecrets(t *testing.T) {
	chart := rendered(t, "--set", "metrics.podMonitor.enabled=true", "--set", "http.tlsSecret=lifeboat-tls", "--set", "http.tokenSecret=lifeboat-http")
	for name, components := range map[string][]string{"with monitoring": {"monitoring", "access"}, "without": {"access"}} {
		above, err := filepath.Abs(deploy("kustomize"))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		up, err := filepath.Rel(dir, above)
		if err != nil {
			t.Fatal(err)
		}
		text := "resources: [" + filepath.Join(up, "base") + "]\ncomponents:\n"
		for _, c := range components {
			text += "  - " + filepath.Join(up, "components", c) + "\n"
		}
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := run(t, tool(t, "kustomize"), "build", dir)
		if err != nil {
			t.Fatal(err)
		}
		objects := parse(t, out)
		if diff := cmp.Diff(pod(t, chart), pod(t, objects)); diff != "" {
			t.Errorf("%s: the pods are not the chart's (-chart +component):\n%s", name, diff)
		}
		if !has(objects, "PodMonitor") {
			continue
		}
		if diff := cmp.Diff(kind(t, chart, "PodMonitor").part("spec"), kind(t, objects, "PodMonitor").part("spec")); diff != "" {
			t.Errorf("%s: Prometheus asks otherwise (-chart +component):\n%s", name, diff)
		}
	}
}

func TestTheExampleOverlayBuildsAConfigurationThatRollsPods(t *testing.T) {
	objects := kustomized(t, "overlays/example")
	maps := map[string]object{}
	for _, o := range objects {
		if o["kind"] == "ConfigMap" {
			maps[o.name()] = o
		}
		if o["kind"] != "Namespace" && o.at("metadata.namespace") != "lifeboat" {
			t.Errorf("%s %s is in the namespace %v", o["kind"], o.name(), o.at("metadata.namespace"))
		}
	}
	var used []string
	for _, v := range pod(t, objects).list("volumes") {
		for _, source := range v.list("projected.sources") {
			if name := source.at("configMap.name"); name != nil {
				used = append(used, fmt.Sprint(name))
			}
		}
	}
	slices.Sort(used)
	if len(used) != 2 || !strings.HasPrefix(used[0], "lifeboat-config-") || used[1] != "lifeboat-trust" || maps[used[0]] == nil || maps[used[1]] == nil {
		t.Fatalf("the pods use %v", used)
	}
	text := fmt.Sprint(maps[used[0]].part("data")["config.yaml"])
	c, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if c.Host.Root != "/host" || c.StateDir != "/var/lib/lifeboat" || c.Schedule.Prune != "" {
		t.Errorf("the example's configuration does not fit the pods: %+v", c)
	}
	if image := pod(t, objects).at("containers.0.image"); image != "registry.example/lifeboat:0.1.0" {
		t.Errorf("the image is %v", image)
	}
	for _, k := range []string{"PodMonitor", "PrometheusRule", "NetworkPolicy", "CronJob"} {
		if !has(objects, k) {
			t.Errorf("the overlay shows no %s", k)
		}
	}
}

func TestTheStaticPodIsTheDaemonSetsPod(t *testing.T) {
	text, err := os.ReadFile(deploy("static-pod", "lifeboat.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	static := parse(t, string(text))[0]
	if static["kind"] != "Pod" || static.at("metadata.namespace") != "kube-system" {
		t.Errorf("%v in %v", static["kind"], static.at("metadata.namespace"))
	}
	got, want := static.part("spec"), pod(t, rendered(t))
	// What a kubelet alone can't do: API objects, and choosing nodes.
	for _, field := range []string{"serviceAccountName", "automountServiceAccountToken", "affinity", "tolerations", "volumes"} {
		delete(want, field)
	}
	for _, v := range got.list("volumes") {
		if v["hostPath"] == nil && v["emptyDir"] == nil {
			t.Errorf("a static pod can't mount %v", v)
		}
	}
	if v := named(got.list("volumes"), "files"); v.at("hostPath.path") != "/etc/lifeboat" {
		t.Errorf("its files are %v", v)
	}
	if got["priority"] != float64(2000001000) {
		t.Errorf("priority %v is not that of system-node-critical", got["priority"])
	}
	// It must run through any taint, also those that evict.
	if got.at("tolerations.0.operator") != "Exists" || got.at("tolerations.0.key") != nil {
		t.Errorf("tolerates %v", got["tolerations"])
	}
	for _, field := range []string{"priority", "tolerations", "volumes"} {
		delete(got, field)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-DaemonSet +static pod):\n%s", diff)
	}
}
