package browsertest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"lifeboat/internal/status"
	"lifeboat/internal/web/webtest"
)

// sticksOut lists what reaches beyond the window and is not inside something
// that scrolls.
const sticksOut = `(() => {
  const wide = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > wide) found.push("the page is " + document.documentElement.scrollWidth + " wide, the window " + wide);
  for (const e of document.querySelectorAll("header *, main *, footer *")) {
    const box = e.getBoundingClientRect();
    let scroller = e.parentElement;
    while (scroller && getComputedStyle(scroller).overflowX === "visible") scroller = scroller.parentElement;
    const inside = scroller && scroller !== document.documentElement && scroller !== document.body && wide > 767;
    if (box.width > 0 && box.right > wide + 0.5 && !inside && !e.closest("thead, .unseen")) found.push(e.tagName + "." + e.getAttribute("class") + " ends at " + box.right);
  }
  return found.slice(0, 10);
})()`

func TestEveryStateLoadsFitsAndAsksNobodyElse(t *testing.T) {
	for _, state := range webtest.States() {
		for _, width := range []int64{phone, 768, desk} {
			t.Run(fmt.Sprintf("%s at %d", state.Name, width), func(t *testing.T) {
				a, b := serve(t, state.Status, ""), open(t, width)
				b.load(a)
				for _, e := range eval[[]string](b, sticksOut) {
					t.Error(e)
				}
				if eval[bool](b, `"hacked" in window`) {
					t.Error("text of others ran as a script")
				}
				if n := eval[int](b, `document.querySelectorAll("img, iframe, object, form, main script").length`); n != 0 {
					t.Errorf("%d elements that the page does not have", n)
				}
				if name := eval[string](b, `document.title`); strings.TrimSpace(name) == "" {
					t.Error("no title")
				}
				b.quiet(a.URL + "/")
			})
		}
	}
}

func TestWhatMattersIsSeenAtOnceOnATelephone(t *testing.T) {
	a, b := serve(t, webtest.Late(), ""), open(t, phone)
	b.load(a)
	seen := eval[map[string]any](b, `(() => {
	  const of = (selector) => { const e = document.querySelector(selector), r = e.getBoundingClientRect(); return {text: e.innerText, bottom: r.bottom, size: parseFloat(getComputedStyle(e).fontSize)}; };
	  return {age: of(".age"), word: of(".hero .badge"), overall: of(".overall"), problem: of(".problems li")};
	})()`)
	part := func(name string) map[string]any { return seen[name].(map[string]any) }
	text := func(name string) string {
		return strings.Join(strings.Fields(strings.ReplaceAll(part(name)["text"].(string), "\u00a0", " ")), " ")
	}
	if got := text("age"); got != "2 d 2 h ago" || part("age")["size"].(float64) < 36 || part("age")["bottom"].(float64) > 740 {
		t.Errorf("age %q, %v", got, part("age"))
	}
	if text("word") != "Late" || text("overall") != "Critical" || part("overall")["bottom"].(float64) > 740 {
		t.Errorf("words %q, %q at %v", text("word"), text("overall"), part("overall"))
	}
	if got := text("problem"); !strings.Contains(got, "Critical") || !strings.Contains(got, "etcd/events") || !strings.Contains(got, "one is planned every 6 h") {
		t.Errorf("first problem %q", got)
	}
}

func TestTablesAreCardsWithLabelsOnATelephone(t *testing.T) {
	a, b := serve(t, webtest.Well(), ""), open(t, phone)
	b.load(a)
	if got := eval[string](b, `getComputedStyle(document.querySelector(".chains tbody tr:nth-child(2)")).display`); got != "grid" {
		t.Errorf("a row is %s", got)
	}
	// The labels are in the style, the headings in the page: they must agree.
	for _, table := range []string{"chains", "stores", "jobs", "runs", "certificates"} {
		pairs := eval[[][]string](b, `(() => {
		  const table = document.querySelector("table.`+table+`"), heads = [...table.querySelectorAll("thead th")].map(e => e.textContent.trim());
		  const row = [...table.querySelectorAll("tbody tr")].find(r => r.cells.length === heads.length);
		  return [...row.cells].map((c, i) => [heads[i], c.tagName === "TH" ? "" : getComputedStyle(c, "::before").content.replaceAll('"', "")]);
		})()`)
		for _, pair := range pairs[1:] {
			if pair[1] == "none" && slices.Contains([]string{"Message", "Subject"}, pair[0]) {
				continue // speak for themselves
			}
			if pair[0] != pair[1] {
				t.Errorf("%s: the card says %q, the heading %q", table, pair[1], pair[0])
			}
		}
	}
}

