package web

import (
	"bytes"
	"encoding/xml"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/status"
	"lifeboat/internal/web/webtest"
)

var update = flag.Bool("update", false, "write golden files")

// mustRender is the page for a status.
func mustRender(t *testing.T, s *status.Status) string {
	t.Helper()
	page, err := render(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

func TestPageOfEveryStateIsTheGoldenOne(t *testing.T) {
	for _, state := range webtest.States() {
		t.Run(state.Name, func(t *testing.T) {
			got := mustRender(t, state.Status)
			got = strings.Replace(got, style, "page.css", 1)
			got = strings.Replace(got, script, "page.js", 1)
			path := filepath.Join("testdata", state.Name+".html")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the page differs from %s; if it should: go test ./internal/web -update, and look at the difference", path)
			}
		})
	}
}

func TestGoldenFilesAreThoseOfTheStates(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.html"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, state := range webtest.States() {
		names = append(names, state.Name+".html")
	}
	for _, file := range files {
		if !slices.Contains(names, filepath.Base(file)) {
			t.Errorf("%s belongs to no state", file)
		}
	}
}

func TestPageStaysSmallHoweverMuchThereIs(t *testing.T) {
	huge := webtest.Many(1000, 8)
	for range 400 {
		huge.Problems = append(huge.Problems, status.Problem{Severity: status.Critical, Subject: strings.Repeat("<", 5000), Message: strings.Repeat("\"", 50_000)})
		huge.Certificates = append(huge.Certificates, status.Certificate{Name: strings.Repeat("'", 5000), Subject: strings.Repeat("&", 5000), NotAfter: webtest.Now})
		huge.Jobs = append(huge.Jobs, status.Job{Kind: status.Full, Target: strings.Repeat("<", 5000), Why: strings.Repeat("<", 5000)})
		huge.Stores = append(huge.Stores, status.Store{URL: strings.Repeat("<", 5000), Error: strings.Repeat("<", 5000)})
		huge.Runs = append(huge.Runs, status.Run{Kind: status.Full, Target: strings.Repeat("<", 5000), Message: strings.Repeat("<", 50_000)})
	}
	for i := range huge.Chains {
		huge.Chains[i].Name = strings.Repeat("<", 5000) + huge.Chains[i].Name
		huge.Chains[i].InStores[0].Failures = slices.Repeat([]string{strings.Repeat("<", 5000)}, 30)
	}
	states := append(webtest.States(), webtest.State{Name: "huge", Status: huge}, webtest.State{Name: "all runs", Status: webtest.Well()})
	for _, state := range states {
		if page := mustRender(t, state.Status); len(page) > maxPageBytes {
			t.Errorf("%s: %d bytes, and %d are allowed", state.Name, len(page), maxPageBytes)
		} else if !strings.Contains(page, "</html>") {
			t.Errorf("%s: the page has no end", state.Name)
		}
	}
}

func TestTextsOfOthersAreEscapedEverywhere(t *testing.T) {
	page := mustRender(t, webtest.Hostile())
	if n := strings.Count(page, "<script>"); n != 1 {
		t.Errorf("%d script elements, want the page's own only", n)
	}
	for _, evil := range []string{"<img", "onerror=window.hacked=1>'", "\u202e", "\x00"} {
		if strings.Contains(strings.Replace(page, script, "", 1), evil) {
			t.Errorf("%q came through as it is", evil)
		}
	}
	if !strings.Contains(page, "&lt;script&gt;window.hacked=1") {
		t.Error("the hostile text is not shown at all")
	}
	checkNesting(t, page)
}

