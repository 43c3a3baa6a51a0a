package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	shipped = "../../deploy/prometheus/"
	manual  = "../../docs/alerts.md"
)

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// alert is one rule of rules.yaml.
type alert struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string  `yaml:"name"`
			Rules []alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal([]byte(read(t, shipped+"rules.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	if len(all) < 20 {
		t.Fatalf("only %d alerts in rules.yaml", len(all))
	}
	return all
}

// sections are the manual's texts below "### Heading".
func sections(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, part := range strings.Split("\n"+read(t, manual), "\n### ")[1:] {
		heading, text, _ := strings.Cut(part, "\n")
		text, _, _ = strings.Cut(text, "\n## ")
		found[heading] = text
	}
	return found
}

func TestEveryAlertHasWhatItsReaderNeeds(t *testing.T) {
	runbook := sections(t)
	names := map[string]bool{}
	for _, a := range alerts(t) {
		if names[a.Alert] {
			t.Errorf("%s is there twice: their runbooks would be one", a.Alert)
		}
		names[a.Alert] = true
		if !slices.Contains([]string{"critical", "warning"}, a.Labels["severity"]) {
			t.Errorf("%s has the severity %q", a.Alert, a.Labels["severity"])
		}
		for _, annotation := range []string{"summary", "description"} {
			if a.Annotations[annotation] == "" {
				t.Errorf("%s has no %s", a.Alert, annotation)
			}
		}
		if want := "docs/alerts.md#" + strings.ToLower(a.Alert); a.Annotations["runbook_url"] != want {
			t.Errorf("%s has the runbook_url %q, want %q", a.Alert, a.Annotations["runbook_url"], want)
		}
		text, ok := runbook[a.Alert]
		if !ok {
			t.Errorf("docs/alerts.md has no section %s", a.Alert)
			continue
		}
		for _, part := range []string{"*Means:*", "*Look at:*", "*Do:*"} {
			if !strings.Contains(text, part) {
				t.Errorf("the runbook of %s lacks %q", a.Alert, part)
			}
		}
		if want := fmt.Sprintf("`%s`", a.Labels["severity"]); !strings.Contains(text, want) {
			t.Errorf("the runbook of %s does not say %s", a.Alert, want)
		}
	}
	for heading := range runbook {
		if strings.HasPrefix(heading, "Lifeboat") && !names[heading] {
			t.Errorf("docs/alerts.md explains %s, which is no alert", heading)
		}
	}
}

func TestTheManualListsEveryMetric(t *testing.T) {
	text := read(t, manual)
	var missing []string
	for _, f := range families {
		labels := make([]string, 0, len(f.labels))
		for _, l := range f.labels {
			labels = append(labels, "`"+l+"`")
		}
		row := fmt.Sprintf("| `%s` | %s | %s | %s |", f.name, f.kind, strings.Join(labels, " "), f.help)
		if !strings.Contains(text, row+"\n") {
			missing = append(missing, row)
		}
	}
	if len(missing) > 0 {
		t.Errorf("docs/alerts.md lacks\n%s", strings.Join(missing, "\n"))
	}
	for _, name := range names(text) {
		if !declared(name) {
			t.Errorf("docs/alerts.md tells of %s, which is not exported", name)
		}
	}
}

var metricName = regexp.MustCompile(`\blifeboat_[a-z0-9_]+[a-z0-9]`)

func names(text string) []string { return metricName.FindAllString(text, -1) }

func declared(name string) bool {
	return slices.ContainsFunc(families, func(f *family) bool {
		if f.kind == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if name == f.name+suffix {
					return true
				}
			}
		}
		return name == f.name
	})
}

// selector is a metric's name with the labels that it is selected by.
var selector = regexp.MustCompile(`\b(lifeboat_[a-z0-9_]+)\{([^}]*)\}`)

func checkExpression(t *testing.T, where, expr string) {
	t.Helper()
	for _, name := range names(expr) {
		if !declared(name) {
			t.Errorf("%s asks for %s, which is not exported", where, name)
		}
	}
	for _, match := range selector.FindAllStringSubmatch(expr, -1) {
		for _, matcher := range strings.Split(match[2], ",") {
			label := strings.TrimSpace(regexp.MustCompile(`[=!]`).Split(matcher, 2)[0])
			if !slices.ContainsFunc(families, func(f *family) bool {
				return strings.HasPrefix(match[1], f.name) && slices.Contains(append([]string{"cluster", "node", "le"}, f.labels...), label)
			}) {
				t.Errorf("%s selects %s by the label %q, which it has not", where, match[1], label)
			}
		}
	}
}

func TestTheRulesAskForMetricsThatExist(t *testing.T) {
	for _, a := range alerts(t) {
		if len(names(a.Expr)) == 0 {
			t.Errorf("%s asks for no metric of ours", a.Alert)
		}
		checkExpression(t, a.Alert, a.Expr)
	}
}

// dashboard is what the tests need of Grafana's JSON.
type dashboard struct {
	UID    string  `json:"uid"`
	Panels []panel `json:"panels"`
}

type panel struct {
	ID      int                      `json:"id"`
	Title   string                   `json:"title"`
	Type    string                   `json:"type"`
	Grid    struct{ X, Y, W, H int } `json:"gridPos"`
	Targets []struct {
		Expr string `json:"expr"`
	} `json:"targets"`
	Description string `json:"description"`
}

func theDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, shipped+"dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTheDashboardAsksForMetricsThatExist(t *testing.T) {
	d := theDashboard(t)
	ids := map[int]bool{}
	asked := 0
	for i, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id of another one", p.Title)
		}
		ids[p.ID] = true
		if p.Grid.W <= 0 || p.Grid.H <= 0 || p.Grid.X < 0 || p.Grid.X+p.Grid.W > 24 {
			t.Errorf("panel %q lies outside: %+v", p.Title, p.Grid)
		}
		for _, q := range d.Panels[:i] {
			if p.Grid.X < q.Grid.X+q.Grid.W && q.Grid.X < p.Grid.X+p.Grid.W && p.Grid.Y < q.Grid.Y+q.Grid.H && q.Grid.Y < p.Grid.Y+p.Grid.H {
				t.Errorf("panels %q and %q overlap", p.Title, q.Title)
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q has no description or asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			asked++
			checkExpression(t, p.Title, target.Expr)
			if !strings.Contains(target.Expr, `cluster=~"$cluster"`) {
				t.Errorf("panel %q does not heed the chosen cluster: %s", p.Title, target.Expr)
			}
		}
	}
	if asked < 15 {
		t.Errorf("only %d expressions", asked)
	}
}