// faint lists texts whose contrast with what is behind them is below 4.5.
const faint = `(() => {
  const parse = (c) => { const n = c.match(/[\d.]+/g).map(Number); return {rgb: n.slice(0, 3), alpha: n.length > 3 ? n[3] : 1}; };
  const light = (rgb) => { const [r, g, b] = rgb.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.alpha === 1) return c.rgb; } return [255, 255, 255]; };
  const found = []; let checked = 0;
  for (const e of document.body.querySelectorAll("*")) {
    if (e.closest("svg, script, [hidden], .unseen, .skip") || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e), a = light(parse(style.color).rgb), b = light(behind(e)), ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    checked++;
    if (ratio < 4.5) found.push(e.tagName + " " + e.textContent.slice(0, 30) + ": " + ratio.toFixed(2));
  }
  if (checked < 20) found.push("only " + checked + " texts found");
  return found.slice(0, 10);
})()`

func TestColoursFollowThePreferenceAndCanBeRead(t *testing.T) {
	for _, state := range []struct {
		name   string
		status *status.Status
	}{{"well", webtest.Well()}, {"broken", webtest.Broken()}, {"store down", webtest.StoreDown()}, {"not loaded", webtest.NotLoaded()}} {
		a, b := serve(t, state.status, ""), open(t, desk)
		for scheme, ground := range map[string]string{"light": "rgb(244, 246, 248)", "dark": "rgb(16, 21, 26)"} {
			b.scheme(scheme)
			b.load(a)
			if got := eval[string](b, `getComputedStyle(document.body).backgroundColor`); got != ground {
				t.Errorf("%s, %s: the ground is %s, want %s", state.name, scheme, got, ground)
			}
			for _, text := range eval[[]string](b, faint) {
				t.Errorf("%s, %s: %s", state.name, scheme, text)
			}
		}
		b.media("print", "dark")
		if got := eval[string](b, `getComputedStyle(document.body).backgroundColor`); got != "rgb(255, 255, 255)" {
			t.Errorf("%s: printed on %s", state.name, got)
		}
		for _, text := range eval[[]string](b, faint) {
			t.Errorf("%s, printed: %s", state.name, text)
		}
	}
}

func TestChartHasOneMarkARun(t *testing.T) {
	s := webtest.Well()
	s.Runs = s.Runs[:40]
	a, b := serve(t, s, ""), open(t, phone)
	b.load(a)
	marks := eval[[]map[string]any](b, `[...document.querySelectorAll("figure g[class]")].map(g => {
	  const r = g.getBoundingClientRect(), svg = g.ownerSVGElement.getBoundingClientRect();
	  return {title: g.querySelector("title").textContent, width: r.width, height: r.height, inside: r.left >= svg.left - 1 && r.right <= svg.right + 1 && r.top >= svg.top - 1 && r.bottom <= svg.bottom + 1, failed: g.classList.contains("bad")};
	})`)
	if len(marks) != len(s.Runs) {
		t.Fatalf("%d marks for %d runs", len(marks), len(s.Runs))
	}
	failed := 0
	for _, m := range marks {
		// An SVG path without a fill has the box of its line, of no width.
		if m["height"].(float64) < 1 || m["inside"] != true || len(m["title"].(string)) < 20 {
			t.Errorf("mark %v", m)
		}
		if m["failed"] == true {
			failed++
		}
	}
	want := 0
	for _, r := range s.Runs {
		if r.Result == status.Failed {
			want++
		}
	}
	if failed != want || want == 0 {
		t.Errorf("%d marks are those of failures, want %d", failed, want)
	}
}

func TestABrowserAsksForTheToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("s3cret-of-the-agent\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, b := serve(t, webtest.Well(), path), open(t, desk)
	answers := []*fetch.AuthChallengeResponse{
		{Response: fetch.AuthChallengeResponseResponseProvideCredentials, Username: "me", Password: "wrong"},
		{Response: fetch.AuthChallengeResponseResponseProvideCredentials, Username: "me", Password: "s3cret-of-the-agent"},
	}
	asked, asks := make(chan *fetch.AuthChallenge, 10), make(chan *fetch.EventAuthRequired, 10)
	paused := make(chan fetch.RequestID, 10)
	if err := chromedp.Listen(b.ctx, func(event any) {
		switch e := event.(type) {
		case *fetch.EventRequestPaused:
			paused <- e.RequestID
		case *fetch.EventAuthRequired:
			asks <- e
		}
	}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for n := 0; ; {
			var err error
			select {
			case <-ended:
				return
			case id := <-paused:
				_, err = chromedp.Call(b.ctx, fetch.ContinueRequest, fetch.ContinueRequestParams{RequestID: id})
			case e := <-asks:
				answer := answers[min(n, len(answers)-1)]
				n++
				asked <- e.AuthChallenge
				_, err = chromedp.Call(b.ctx, fetch.ContinueWithAuth, fetch.ContinueWithAuthParams{RequestID: e.RequestID, AuthChallengeResponse: answer})
			}
			if err != nil && b.ctx.Err() == nil {
				t.Errorf("answer the browser: %v", err)
			}
		}
	}()
	yes := true
	send(b, fetch.Enable, fetch.EnableParams{HandleAuthRequests: &yes})
	b.load(a)
	if len(asked) != 2 {
		t.Errorf("asked %d times, want once and again after a wrong one", len(asked))
	}
	if challenge := <-asked; challenge.Scheme != "basic" || !strings.Contains(challenge.Realm, "the token as the password") {
		t.Errorf("asked with %+v", challenge)
	}
	if got := eval[string](b, `document.querySelector("h1").innerText`); got != "prod-eu1-7f3a91c2" {
		t.Errorf("heading %q", got)
	}
	// Looking again needs no second prompt.
	late := webtest.Late()
	a.set(late)
	b.look()
	b.until("the new status", `document.title.startsWith("Critical")`)
}

func TestThePageLooksAgainAndSaysWhenItCant(t *testing.T) {
	many := webtest.Many(60, 1)
	a, b := serve(t, many, ""), open(t, desk)
	b.load(a)
	eval[chromedp.Void](b, `document.querySelector("#rest").open = true; window.same = 1`)
	later := webtest.Many(60, 1)
	later.Cluster, later.Now = "renamed", later.Now.Add(time.Minute)
	a.set(later)
	b.look()
	b.until("the new name", `document.querySelector("h1").textContent === "renamed"`)
	if !eval[bool](b, `window.same === 1 && document.querySelector("#rest").open && document.querySelector("#old").hidden`) {
		t.Error("the page was loaded anew, closed what was open, or says that it is old")
	}
	if n := eval[int](b, `document.querySelectorAll("main").length * 100 + document.querySelectorAll("h1").length`); n != 101 {
		t.Errorf("mains and headings: %d", n)
	}
	well := webtest.Well()
	a.set(well)
	b.look()
	b.until("the announcement", `document.querySelector("#live").textContent.includes("All is well")`)
	if got := eval[string](b, `document.querySelector("link[rel=icon]").href`); !strings.Contains(got, "1a6b3c") {
		t.Errorf("the icon is not that of a well cluster: %s", got)
	}
	b.quiet(a.URL + "/")

	a.CloseClientConnections()
	a.Close()
	b.look()
	b.until("the warning", `!document.querySelector("#old").hidden`)
	if got := eval[string](b, `document.querySelector("#old").textContent`); !strings.Contains(got, "What you see is old") {
		t.Errorf("warning %q", got)
	}
	if !eval[bool](b, `document.querySelector("h1").textContent === "prod-eu1-7f3a91c2"`) {
		t.Error("what was known is gone")
	}
}

func TestLookingAgainKeepsTheKeyboardAndTheScrolledTableWhereTheyWere(t *testing.T) {
	a, b := serve(t, webtest.Many(60, 1), ""), open(t, 800)
	b.load(a)
	for _, selector := range []string{"#rest > summary", ".scroll[aria-labelledby=h-chains]"} {
		later := webtest.Many(60, 1)
		later.Cluster = "cluster of " + selector
		a.set(later)
		eval[chromedp.Void](b, `document.querySelector("`+selector+`").focus(); document.querySelector(".scroll").scrollLeft = 40`)
		b.look()
		b.until("the new name", `document.querySelector("h1").textContent === "cluster of `+selector+`"`)
		if got := eval[float64](b, `document.activeElement.matches("`+selector+`") ? document.querySelector(".scroll").scrollLeft : -1`); got != 40 {
			t.Errorf("%s: the focus is lost (-1), or the table is scrolled to %v", selector, got)
		}
	}
}

