//go:build deploy

package deploytest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/config"
)

// pod is the DaemonSet's pod template.
func pod(t testing.TB, objects []object) object {
	t.Helper()
	return kind(t, objects, "DaemonSet").part("spec.template.spec")
}

func TestTheChartPassesHelmsOwnLint(t *testing.T) {
	for _, file := range valueFiles(t) {
		if out, err := run(t, tool(t, "helm"), "lint", "--strict", deploy("helm", "lifeboat"), "-f", file); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// valueFiles are the chart's examples, which every test of all cases goes
// through.
func valueFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(deploy("helm", "lifeboat", "ci", "*-values.yaml"))
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files of values, %v", len(files), err)
	}
	return files
}

func TestTheAgentsPodsMayDoNothingButRead(t *testing.T) {
	for _, file := range valueFiles(t) {
		text, err := template(t, "-f", file)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		objects := parse(t, text)
		p := pod(t, objects)
		for path, want := range map[string]any{
			"automountServiceAccountToken":        false,
			"enableServiceLinks":                  false,
			"hostPID":                             nil,
			"hostIPC":                             nil,
			"hostUsers":                           nil,
			"priorityClassName":                   "system-node-critical",
			"securityContext.runAsUser":           float64(0),
			"securityContext.seccompProfile.type": "RuntimeDefault",
			"initContainers":                      nil,
			"containers.1":                        nil,
			"containers.0.securityContext.allowPrivilegeEscalation": false,
			"containers.0.securityContext.privileged":               false,
			"containers.0.securityContext.readOnlyRootFilesystem":   true,
			"containers.0.securityContext.capabilities.drop":        []any{"ALL"},
			"containers.0.envFrom":                                  nil,
		} {
			if diff := cmp.Diff(want, p.at(path)); diff != "" {
				t.Errorf("%s: %s: %s", filepath.Base(file), path, diff)
			}
		}
		for _, o := range objects {
			if k := fmt.Sprint(o["kind"]); strings.Contains(k, "Role") || strings.Contains(k, "Binding") {
				t.Errorf("%s: the chart gives rights: %s %s", filepath.Base(file), k, o.name())
			}
		}
		if sa := kind(t, objects, "ServiceAccount"); sa["automountServiceAccountToken"] != false || sa["secrets"] != nil {
			t.Errorf("%s: %v", filepath.Base(file), sa)
		}
		checkMounts(t, filepath.Base(file), p)
		checkMemory(t, filepath.Base(file), p)
	}
}

// checkMounts: only the state folder can be written, everything from the host
// stands below /host, and secrets are the owner's.
func checkMounts(t *testing.T, file string, p object) {
	t.Helper()
	volumes := p.list("volumes")
	var hidden []string
	for _, m := range p.list("containers.0.volumeMounts") {
		v := named(volumes, fmt.Sprint(m["name"]))
		at := fmt.Sprint(m["mountPath"])
		switch {
		case v == nil:
			t.Errorf("%s: %s mounts no volume", file, at)
		case m["subPath"] != nil:
			t.Errorf("%s: %s is a subPath, which never sees a renewed Secret", file, at)
		case at == "/var/lib/lifeboat":
			if m["readOnly"] != nil || v.at("hostPath.type") != "DirectoryOrCreate" {
				t.Errorf("%s: the state folder: %v %v", file, m, v)
			}
			continue
		case m["readOnly"] != true:
			t.Errorf("%s: %s can be written", file, at)
		case v["hostPath"] != nil:
			want := strings.TrimSuffix("/host"+fmt.Sprint(v.at("hostPath.path")), "/")
			if at != want {
				t.Errorf("%s: %s is mounted at %s, want %s", file, v.at("hostPath.path"), at, want)
			}
			if m["mountPropagation"] == "Bidirectional" || m["mountPropagation"] != nil && m["recursiveReadOnly"] != nil {
				t.Errorf("%s: %v", file, m)
			}
		case v["emptyDir"] != nil:
			hidden = append(hidden, at)
		case v["projected"] != nil:
			if at != "/etc/lifeboat" || v.at("projected.defaultMode") != float64(0o400) {
				t.Errorf("%s: %s has mode %v", file, at, v.at("projected.defaultMode"))
			}
		default:
			t.Errorf("%s: %s is of an unexpected kind: %v", file, at, v)
		}
	}
	if want := len(volumes) + max(0, len(hidden)-1); len(p.list("containers.0.volumeMounts")) != want {
		t.Errorf("%s: %d mounts of %d volumes", file, len(p.list("containers.0.volumeMounts")), len(volumes))
	}
	// Else the agent would see, and could change, every other pod's volumes.
	if named(volumes, "host-root") != nil {
		return
	}
	kubelets := 0
	for _, kubelet := range []string{"/var/lib/kubelet", "/var/lib/k0s/kubelet"} {
		if !slices.ContainsFunc(volumes, func(v object) bool {
			folder, ok := v.at("hostPath.path").(string)
			return ok && (kubelet == folder || strings.HasPrefix(kubelet, strings.TrimSuffix(folder, "/")+"/"))
		}) {
			continue
		}
		kubelets++
		for _, want := range []string{"/host" + kubelet + "/pods", "/host" + kubelet + "/plugins"} {
			if !slices.Contains(hidden, want) {
				t.Errorf("%s: the pods see %s", file, want)
			}
		}
	}
	if kubelets == 0 {
		t.Errorf("%s: kubelet's own files are not there", file)
	}
}

