//go:build deploy

package deploytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestARealAPIServerTakesAllOfIt(t *testing.T) {
	p := startPlane(t)
	operatorsDefinitions(t, p)
	base := kustomized(t, "base")
	if err := p.apply(kind(t, base, "Namespace"), false); err != nil {
		t.Fatal(err)
	}
	if err := p.apply(kind(t, base, "ServiceAccount"), false); err != nil {
		t.Fatal(err)
	}

	all := map[string][]object{"kustomize base": base, "kustomize example": kustomized(t, "overlays/example")}
	for _, file := range valueFiles(t) {
		text, err := template(t, "-f", file)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(file)] = parse(t, text)
	}
	kinds := map[string]bool{}
	for from, objects := range all {
		for _, o := range objects {
			kinds[fmt.Sprint(o["kind"])] = true
			if err := p.apply(o, true); err != nil {
				t.Errorf("%s: %v", from, err)
			}
		}
		// A DaemonSet is taken whatever its pods look like; so try the pod.
		if err := p.apply(podIn("lifeboat", "agent", pod(t, objects)), true); err != nil {
			t.Errorf("%s: %v", from, err)
		}
	}
	if len(kinds) != len(places)-2 { // but the definitions and bare pods
		t.Errorf("only these kinds were tried: %v", kinds)
	}

	static, err := os.ReadFile(deploy("static-pod", "lifeboat.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// No controller makes this account here; a kubelet's own pod needs none.
	if err := p.apply(object{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "default", "namespace": "kube-system"}}, false); err != nil {
		t.Fatal(err)
	}
	if err := p.apply(parse(t, string(static))[0], true); err != nil {
		t.Errorf("static pod: %v", err)
	}

	t.Run("an unknown field is refused, so these answers mean something", func(t *testing.T) {
		spec := pod(t, rendered(t))
		spec["hostNetwrok"] = true
		if err := p.apply(podIn("lifeboat", "agent", spec), true); err == nil || !strings.Contains(err.Error(), "hostNetwrok") {
			t.Errorf("%v", err)
		}
	})
	t.Run("and one within the operator's kinds, too", func(t *testing.T) { refusesMisspeltMonitors(t, p) })
	t.Run("a namespace without the label refuses the agents", func(t *testing.T) {
		for _, level := range []string{"baseline", "restricted"} {
			p.namespace(level, level)
			err := p.apply(podIn(level, "agent", pod(t, rendered(t))), true)
			if err == nil || !strings.Contains(err.Error(), `violates PodSecurity \"`+level) || !strings.Contains(err.Error(), "hostPath") {
				t.Errorf("%s: %v", level, err)
			}
		}
	})
	t.Run("the prune job runs in the strictest namespace", func(t *testing.T) {
		job := kind(t, rendered(t, "--set", "prune.enabled=true"), "CronJob").part("spec.jobTemplate.spec.template.spec")
		if err := p.apply(podIn("restricted", "prune", job), true); err != nil {
			t.Error(err)
		}
	})
	t.Run("the service account has no right", func(t *testing.T) {
		for _, c := range []struct{ verb, group, resource string }{
			{"get", "", "secrets"}, {"list", "", "nodes"}, {"get", "", "pods"}, {"create", "", "pods/exec"}, {"get", "apps", "daemonsets"},
		} {
			review, err := json.Marshal(map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": map[string]any{
				"user": "system:serviceaccount:lifeboat:lifeboat", "groups": []string{"system:serviceaccounts", "system:serviceaccounts:lifeboat", "system:authenticated"},
				"resourceAttributes": map[string]any{"namespace": "lifeboat", "verb": c.verb, "group": c.group, "resource": c.resource},
			}})
			if err != nil {
				t.Fatal(err)
			}
			code, answer := p.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "application/json", review)
			var got object
			if err := json.Unmarshal([]byte(answer), &got); code != http.StatusCreated || err != nil || got.at("status.allowed") != false {
				t.Errorf("%s %s: %d %s", c.verb, c.resource, code, answer)
			}
		}
	})
}
