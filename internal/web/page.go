package web

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"strings"
	"time"

	"lifeboat/internal/status"
)

// maxPageBytes bounds the page whatever the status holds: it is looked at over
// a telephone on a bad day.
const maxPageBytes = 64 << 10

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

var (
	style  = dense(pageCSS)
	script = dense(pageJS)

	// policy is the page's Content-Security-Policy: nothing but its own style
	// and script, and its own address to look again.
	policy = strings.Join([]string{
		"default-src 'none'",
		"style-src '" + digest(style) + "'",
		"script-src '" + digest(script) + "'",
		"connect-src 'self'",
		"img-src data:",
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
	}, "; ")

	page = template.Must(template.New("page").Parse(dense(pageHTML)))
)

// digest is a source expression of a Content-Security-Policy.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// dense drops indentation, empty lines and lines that are comments.
func dense(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "// ") {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// limits say how much of each list is shown, and how long a text may be, in
// characters. status.json has all of it.
type limits struct {
	problems, stores, chains, rest, jobs, strips, marks, runs, certificates, failures int
	name, text                                                                        int
}

var fullLimits = limits{
	problems: 40, stores: 20, chains: 24, rest: 300, jobs: 24, strips: 12, marks: status.MaxRuns,
	runs: 12, certificates: 40, failures: 5, name: 200, text: 500,
}

// shorter is a page of about half the size.
func (l limits) shorter() limits {
	half := func(n int) int { return max(1, n/2) }
	return limits{
		problems: half(l.problems), stores: half(l.stores), chains: half(l.chains), rest: half(l.rest), jobs: half(l.jobs),
		strips: half(l.strips), marks: half(l.marks), runs: half(l.runs), certificates: half(l.certificates), failures: half(l.failures),
		name: max(40, l.name/2), text: max(60, l.text/2),
	}
}

// render is the page for a status, never larger than maxPageBytes.
func render(s *status.Status) ([]byte, error) {
	for l := fullLimits; ; l = l.shorter() {
		var b bytes.Buffer
		if err := page.Execute(&b, newView(s, l)); err != nil {
			return nil, fmt.Errorf("render the status page: %w", err)
		}
		if b.Len() <= maxPageBytes || l == l.shorter() {
			return b.Bytes(), nil
		}
	}
}

// moment is a time as the page shows it: relative, with the absolute one
// behind it. The zero moment is never.
type moment struct {
	Text string // 14 min ago
	UTC  string // 2026-11-21 11:49:02 UTC
	ISO  string // for the datetime attribute
}

// Known reports whether there is such a time.
func (m moment) Known() bool { return m.ISO != "" }

// view is what the template shows. Texts of others are cleaned, and escaped by
// the template.
type view struct {
	Style  template.CSS
	Script template.JS
	Icon   template.URL

	Cluster, Node, Version string
	Title                  string
	Up                     moment
	Now                    moment
	Clock                  string // Now as hours, minutes and seconds
	Loaded                 bool

	Overall  verdict
	Sentence string // what Overall means, and what next
	Point    pointView
	Facts    []fact

	Problems     []problemView
	Chains       []chainView
	Rest         []restView
	RestLevel    level // of those that are in Rest: always good but where there are too many
	Recorders    []recorderView
	Stores       []storeView
	Jobs         []jobView
	Strips       []strip
	Runs         []runView
	Certificates []certificateView

	// How many more there are than shown.
	MoreProblems, MoreChains, MoreRecorders, MoreStores, MoreJobs, MoreRuns, MoreCertificates int
}

type pointView struct {
	Verdict verdict
	Age     string // 2 h 14 min; empty: there is none
	Parts   []part // the same, apart
	Ahead   bool   // the recovery point lies in the future
	At      moment
	Chain   string
	Detail  string
}

// part is a number with its unit, of an age in large type.
type part struct{ Number, Unit string }

type fact struct {
	Name  string
	Value string
	At    moment // instead of Value
	Note  string
}

type problemView struct {
	Verdict          verdict
	Subject, Message string
}

type chainView struct {
	Name     string
	Verdict  verdict
	Point    moment
	Planned  string
	InStores []inStoreView
}

type inStoreView struct {
	Store                       string
	Verdict                     verdict
	AsOf                        moment // known: the store no longer answers, and this is old
	Newest, Whole, Proved, Lock moment
	Revision, Keys              string
	Stored, Plain               string
	Backups, Total              string
	Head                        string
	Failures                    []string
	MoreFailures                int
	Full                        bool // the chain holds fulls: it has revisions and proofs
}

type restView struct {
	Name  string
	Point moment
}

// recorderView is a recorder at one store.
type recorderView struct {
	Chain, Store string
	Verdict      verdict
	Point        moment
	Revision     string
	Segments     string
	Behind       string
	Why          string
}

type storeView struct {
	URL      string
	Verdict  verdict
	Answered moment
	Clock    verdict
	Error    string
}

type jobView struct {
	Name, Target    string
	Schedule, Every string
	Verdict         verdict
	Last, Attempt   moment
	Due             moment
	Overdue         bool
	Why             string
}

type runView struct {
	Started       moment
	Name, Target  string
	Verdict       verdict
	Took          string
	Stored, Plain string
	Message       string
}

type certificateView struct {
	Name, Subject string
	CA            bool
	Verdict       verdict
	NotAfter      moment
}

// builder makes a view.
type builder struct {
	s    *status.Status
	now  time.Time
	l    limits
	down map[string]bool // stores that don't answer now, by URL
}

func newView(s *status.Status, l limits) *view {
	b := &builder{s: s, now: s.Now, l: l, down: map[string]bool{}}
	for _, store := range s.Stores {
		b.down[store.URL] = store.Error != ""
	}
	v := &view{
		Style: template.CSS(style), Script: template.JS(script),
		Cluster: b.name(s.Cluster), Node: b.name(s.Node), Version: b.name(s.Version),
		Up: b.moment(s.Started), Now: b.moment(s.Now), Loaded: s.Loaded,
	}
	if v.Now.Known() {
		v.Clock = s.Now.UTC().Format("15:04:05")
	}
	v.Point = b.point()
	v.Problems, v.MoreProblems = b.problems()
	v.Chains, v.Rest, v.MoreChains = b.chains()
	v.Recorders, v.MoreRecorders = b.recorders()
	v.Stores, v.MoreStores = b.stores()
	v.Jobs, v.MoreJobs = b.jobs()
	v.Strips = b.strips()
	v.Runs, v.MoreRuns = b.runs()
	v.Certificates, v.MoreCertificates = b.certificates()
	v.Overall, v.Sentence = b.overall(v.Point.Verdict)
	v.Facts = b.facts()
	v.Title = v.Overall.Word
	if v.Point.Age != "" {
		v.Title += " · " + v.Point.Age
	}
	if v.Cluster != "" {
		v.Title += " · " + v.Cluster
	}
	v.Icon = icon(v.Overall.Level)
	return v
}

func (b *builder) name(text string) string { return clean(text, b.l.name) }
func (b *builder) text(text string) string { return clean(text, b.l.text) }

func (b *builder) moment(t time.Time) moment {
	if t.IsZero() {
		return moment{}
	}
	t = t.UTC()
	return moment{Text: relative(t, b.now), UTC: t.Format("2006-01-02 15:04:05 UTC"), ISO: t.Format("2006-01-02T15:04:05Z")}
}

// icon is a lifebuoy in the colour of the level, for the browser's tab.
func icon(l level) template.URL {
	colour := map[level]string{good: "1a6b3c", warn: "b06a00", bad: "b3261e"}[l]
	if colour == "" {
		colour = "5a6672"
	}
	return template.URL("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E" +
		"%3Ccircle cx='8' cy='8' r='5.5' fill='none' stroke='%23" + colour + "' stroke-width='4'/%3E" +
		"%3Cpath d='M8 0v5M8 11v5M0 8h5M11 8h5' stroke='%23fff' stroke-width='2'/%3E%3C/svg%3E")
}

// shown is how many of n to show, and how many are left.
func shown(n, limit int) (show, more int) {
	show = min(n, limit)
	return show, n - show
}