// What the documents say to write for k0s is what is checked above.
func TestTheValuesForK0sAreTheDocuments(t *testing.T) {
	const line = "- {path: /var/lib/k0s, propagation: HostToContainer, hide: [kubelet/pods, kubelet/plugins]}\n"
	for name, file := range map[string]string{"the example": readText(t, deploy("helm", "lifeboat", "ci", "k0s-values.yaml")), "docs/deploy.md": readText(t, filepath.Join("..", "..", "docs", "deploy.md")), "values.yaml": readText(t, deploy("helm", "lifeboat", "values.yaml"))} {
		if !strings.Contains(file, line) {
			t.Errorf("%s lacks %s", name, line)
		}
	}
}

func readText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// checkMemory: the collector's limit is below the container's.
func checkMemory(t *testing.T, file string, p object) {
	t.Helper()
	var limit, target int
	if _, err := fmt.Sscanf(fmt.Sprint(p.at("containers.0.resources.limits.memory")), "%dMi", &limit); err != nil {
		t.Errorf("%s: memory limit: %v", file, err)
	}
	if _, err := fmt.Sscanf(fmt.Sprint(named(p.list("containers.0.env"), "GOMEMLIMIT")["value"]), "%dMiB", &target); err != nil {
		t.Errorf("%s: GOMEMLIMIT: %v", file, err)
	}
	if target > limit*85/100 || target < limit/2 {
		t.Errorf("%s: GOMEMLIMIT %d MiB beside a limit of %d MiB", file, target, limit)
	}
}

func TestWhatIsMountedBelowTheFoldersIsReadOnlyWhereKubernetesCanDoThat(t *testing.T) {
	for version, want := range map[string]any{"1.30.0": nil, "1.31.0": "IfPossible", "1.36.3": "IfPossible"} {
		for _, m := range pod(t, rendered(t, "--kube-version", version)).list("containers.0.volumeMounts") {
			switch at := fmt.Sprint(m["mountPath"]); {
			case m["name"] == "nothing":
			case at == "/host/var/lib/kubelet":
				if m["recursiveReadOnly"] != nil || m["mountPropagation"] != "HostToContainer" {
					t.Errorf("%s: %v", version, m)
				}
			case strings.HasPrefix(at, "/host"):
				if m["recursiveReadOnly"] != want {
					t.Errorf("%s: %v", version, m)
				}
			}
		}
	}
}

func TestTheAgentsPodsRunOnEveryControlPlaneNodeInAnyTrouble(t *testing.T) {
	p := pod(t, rendered(t))
	keys := map[string]bool{}
	for _, toleration := range p.list("tolerations") {
		if toleration["operator"] != "Exists" || toleration["effect"] != nil || toleration["tolerationSeconds"] != nil {
			t.Errorf("%v tolerates only some of it", toleration)
		}
		keys[fmt.Sprint(toleration["key"])] = true
	}
	for _, taint := range []string{
		"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master", "node-role.kubernetes.io/etcd",
		"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "node.kubernetes.io/memory-pressure", "node.kubernetes.io/disk-pressure",
	} {
		if !keys[taint] {
			t.Errorf("%s is not tolerated", taint)
		}
	}
	terms := p.list("affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms")
	var labels []string
	for _, term := range terms { // terms are alternatives
		for _, e := range term.list("matchExpressions") {
			labels = append(labels, fmt.Sprint(e["key"], " ", e["operator"]))
		}
	}
	if want := []string{"node-role.kubernetes.io/control-plane Exists", "node-role.kubernetes.io/master Exists"}; !slices.Equal(labels, want) {
		t.Errorf("nodes with %v, want %v", labels, want)
	}
	if p["hostNetwork"] != true || p["dnsPolicy"] != "Default" {
		t.Errorf("hostNetwork %v, dnsPolicy %v", p["hostNetwork"], p["dnsPolicy"])
	}
	if update := kind(t, rendered(t), "DaemonSet").part("spec.updateStrategy"); update["type"] != "RollingUpdate" || update.at("rollingUpdate.maxUnavailable") != float64(1) {
		t.Errorf("%v: all agents stop at once", update)
	}
}

