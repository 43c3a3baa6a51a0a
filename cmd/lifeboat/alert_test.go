package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
	"lifeboat/internal/status"
)

// TestAnAlertReachesAPersonWhenBackupsStop runs the program beside a real etcd,
// a real Prometheus with the rules as shipped (their durations a sixtieth) and a
// real Alertmanager with the configuration as shipped, and waits at the other
// end for what a person would get.
func TestAnAlertReachesAPersonWhenBackupsStop(t *testing.T) {
	if os.Getenv("LIFEBOAT_TEST_ALERTS") == "" {
		t.Skip("needs Prometheus and Alertmanager: run make test-alerts")
	}
	for _, program := range []string{"prometheus", "prometheus-alertmanager"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: install it, on Debian with apt-get install --no-install-recommends prometheus prometheus-alertmanager", err)
		}
	}
	c := newCrew(t, "", cluster.StartBinary(t, "3.6", cluster.Options{}), nil,
		"full:", `full: "@every 4s"`, "files:", `files: "@every 4s"`)
	agent := c.agents[0]
	c.start(agent)
	pager := newPager(t)
	watch := startPrometheus(t, agent.listen, pager.url)

	c.until(40*time.Second, "three backups, known to Prometheus", func() bool {
		return len(c.fulls()) >= 3 && watch.asks(`time() - lifeboat_recovery_point_timestamp_seconds{chain="etcd/main"} < 10`)
	})
	if !watch.asks(`lifeboat_backup_last_proved_timestamp_seconds{chain="etcd/main"} > 0 and lifeboat_backup_last_whole_timestamp_seconds > 0`) {
		t.Error("no backup of a single member counts as proved and whole: LifeboatNoProvedBackup would come")
	}
	if text, err := agent.get("/metrics"); err != nil || strings.Contains(text, c.dir+"/keys") {
		t.Errorf("metrics (%v) tell of keys:\n%s", err, text)
	}
	time.Sleep(6 * time.Second) // longer than the rule waits
	if got := pager.all(".*"); len(got) > 0 {
		t.Fatalf("while backups go on there are alarms: %+v", got)
	}

	stopped := time.Now()
	c.etcd.Kill(0)
	c.until(40*time.Second, "the alarm of a backup too old", func() bool { return pager.has("LifeboatBackupTooOld") != nil })
	t.Logf("the alarm came %s after etcd was killed", time.Since(stopped).Round(time.Second))
	got := pager.has("LifeboatBackupTooOld")
	if got.Labels["chain"] != "etcd/main" || !strings.HasPrefix(got.Labels["cluster"], "prod") || got.Labels["severity"] != "critical" {
		t.Errorf("it has the labels %v", got.Labels)
	}
	if got.receiver != "night" {
		t.Errorf("it went to %q", got.receiver)
	}
	if got.Annotations["runbook_url"] != "docs/alerts.md#lifeboatbackuptooold" || !strings.Contains(got.Annotations["description"], "etcd/main") {
		t.Errorf("it has the annotations %v", got.Annotations)
	}
	if run := agent.run(status.Files); run.Result != status.Succeeded {
		t.Errorf("the files of the node, which etcd does not concern: %+v", run)
	}
	for _, other := range pager.all("LifeboatBackupTooOld") {
		if other.Labels["chain"] != "etcd/main" {
			t.Errorf("an alarm of what goes on: %v", other.Labels)
		}
	}

	gone := time.Now()
	agent.ends = true
	if err := agent.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.until(40*time.Second, "the alarm that nobody is heard", func() bool { return pager.has("LifeboatMetricsAbsent") != nil })
	t.Logf("the alarm came %s after the agent was killed", time.Since(gone).Round(time.Second))
	if got := pager.has("LifeboatMetricsAbsent"); !strings.HasPrefix(got.Labels["cluster"], "prod") {
		t.Errorf("it has the labels %v", got.Labels)
	}
}