func TestWhatAReaderSelectsStays(t *testing.T) {
	a, b := serve(t, webtest.Well(), ""), open(t, desk)
	b.load(a)
	eval[chromedp.Void](b, `getSelection().selectAllChildren(document.querySelector("h1"))`)
	later := webtest.Well()
	later.Cluster = "renamed"
	a.set(later)
	b.look()
	time.Sleep(300 * time.Millisecond)
	if got := eval[string](b, `getSelection().toString() + " " + document.querySelector("h1").textContent`); got != "prod-eu1-7f3a91c2 prod-eu1-7f3a91c2" {
		t.Errorf("selected and shown: %q", got)
	}
	eval[chromedp.Void](b, `getSelection().removeAllRanges(); document.dispatchEvent(new Event("visibilitychange"))`)
	b.until("the new name", `document.querySelector("h1").textContent === "renamed"`)
}

func TestThePageNeedsNoScript(t *testing.T) {
	a, b := serve(t, webtest.Broken(), ""), open(t, desk)
	send(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.load(a)
	for _, want := range []string{"Recovery point", "Critical", "Rolled back", "kubeadm certs renew all"} {
		if text := eval[string](b, `document.body.innerText`); !strings.Contains(text, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	b.quiet(a.URL + "/")
}

func TestKeyboard(t *testing.T) {
	a, b := serve(t, webtest.Many(60, 1), ""), open(t, desk)
	b.load(a)
	b.press(kb.Tab)
	if got := eval[string](b, `document.activeElement.className + " " + (document.activeElement.getBoundingClientRect().left >= 0)`); got != "skip true" {
		t.Errorf("first comes %q, want the way to the content, in sight", got)
	}
	b.press(kb.Enter)
	if got := eval[string](b, `document.activeElement.id`); got != "main" {
		t.Errorf("it leads to %q", got)
	}
	reached := []string{}
	for range 12 {
		b.press(kb.Tab)
		reached = append(reached, eval[string](b, `document.activeElement.tagName + " " + (document.activeElement.getAttribute("aria-labelledby") ?? "") + " " + getComputedStyle(document.activeElement).outlineStyle`))
	}
	for _, want := range []string{"DIV h-chains solid", "SUMMARY  solid", "DIV h-runs solid"} {
		if !slices.Contains(reached, want) {
			t.Errorf("the keyboard does not reach %q with an outline: %q", want, reached)
		}
	}
}

func TestScreenReadersGetHeadingsLandmarksAndTables(t *testing.T) {
	for _, width := range []int64{desk, phone} {
		a, b := serve(t, webtest.Broken(), ""), open(t, width)
		b.load(a)
		nodes := send(b, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes
		names := map[string][]string{}
		for _, node := range nodes {
			if node.Ignored || node.Role == nil {
				continue
			}
			role, name := strings.Trim(string(node.Role.Value), `"`), ""
			if node.Name != nil {
				name = strings.Trim(string(node.Name.Value), `"`)
			}
			names[role] = append(names[role], name)
		}
		headings := names["heading"]
		for _, want := range []string{"prod-eu1-7f3a91c2", "Recovery point", "Overall", "What is wrong", "Chains", "etcd/main", "Stores", "Jobs", "Last runs", "Certificates of this node"} {
			if !slices.Contains(headings, want) {
				t.Errorf("%d: no heading %q in %q", width, want, headings)
			}
		}
		for role, want := range map[string]int{"banner": 1, "main": 1, "contentinfo": 1, "table": 5} {
			if len(names[role]) != want {
				t.Errorf("%d: %d of role %s, want %d", width, len(names[role]), role, want)
			}
		}
		for role, want := range map[string]string{"columnheader": "Revision", "rowheader": "s3://backups-eu-central-1/prod", "region": "What is wrong"} {
			if !slices.Contains(names[role], want) {
				t.Errorf("%d: no %s %q in %q", width, role, want, names[role])
			}
		}
		charts := append(names["image"], names["img"]...)
		if !slices.ContainsFunc(charts, func(name string) bool { return strings.Contains(name, "runs, ") && strings.Contains(name, "the last") }) {
			t.Errorf("%d: no chart in words: %q", width, charts)
		}
		if len(names["alert"]) != 0 {
			t.Errorf("%d: an alert on a new page: %q", width, names["alert"])
		}
	}
}