// configuration is the rendered config.yaml.
func configuration(t testing.TB, objects []object) string {
	t.Helper()
	text, _ := kind(t, objects, "ConfigMap").part("data")["config.yaml"].(string)
	return text
}

func TestTheRenderedConfigurationIsOneThatLifeboatTakes(t *testing.T) {
	for _, file := range valueFiles(t) {
		text, err := template(t, "-f", file)
		if err != nil {
			t.Fatal(err)
		}
		objects := parse(t, text)
		if !has(objects, "ConfigMap") {
			continue // somebody else's
		}
		c, err := config.Parse([]byte(configuration(t, objects)))
		if err != nil {
			t.Errorf("%s: %v\n%s", filepath.Base(file), err, configuration(t, objects))
			continue
		}
		if c.Host.Root != "/host" || c.StateDir != "/var/lib/lifeboat" || c.Signing.KeyFile != "signing.key" || c.Signing.TrustFile != "trust" {
			t.Errorf("%s: not where the pods have it: %+v", filepath.Base(file), c)
		}
	}
}

func TestEveryKeyOfTheConfigurationReachesTheFile(t *testing.T) {
	// A configuration in which no value is a default.
	want := everything()
	text, err := config.Render(want)
	if err != nil {
		t.Fatal(err)
	}
	values := "config:\n"
	for line := range strings.Lines(string(text)) {
		values += "  " + line
	}
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := template(t, "-f", file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.Parse([]byte(configuration(t, parse(t, out))))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the pods get another configuration (-given +got):\n%s", diff)
	}
}

func TestMistakesInTheValuesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no cluster":                       {[]string{"--set", "config.cluster="}, "config.cluster"},
		"no store":                         {[]string{"--set", "config.stores=null"}, "config.stores"},
		"no recipient":                     {[]string{"--set-json", "config.recipients=[]"}, "config.recipients"},
		"an unknown value":                 {[]string{"--set", "toleration=x"}, "toleration"},
		"an unknown value further down":    {[]string{"--set", "host.mounts=root"}, "mounts"},
		"an unknown key of config.yaml":    {[]string{"--set", "config.schedule.ful=x"}, "ful"},
		"an unknown key of a store":        {[]string{"--set-json", `config.stores=[{"url":"s3://b","s3":{"regoin":"x"}}]`}, "regoin"},
		"a number where text belongs":      {[]string{"--set", "config.schedule.jitter=lots"}, "jitter"},
		"a mode of mounting there is not":  {[]string{"--set", "host.mount=all"}, "mount"},
		"a place the pods don't have":      {[]string{"--set", "config.stateDir=/data"}, "stateDir.hostPath"},
		"a root the pods don't have":       {[]string{"--set", "config.host.root=/"}, "/host"},
		"a port that is none":              {[]string{"--set-string", "config.http.listen=9478"}, "config.http.listen"},
		"a port by its name":               {[]string{"--set", "config.http.listen=:http"}, "config.http.listen"},
		"a token Prometheus doesn't know":  {[]string{"--set", "config.http.tokenFile=token", "--set", "metrics.podMonitor.enabled=true"}, "http.tokenSecret"},
		"a folder to hide from the root":   {[]string{"--set-json", `host.paths=[{"path":"/etc","hide":["/x"]}]`}, "hide"},
		"both kinds of another's settings": {[]string{"--set", "existingConfig.configMap=a", "--set", "existingConfig.secret=b"}, "existingConfig"},
	} {
		_, err := template(t, append(minimal(), c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a complaint that names %q", name, err, c.want)
		}
	}
}

func TestOnlyTheConfigurationRollsThePods(t *testing.T) {
	checksum := func(args ...string) any {
		return kind(t, rendered(t, args...), "DaemonSet").part("spec.template.metadata.annotations")["checksum/config"]
	}
	before := checksum()
	if before == nil || checksum("--set", "config.schedule.jitter=5") == before {
		t.Error("a changed configuration rolls no pod")
	}
	if checksum("--set", "metrics.podMonitor.enabled=true") != before {
		t.Error("a change elsewhere rolls the pods")
	}
	// What is renewed under a running pod must be a folder's file, not an
	// environment variable.
	for _, env := range pod(t, rendered(t)).list("containers.0.env") {
		if env.at("valueFrom.secretKeyRef") != nil || env.at("valueFrom.configMapKeyRef") != nil {
			t.Errorf("%v would need a restart", env)
		}
	}
}