// alarm is one alert as Alertmanager sends it.
type alarm struct {
	Status      string            `json:"status"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	receiver    string
}

// pager is where alarms arrive.
type pager struct {
	url string

	mu    sync.Mutex
	heard []alarm
}

func newPager(t *testing.T) *pager {
	p := &pager{}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var message struct {
			Receiver string  `json:"receiver"`
			Alerts   []alarm `json:"alerts"`
		}
		if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
			t.Errorf("what Alertmanager sends: %v", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, a := range message.Alerts {
			a.receiver = message.Receiver
			p.heard = append(p.heard, a)
		}
	}))
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// all are the alarms that began, by a pattern of their names.
func (p *pager) all(name string) (found []alarm) {
	pattern := regexp.MustCompile("^" + name + "$")
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.heard {
		if pattern.MatchString(a.Labels["alertname"]) && a.Status == "firing" {
			found = append(found, a)
		}
	}
	return found
}

// has is the first of them; nil: none.
func (p *pager) has(name string) *alarm {
	if found := p.all(name); len(found) > 0 {
		return &found[0]
	}
	return nil
}

// prometheus is a running one.
type prometheus struct{ url string }

const promDir = "../../deploy/prometheus/"

func startPrometheus(t *testing.T, target, webhook string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	shipped := func(name string) string {
		text, err := os.ReadFile(filepath.FromSlash(promDir + name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	alerts, own := address(t), address(t)
	manager := regexp.MustCompile(`http://127\.0\.0\.1:9999`).ReplaceAllString(shipped("alertmanager.yaml"), webhook)
	manager = regexp.MustCompile(`group_(wait|interval): .*`).ReplaceAllString(manager, "group_$1: 1s")
	background(t, "prometheus-alertmanager", "--config.file="+write("alertmanager.yaml", manager), "--storage.path="+filepath.Join(dir, "alerts"),
		"--web.listen-address="+alerts, "--cluster.listen-address=")
	write("rules.yaml", sixtieth(t, shipped("rules.yaml")))
	background(t, "prometheus", "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+own,
		"--config.file="+write("prometheus.yaml", fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yaml]
alerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}
scrape_configs:
  - job_name: any
    honor_labels: true
    static_configs: [{targets: [%q]}]
`, alerts, target)))
	return &prometheus{"http://" + own}
}

// sixtieth makes minutes out of hours and seconds out of minutes, and changes
// nothing else.
func sixtieth(t *testing.T, rules string) string {
	t.Helper()
	n := 0
	less := regexp.MustCompile(`(\[|\bfor: )(\d+)([dhm])`).ReplaceAllStringFunc(rules, func(duration string) string {
		n++
		last := len(duration) - 1
		switch duration[last] {
		case 'm':
			return duration[:last] + "s"
		case 'h':
			return duration[:last] + "m"
		default: // 24 minutes are a sixtieth of a day
			var days int
			start := strings.LastIndexAny(duration, "[ ") + 1
			if _, err := fmt.Sscan(duration[start:last], &days); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%s%dm", duration[:start], 24*days)
		}
	})
	if n < 30 {
		t.Fatalf("only %d durations in the rules", n)
	}
	return less
}

// asks reports whether a query has a result.
func (p *prometheus) asks(query string) bool {
	request, err := http.NewRequest(http.MethodGet, p.url+"/api/v1/query", nil)
	if err != nil {
		return false
	}
	values := request.URL.Query()
	values.Set("query", query)
	request.URL.RawQuery = values.Encode()
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Do(request)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	var body struct {
		Data struct {
			Result []any `json:"result"`
		} `json:"data"`
	}
	return json.NewDecoder(answer.Body).Decode(&body) == nil && len(body.Data.Result) > 0
}

func address(t *testing.T) string {
	t.Helper()
	return freeport.Address(t)
}

// background runs a program until the test ends.
func background(t *testing.T, name string, args ...string) {
	t.Helper()
	out := &output{}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out)
		}
	})
}