// checkNesting finds elements that were closed or opened by something that
// should have been text.
func checkNesting(t *testing.T, page string) {
	t.Helper()
	page = strings.Replace(strings.Replace(page, style, "", 1), script, "", 1)
	decoder := xml.NewDecoder(strings.NewReader(page))
	decoder.Strict = false
	decoder.AutoClose = append(xml.HTMLAutoClose, "meta")
	decoder.Entity = xml.HTMLEntity
	allowed := strings.Fields("html head meta title link style body a p main header svg circle path h1 h2 h3 span strong time div section small b dl dt dd ol ul li table thead tbody tr th td details summary figure figcaption g footer script")
	for {
		token, err := decoder.RawToken()
		if token == nil {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if !slices.Contains(allowed, start.Name.Local) {
			t.Errorf("unexpected element %s", start.Name.Local)
		}
		for _, attribute := range start.Attr {
			if strings.HasPrefix(attribute.Name.Local, "on") || attribute.Name.Local == "style" {
				t.Errorf("%s has the attribute %s, which the page's policy forbids", start.Name.Local, attribute.Name.Local)
			}
		}
	}
}

func TestPageAsksNobodyElse(t *testing.T) {
	for _, state := range webtest.States() {
		page := mustRender(t, state.Status)
		for _, link := range regexp.MustCompile(`(?:src|href|action)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
			if !slices.Contains([]string{"#main", "status.json", "metrics"}, link[1]) && !strings.HasPrefix(link[1], "data:image/svg") {
				t.Errorf("%s: link to %s", state.Name, link[1])
			}
		}
		if strings.Contains(style, "url(") || strings.Contains(style, "@import") {
			t.Error("the style loads something")
		}
	}
}

func TestPageSaysWhatIsSo(t *testing.T) {
	broken := webtest.Well()
	broken.Chains[1].InStores[0].Valid = false
	ahead := webtest.Well()
	ahead.Chains[0].RecoveryPoint = webtest.Now.Add(2 * time.Hour)
	ahead.Chains[1].RecoveryPoint = webtest.Now.Add(3 * time.Hour)
	silent := webtest.Well() // the stores don't answer, and what they said last was in time
	for i := range silent.Chains {
		silent.Chains[i].RecoveryPoint = webtest.Now.Add(-13 * time.Hour)
	}
	off := webtest.Well()
	for i := range off.Chains {
		off.Chains[i].Interval = 0
	}
	unproblematic := webtest.StoreDown()
	unproblematic.Problems = nil
	future := webtest.Well()
	future.Problems = []status.Problem{{Severity: "novel", Subject: "x", Message: "y"}}
	for _, test := range []struct {
		name           string
		status         *status.Status
		overall, point verdict
		title          string
	}{
		{"all is well", webtest.Well(), verdict{good, "All is well"}, verdict{good, "In time"}, "All is well · 3\u00a0min · prod-eu1-7f3a91c2"},
		{"nothing is claimed before the stores were asked", webtest.NotLoaded(), verdict{unknown, "Not known yet"}, verdict{unknown, "Not known yet"}, "Not known yet · prod-eu1-7f3a91c2"},
		{"an agent without a status", &status.Status{}, verdict{unknown, "Not known yet"}, verdict{unknown, "Not known yet"}, "Not known yet"},
		{"loaded, and there is nothing", &status.Status{Loaded: true, Now: webtest.Now}, verdict{bad, "Critical"}, verdict{bad, "No backup"}, "Critical"},
		{"no backup yet", webtest.Never(), verdict{bad, "Critical"}, verdict{bad, "No backup"}, "Critical · prod-eu1-7f3a91c2"},
		{"late", webtest.Late(), verdict{bad, "Critical"}, verdict{bad, "Late"}, "Critical · 2\u00a0d\u00a02\u00a0h · prod-eu1-7f3a91c2"},
		{"one store of two is down", webtest.StoreDown(), verdict{warn, "Needs attention"}, verdict{good, "In time"}, ""},
		{"the agent names no problem, but a store is down", unproblematic, verdict{warn, "Needs attention"}, verdict{good, "In time"}, ""},
		{"broken in every store", webtest.Broken(), verdict{bad, "Critical"}, verdict{bad, "In doubt: the chain is broken"}, ""},
		{"broken in one store, and the agent names no problem", broken, verdict{bad, "Critical"}, verdict{good, "In time"}, ""},
		{"a backup from the future", ahead, verdict{warn, "Needs attention"}, verdict{warn, "In the future: clocks differ"}, ""},
		{"older than two intervals, whatever the stores said last", silent, verdict{bad, "Critical"}, verdict{bad, "Late"}, ""},
		{"nothing is scheduled", off, verdict{unknown, "Not scheduled"}, verdict{unknown, "Not scheduled"}, ""},
		{"a severity that it does not know is a warning", future, verdict{warn, "Needs attention"}, verdict{good, "In time"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newView(test.status, fullLimits)
			if v.Overall != test.overall || v.Point.Verdict != test.point || test.title != "" && v.Title != test.title {
				t.Errorf("overall %v, point %v, title %q; want %v, %v, %q", v.Overall, v.Point.Verdict, v.Title, test.overall, test.point, test.title)
			}
			page := mustRender(t, test.status)
			for _, word := range []string{test.overall.Word, test.point.Word} {
				if !strings.Contains(page, word) {
					t.Errorf("the page does not say %q", word)
				}
			}
		})
	}
}

func TestChainsInTroubleComeFirstAndTheWellOnesAreALine(t *testing.T) {
	s := webtest.Many(400, 2)
	v := newView(s, fullLimits)
	if v.Chains[0].Name != "hosts/node-0012" || v.Chains[0].Verdict.Level != bad {
		t.Errorf("first is %s, %v", v.Chains[0].Name, v.Chains[0].Verdict)
	}
	if len(v.Chains) != fewChains || len(v.Rest) != 300 || v.MoreChains != 405-fewChains-300 {
		t.Errorf("%d in full, %d in short, %d more", len(v.Chains), len(v.Rest), v.MoreChains)
	}
	for i := range s.Chains {
		s.Chains[i].InStores[1].Regressed = true
	}
	v = newView(s, fullLimits)
	if len(v.Chains) != fullLimits.chains || len(v.Rest) != 0 || v.MoreChains != 405-fullLimits.chains {
		t.Errorf("all broken: %d in full, %d among the well ones, %d more", len(v.Chains), len(v.Rest), v.MoreChains)
	}
}

func TestChartHasAMarkForEveryRun(t *testing.T) {
	s := webtest.Never()
	s.Runs = append(s.Runs, status.Run{Kind: status.Verify, Started: webtest.Now.Add(-time.Hour), Result: status.Succeeded}) // took no time, stored nothing
	strips := newView(s, fullLimits).Strips
	if len(strips) != 2 || len(strips[0].Marks) != 4 || len(strips[1].Marks) != 1 {
		t.Fatalf("strips %+v", strips)
	}
	if want := "4 runs, 4 failed; the last 1\u00a0min ago: failed after 10\u00a0s"; strips[0].Summary != want {
		t.Errorf("summary %q, want %q", strips[0].Summary, want)
	}
	for _, m := range strips[0].Marks {
		if m.Level != bad || m.Cross == "" || m.Down != "" || !strings.Contains(m.Title, "Failed, 10\u00a0s") {
			t.Errorf("mark %+v", m)
		}
	}
	if first, last := strips[0].Marks[0].Title, strips[0].Marks[3].Title; first >= last {
		t.Errorf("the oldest run is not first: %q, %q", first, last)
	}
	well := webtest.Well()
	marks := 0
	for _, strip := range newView(well, fullLimits).Strips {
		marks += len(strip.Marks)
	}
	if page := mustRender(t, well); marks < 100 || strings.Count(page, "<g class=") != marks {
		t.Errorf("%d marks, and %d on the page", marks, strings.Count(page, "<g class="))
	}
}

func TestPolicyAllowsExactlyWhatThePageHolds(t *testing.T) {
	for _, state := range webtest.States() {
		page := mustRender(t, state.Status)
		for _, kind := range []string{"style", "script"} {
			parts := regexp.MustCompile(`(?s)<`+kind+`>(.*?)</`+kind+`>`).FindAllStringSubmatch(page, -1)
			if len(parts) != 1 || len(parts[0][1]) < 500 {
				t.Fatalf("%s: %d elements %s", state.Name, len(parts), kind)
			}
			if want := kind + "-src '" + digest(parts[0][1]) + "'"; !strings.Contains(policy, want) {
				t.Errorf("%s: the policy %q lacks %s", state.Name, policy, want)
			}
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("unsafe policy %s", policy)
	}
}

func TestRenderingLeavesTheStatusAlone(t *testing.T) {
	for _, state := range webtest.States() {
		before := fmt.Sprintf("%+v", state.Status)
		mustRender(t, state.Status)
		if fmt.Sprintf("%+v", state.Status) != before {
			t.Errorf("%s was changed", state.Name)
		}
	}
}

func BenchmarkPage(b *testing.B) {
	s := webtest.Many(400, 2)
	b.ReportAllocs()
	for b.Loop() {
		page, err := render(s)
		if err != nil || !bytes.Contains(page, []byte("</html>")) {
			b.Fatal(err)
		}
	}
}