func TestProbesAndMonitorsFollowTheListener(t *testing.T) {
	for name, c := range map[string]struct {
		args         []string
		port         any
		host, scheme any
	}{
		"every address":       {nil, 9478.0, nil, nil},
		"loopback":            {[]string{"--set", "config.http.listen=127.0.0.1:7000"}, 7000.0, "127.0.0.1", nil},
		"loopback, version 6": {[]string{"--set", "config.http.listen=[::1]:7000"}, 7000.0, "::1", nil},
		"any, version 6":      {[]string{"--set", "config.http.listen=[::]:7000"}, 7000.0, nil, nil},
		"TLS":                 {[]string{"--set", "http.tlsSecret=tls"}, 9478.0, nil, "HTTPS"},
		"off":                 {[]string{"--set", "config.http.listen="}, nil, nil, nil},
	} {
		args := append([]string{"--set", "metrics.podMonitor.enabled=true", "--set", "metrics.serviceMonitor.enabled=true"}, c.args...)
		objects := rendered(t, args...)
		container := pod(t, objects).list("containers")[0]
		for _, probe := range []string{"livenessProbe", "readinessProbe"} {
			if c.port == nil {
				if container[probe] != nil {
					t.Errorf("%s: there is a %s", name, probe)
				}
				continue
			}
			get := container.part(probe + ".httpGet")
			if get["port"] != c.port || get["host"] != c.host || get["scheme"] != c.scheme {
				t.Errorf("%s: %s: %v", name, probe, get)
			}
		}
		if container.at("livenessProbe.httpGet.path") == container.at("readinessProbe.httpGet.path") && c.port != nil {
			t.Errorf("%s: both probes ask the same", name)
		}
		if container.at("ports.0.hostPort") != c.port || has(objects, "PodMonitor") != (c.port != nil) || has(objects, "ServiceMonitor") != (c.port != nil) || has(objects, "Service") != (c.port != nil) {
			t.Errorf("%s: port %v; monitors %v", name, container.at("ports.0.hostPort"), has(objects, "PodMonitor"))
		}
		if c.scheme != nil && kind(t, objects, "PodMonitor").at("spec.podMetricsEndpoints.0.scheme") != "https" {
			t.Errorf("%s: Prometheus asks without TLS", name)
		}
	}
}

func TestPrometheusSendsTheToken(t *testing.T) {
	objects := rendered(t, "--set", "metrics.podMonitor.enabled=true", "--set", "metrics.serviceMonitor.enabled=true", "--set", "http.tokenSecret=web", "--set", "http.tokenKey=word")
	want := map[string]any{"type": "Bearer", "credentials": map[string]any{"name": "web", "key": "word"}}
	for _, got := range []any{
		kind(t, objects, "PodMonitor").at("spec.podMetricsEndpoints.0.authorization"),
		kind(t, objects, "ServiceMonitor").at("spec.endpoints.0.authorization"),
	} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	c, err := config.Parse([]byte(configuration(t, objects)))
	if err != nil || c.HTTP.TokenFile != "/etc/lifeboat/http-token" {
		t.Errorf("the agent asks for no token: %+v, %v", c, err)
	}
}

func TestNamesAreNoLongerThanKubernetesTakes(t *testing.T) {
	for _, o := range rendered(t, "--set", "prune.enabled=true", "--set", "fullnameOverride="+strings.Repeat("long-", 20)+"name") {
		limit := 63
		if o["kind"] == "CronJob" {
			limit = 52 // the job's own name adds a time
		}
		if len(o.name()) > limit || strings.HasSuffix(o.name(), "-") {
			t.Errorf("%s %s has %d characters, at most %d can be", o["kind"], o.name(), len(o.name()), limit)
		}
	}
}

