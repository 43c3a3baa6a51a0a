package metrics

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// ruleTest is one case of rules_test.yaml or rules_long_test.yaml.
type ruleTest struct {
	Name     string        `yaml:"name"`
	Interval time.Duration `yaml:"interval"`
	Series   []struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	} `yaml:"input_series"`
	Asked []struct {
		Expr    string        `yaml:"expr"`
		At      time.Duration `yaml:"eval_time"`
		Samples []any         `yaml:"exp_samples"`
	} `yaml:"promql_expr_test"`
}

// ways are those in which every alert is tried; the head of rules_test.yaml says
// what each means.
var ways = []string{"fires", "quiet", "absent", "gap", "restart"}

// absence are the alerts on series that are not there: without any they fire.
var absence = []string{"LifeboatMetricsAbsent"}

var (
	askedAlert = regexp.MustCompile(`ALERTS\{alertstate="firing",alertname="(\w+)"\}`)
	repeated   = regexp.MustCompile(`x(\d+)$`)
)

// gap is from when to when a series is not there that ends and begins again.
func gap(values string, interval time.Duration) (from, to time.Duration, there bool) {
	samples, ended := 0, false
	for _, part := range strings.Fields(values) {
		missing, n := part == "stale" || strings.HasPrefix(part, "_"), 1
		if match := repeated.FindStringSubmatch(part); match != nil {
			n, _ = strconv.Atoi(match[1])
			if !missing {
				n++ // a value, and so many times its successor
			}
		}
		at := time.Duration(samples) * interval
		switch {
		case part == "stale":
			from, ended = at, true
		case ended && !missing:
			return from, at, true
		}
		samples += n
	}
	return 0, 0, false
}

// tried is the ways in which a case tries an alert.
func (test ruleTest) tried(a alert) (found []string) {
	own := names(a.Expr)
	var fed bool
	var gone, back time.Duration // of all its own series that end and begin again
	for _, s := range test.Series {
		name, _, _ := strings.Cut(s.Series, "{")
		if !slices.Contains(own, name) {
			continue
		}
		fed = true
		if from, to, there := gap(s.Values, test.Interval); there {
			gone, back = max(gone, from), max(back, to)
		}
	}
	pending, _ := time.ParseDuration(strings.Replace(a.For, "1d", "24h", 1)) // none is 0
	for _, asked := range test.Asked {
		match := askedAlert.FindStringSubmatch(asked.Expr)
		if match == nil || match[1] != a.Alert {
			continue
		}
		fires := len(asked.Samples) > 0
		switch {
		case fires:
			found = append(found, "fires")
		case fed && asked.At > pending:
			found = append(found, "quiet")
		}
		if !fed && asked.At > pending && fires == slices.Contains(absence, a.Alert) {
			found = append(found, "absent")
		}
		switch {
		case back == 0 || asked.At < gone:
		case asked.At < back:
			found = append(found, "gap")
		default:
			found = append(found, "restart")
		}
	}
	return found
}

// Every alert is tried firing, not firing, without its series, and after these
// ended and began again.
func TestEveryAlertIsTried(t *testing.T) {
	var tests []ruleTest
	for _, file := range []string{"rules_test.yaml", "rules_long_test.yaml"} {
		var parsed struct{ Tests []ruleTest }
		if err := yaml.Unmarshal([]byte(read(t, shipped+file)), &parsed); err != nil {
			t.Fatal(err)
		}
		tests = append(tests, parsed.Tests...)
	}
	for _, a := range alerts(t) {
		var found []string
		for _, test := range tests {
			found = append(found, test.tried(a)...)
		}
		for _, way := range ways {
			if !slices.Contains(found, way) {
				t.Errorf("%s has no case of the kind %q", a.Alert, way)
			}
		}
	}
}