func TestTheRulesAreThoseOfTheRulesFile(t *testing.T) {
	text, err := os.ReadFile(deploy("prometheus", "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := parse(t, string(text))[0]
	got := kind(t, rendered(t, "--set", "metrics.prometheusRule.enabled=true"), "PrometheusRule").part("spec")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(want.list("groups")) == 0 {
		t.Error("there are no rules")
	}
}

// The prune job must reach every store, also those on a port of their own.
func TestThePolicyLetsThePodsReachTheirStores(t *testing.T) {
	const usual = "53/UDP 53/TCP 443/TCP "
	store := func(i int, endpoint string) string {
		return fmt.Sprintf(`config.stores[%d]={"url":"s3://b/%d","s3":{"endpoint":%q}}`, i, i, endpoint)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"Amazon's":                {nil, usual + "2379/TCP"},
		"without a port":          {[]string{store(0, "https://minio.example")}, usual + "2379/TCP"},
		"the usual port":          {[]string{store(0, "https://minio.example:443/")}, usual + "2379/TCP"},
		"a port":                  {[]string{store(0, "https://minio.example:9000")}, usual + "9000/TCP 2379/TCP"},
		"an address":              {[]string{store(0, "https://[fd00::9]:9000/")}, usual + "9000/TCP 2379/TCP"},
		"an address, without":     {[]string{store(0, "https://[fd00::9]")}, usual + "2379/TCP"},
		"without TLS":             {[]string{store(0, "http://minio.example")}, usual + "80/TCP 2379/TCP"},
		"several":                 {[]string{store(0, "https://a.example:9000"), store(1, "https://b.example:9000"), store(2, "http://c.example:8333")}, usual + "9000/TCP 8333/TCP 2379/TCP"},
		"no S3":                   {[]string{`config.stores[0]={"url":"file:///mnt/b"}`}, usual + "2379/TCP"},
		"what is said in so many": {[]string{store(0, "https://minio.example:9000"), `networkPolicy.egress=[{"ports":[{"port":7480,"protocol":"TCP"}]}]`}, "7480/TCP"},
	} {
		args := []string{"--set", "networkPolicy.enabled=true"}
		for _, arg := range c.args {
			args = append(args, "--set-json", arg)
		}
		var ports []string
		for _, rule := range kind(t, rendered(t, args...), "NetworkPolicy").part("spec").list("egress") {
			for _, p := range rule.list("ports") {
				ports = append(ports, fmt.Sprintf("%v/%v", p["port"], p["protocol"]))
			}
		}
		if got := strings.Join(ports, " "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestPruningElsewhereNeedsNothingOfTheNode(t *testing.T) {
	objects := rendered(t, "--set", "prune.enabled=true")
	job := kind(t, objects, "CronJob").part("spec.jobTemplate.spec.template.spec")
	agent := pod(t, objects)
	for path, want := range map[string]any{
		"hostNetwork": nil, "automountServiceAccountToken": false, "restartPolicy": "Never",
		"securityContext.runAsNonRoot":                          true,
		"containers.0.securityContext.allowPrivilegeEscalation": false,
		"containers.0.securityContext.readOnlyRootFilesystem":   true,
		"containers.0.securityContext.capabilities.drop":        []any{"ALL"},
	} {
		if diff := cmp.Diff(want, job.at(path)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	secrets := func(p object) (out []string) {
		for _, v := range p.list("volumes") {
			if v["hostPath"] != nil && v["name"] != "state" && p.at("restartPolicy") == "Never" {
				t.Errorf("the job sees the host: %v", v)
			}
			for _, s := range v.list("projected.sources") {
				if name := s.at("secret.name"); name != nil {
					out = append(out, fmt.Sprint(name))
				}
			}
		}
		return out
	}
	for _, s := range secrets(job) {
		if slices.Contains(secrets(agent), s) {
			t.Errorf("agent and job share the Secret %s", s)
		}
	}
	if c, err := config.Parse([]byte(configuration(t, objects))); err != nil || c.Schedule.Prune != "" {
		t.Errorf("agents prune too: %v", err)
	}
	c, err := config.Parse([]byte(configuration(t, rendered(t, "--set", "prune.enabled=true", "--set", "config.schedule.prune=@daily"))))
	if err != nil || c.Schedule.Prune != "@daily" {
		t.Errorf("who wants both can't: %v", err)
	}
}

func TestTheNotesNameWhatMustExist(t *testing.T) {
	out, err := run(t, tool(t, "helm"), append([]string{"install", "lifeboat", deploy("helm", "lifeboat"), "--namespace", "lifeboat", "--dry-run=client"}, minimal()...)...)
	if err != nil {
		t.Fatal(err)
	}
	_, notes, _ := strings.Cut(out, "NOTES:")
	for _, want := range []string{"pod-security.kubernetes.io/enforce=privileged", "secret generic lifeboat-signing", "configmap lifeboat-trust", "secret generic lifeboat-s3", "lifeboat list"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes lack %q:\n%s", want, notes)
		}
	}
}
