package retention

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// now is a Saturday afternoon, in week 47.
var now = time.Date(2026, 11, 21, 15, 30, 0, 0, time.UTC)

// everySix are proved fulls at 0, 6, 12 and 18 o'clock of the last days, oldest
// first. The id says the day and the hour.
func everySix(days int) []Item {
	var items []Item
	for t := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).AddDate(0, 0, -days); !t.After(now); t = t.Add(6 * time.Hour) {
		items = append(items, full(t))
	}
	return items
}

// workedExample is what an earlier prune has left of a week, six-hourly fulls
// since, a night without quorum, and one that is locked.
func workedExample() []Item {
	var items []Item
	for day := 14; day < 19; day++ {
		items = append(items, full(time.Date(2026, 11, day, 18, 0, 0, 0, time.UTC)))
	}
	items[3].RetainUntil = now.AddDate(0, 0, 4)
	items = append(items, everySix(2)...)
	for i := range items {
		if items[i].ID == "1121-0000" || items[i].ID == "1121-0600" {
			items[i] = degraded(items[i])
		}
	}
	return items
}

func full(t time.Time) Item {
	return Item{ID: t.Format("0102-1504"), Kind: Full, Created: t, Proved: true}
}

func ago(d time.Duration) Item { return full(now.Add(-d)) }

func (i Item) with(change func(*Item)) Item {
	change(&i)
	return i
}

func degraded(i Item) Item {
	return i.with(func(i *Item) { i.Proved, i.Degraded = false, true; i.ID += "-degraded" })
}

func unproved(i Item) Item {
	return i.with(func(i *Item) { i.Proved = false; i.ID += "-unproved" })
}

var defaults = Policy{Hourly: 24, Daily: 14, Weekly: 8, Monthly: 12, Minimum: 3, PointInTime: 72 * time.Hour}

// scenes are decided once and written down in testdata.
var scenes = map[string]struct {
	items  []Item
	policy Policy
	now    time.Time // zero: now
}{
	"the-default-policy": {items: everySix(90), policy: defaults},
	"a-worked-example":   {items: workedExample(), policy: Policy{Hourly: 4, Daily: 3, Weekly: 2, Minimum: 2, PointInTime: 24 * time.Hour}},
	"no-rule-at-all":     {items: everySix(1)},
	"only-a-minimum":     {items: everySix(2), policy: Policy{Minimum: 3}},
	"a-point-in-time":    {items: everySix(3), policy: Policy{PointInTime: 24 * time.Hour}},
	"files-have-no-window": {
		items:  []Item{ago(50 * time.Hour).with(func(i *Item) { i.Kind = "files" }), ago(40 * time.Hour).with(func(i *Item) { i.Kind = "files" }), ago(time.Hour).with(func(i *Item) { i.Kind = "files" })},
		policy: Policy{PointInTime: 45 * time.Hour},
	},
	"a-base-that-began-just-before-the-window": {
		items:  []Item{ago(30 * time.Hour), ago(26 * time.Hour), ago(24*time.Hour + 59*time.Minute), ago(time.Hour)},
		policy: Policy{PointInTime: 24 * time.Hour},
	},
	"degraded-ones-push-out-nothing-whole": {
		items: append(everySix(3)[:9],
			degraded(ago(23*time.Hour)), degraded(ago(17*time.Hour)), degraded(ago(11*time.Hour)), degraded(ago(5*time.Hour))),
		policy: Policy{Hourly: 2, Daily: 2, Minimum: 2},
	},
	"the-newest-of-a-period-is-not-proved": {
		items:  []Item{ago(75 * time.Hour), unproved(ago(74 * time.Hour)), degraded(ago(73 * time.Hour)), unproved(ago(49 * time.Hour)), degraded(ago(48 * time.Hour)), ago(time.Hour)},
		policy: Policy{Daily: 3},
	},
	"nothing-was-ever-proved": {
		items:  []Item{unproved(ago(50 * time.Hour)), degraded(ago(49 * time.Hour)), unproved(ago(25 * time.Hour)), unproved(ago(24 * time.Hour))},
		policy: Policy{Daily: 2},
	},
	"locked-imported-and-from-the-future": {
		items: []Item{
			ago(99 * time.Hour).with(func(i *Item) { i.Imported = true; i.ID += "-imported" }),
			ago(90 * time.Hour),
			ago(80 * time.Hour).with(func(i *Item) { i.RetainUntil = now.Add(time.Hour); i.ID += "-locked" }),
			ago(70 * time.Hour).with(func(i *Item) { i.RetainUntil = now; i.ID += "-was-locked" }),
			ago(60 * time.Hour),
			ago(-Ahead).with(func(i *Item) { i.ID += "-a-little-ahead" }),
			ago(-Ahead - time.Second).with(func(i *Item) { i.ID += "-too-far-ahead" }),
			ago(-1000 * time.Hour).with(func(i *Item) { i.ID += "-far-ahead" }),
		},
		policy: Policy{Minimum: 2},
	},
	"imported-ones-when-asked": {
		items: []Item{
			unproved(ago(99 * time.Hour)).with(func(i *Item) { i.Imported = true }),
			unproved(ago(98 * time.Hour)).with(func(i *Item) { i.Imported = true }),
			unproved(ago(97 * time.Hour)).with(func(i *Item) { i.Imported = true }),
		},
		policy: Policy{Minimum: 2, Imported: true},
	},
	"equal-times-go-by-place-in-the-chain": {
		items: []Item{
			ago(time.Hour).with(func(i *Item) { i.ID = "first" }),
			ago(time.Hour).with(func(i *Item) { i.ID = "second" }),
			ago(time.Hour).with(func(i *Item) { i.ID = "third" }),
		},
		policy: Policy{Hourly: 5},
	},
	"a-clock-was-set-back-for-the-last-in-the-chain": {
		items: []Item{
			ago(30 * time.Hour), ago(20 * time.Hour), ago(10 * time.Hour), ago(9000 * time.Hour), degraded(ago(9001 * time.Hour)),
		},
		policy: Policy{Minimum: 1},
	},
	"a-host-that-is-gone-keeps-what-it-had": {
		items: everySix(20), policy: Policy{Daily: 3, Monthly: 2, Minimum: 3, PointInTime: 72 * time.Hour}, now: now.AddDate(5, 0, 0),
	},
	"weeks-are-those-of-iso-8601": {
		items: []Item{
			full(time.Date(2026, 12, 27, 23, 59, 0, 0, time.UTC)), // Sunday of week 52
			full(time.Date(2026, 12, 28, 0, 0, 0, 0, time.UTC)),   // Monday of week 53
			full(time.Date(2027, 1, 3, 23, 59, 0, 0, time.UTC)),   // Sunday of it, in another year
			full(time.Date(2027, 1, 4, 0, 0, 0, 0, time.UTC)),     // Monday of week 1
		},
		policy: Policy{Weekly: 3}, now: time.Date(2027, 1, 10, 0, 0, 0, 0, time.UTC),
	},
	"days-are-those-of-utc": {
		items: []Item{
			full(time.Date(2026, 11, 20, 0, 30, 0, 0, time.FixedZone("", 2*3600))).with(func(i *Item) { i.ID = "19th" }),
			full(time.Date(2026, 11, 20, 3, 30, 0, 0, time.FixedZone("", 2*3600))).with(func(i *Item) { i.ID = "20th" }),
			full(time.Date(2026, 11, 20, 23, 30, 0, 0, time.FixedZone("", -2*3600))).with(func(i *Item) { i.ID = "21st" }),
		},
		policy: Policy{Daily: 9},
	},
}

func TestDecisionsAreThoseWrittenDown(t *testing.T) {
	for name, scene := range scenes {
		if scene.now.IsZero() {
			scene.now = now
		}
		got := show(scene.policy, scene.now, Apply(scene.items, scene.policy, scene.now))
		path := filepath.Join("testdata", name+".golden")
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
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
	files, err := filepath.Glob("testdata/*.golden")
	if err != nil || len(files) != len(scenes) {
		t.Errorf("%d golden files for %d scenes, %v", len(files), len(scenes), err)
	}
}

// show writes decisions as people read them.
func show(p Policy, now time.Time, decisions []Decision) string {
	var b strings.Builder
	fmt.Fprintf(&b, "hourly %d, daily %d, weekly %d, monthly %d, minimum %d, point in time %s, imported %t\nnow %s\n\n",
		p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Minimum, p.PointInTime, p.Imported, now.Format("Mon 2006-01-02 15:04"))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, d := range decisions {
		verdict := "goes"
		if d.Keep {
			verdict = "stays"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", d.Created.UTC().Format("Mon 2006-01-02 15:04"), d.ID, verdict, strings.Join(d.Reasons, "; "))
	}
	_ = w.Flush()
	return b.String()
}

// TestTheManualShowsWhatIsDecided looks for the worked example in the manual.
func TestTheManualShowsWhatIsDecided(t *testing.T) {
	manual, err := os.ReadFile("../../docs/retention.md")
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/a-worked-example.golden")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(golden), "\n\n")
	want := "    " + strings.ReplaceAll(strings.TrimSpace(example), "\n", "\n    ") + "\n"
	if !strings.Contains(string(manual), want) {
		t.Errorf("docs/retention.md does not show\n%s", want)
	}
}

// draw makes up a chain and a policy.
func draw(r *rand.Rand) ([]Item, Policy) {
	p := Policy{
		Hourly: r.IntN(5) - 1, Daily: r.IntN(5) - 1, Weekly: r.IntN(4), Monthly: r.IntN(4), Minimum: r.IntN(6) - 1,
		PointInTime: time.Duration(r.IntN(100)) * time.Hour * time.Duration(r.IntN(2)), Imported: r.IntN(4) == 0,
	}
	span := []int{100, 10_000, 500_000}[r.IntN(3)] // minutes
	var items []Item
	for i := range r.IntN(60) {
		item := ago(time.Duration(r.IntN(span)-r.IntN(10)) * time.Minute)
		item.ID = fmt.Sprint(i)
		if r.IntN(4) == 0 {
			item.Kind = "files"
		}
		switch r.IntN(4) {
		case 0:
			item.Proved = false
		case 1:
			item.Proved, item.Degraded = false, true
		}
		item.Imported = r.IntN(10) == 0
		if r.IntN(10) == 0 {
			item.RetainUntil = now.Add(time.Duration(r.IntN(200)-100) * time.Minute)
		}
		items = append(items, item)
	}
	if len(items) > 0 && r.IntN(2) == 0 {
		items[r.IntN(len(items))].Latest = true
	}
	return items, p
}

// kept are the items that stay, in the order of items.
func kept(items []Item, decisions []Decision) []Item {
	return slices.DeleteFunc(slices.Clone(items), func(i Item) bool {
		return !slices.ContainsFunc(decisions, func(d Decision) bool { return d.ID == i.ID && d.Keep })
	})
}

func reversed(items []Item) []Item {
	r := slices.Clone(items)
	slices.Reverse(r)
	return r
}

// newestOf is the newest of the items that pass, by time and then place.
func newestOf(items []Item, pass func(Item) bool) (newest *Item) {
	for _, i := range items {
		if pass(i) && (newest == nil || !i.Created.Before(newest.Created)) {
			newest = &i
		}
	}
	return newest
}

func TestWhatHoldsForEveryPolicyAndChain(t *testing.T) {
	for seed := range uint64(500) {
		items, p := draw(rand.New(rand.NewPCG(seed, 1)))
		decisions := Apply(items, p, now)
		stay := kept(items, decisions)
		has := func(i *Item) bool {
			return i == nil || slices.ContainsFunc(stay, func(s Item) bool { return s.ID == i.ID })
		}
		fail := func(format string, args ...any) {
			t.Fatalf("seed %d: %s\n%s", seed, fmt.Sprintf(format, args...), show(p, now, decisions))
		}
		if len(decisions) != len(items) {
			fail("%d decisions about %d items", len(decisions), len(items))
		}
		if len(stay) < min(p.Minimum, len(items)) {
			fail("%d stay", len(stay))
		}
		for _, pass := range []func(Item) bool{
			func(Item) bool { return true },
			func(i Item) bool { return !i.Degraded },
			func(i Item) bool { return i.Proved },
		} {
			if newest := newestOf(items, pass); !has(newest) {
				fail("the newest of a class goes: %+v", newest)
			}
			if i := slices.IndexFunc(reversed(items), pass); i >= 0 && !has(&items[len(items)-1-i]) {
				fail("the last of a class goes: %+v", items[len(items)-1-i])
			}
		}
		for _, d := range decisions {
			if len(d.Reasons) == 0 || slices.Contains(d.Reasons, "") {
				fail("no reason for %+v", d)
			}
			if !d.Keep && (d.Latest || d.RetainUntil.After(now) || d.Imported && !p.Imported || d.Created.After(now.Add(Ahead))) {
				fail("%+v goes", d)
			}
		}
		checkWindow(items, stay, p, fail)
		for _, later := range []time.Duration{0, time.Hour, 1000 * time.Hour} {
			at := now.Add(later)
			once := kept(items, Apply(items, p, at))
			if twice := kept(once, Apply(once, p, at)); len(twice) != len(once) {
				fail("%s later a second run removes %d more", later, len(once)-len(twice))
			}
			// What another run removed before changes nothing that a rule keeps.
			direct, stepwise := once, kept(stay, Apply(stay, p, at))
			if len(stepwise) > len(direct) {
				fail("%s later a run in between leaves more: %d, not %d", later, len(stepwise), len(direct))
			}
		}
	}
}

// checkWindow looks at every second of the point-in-time window that could be
// restored before, at steps of ten minutes: it can be restored after, from a
// full as good.
func checkWindow(items, stay []Item, p Policy, fail func(string, ...any)) {
	if p.PointInTime <= 0 {
		return
	}
	for at := now.Add(-p.PointInTime); !at.After(now); at = at.Add(10 * time.Minute) {
		for _, proved := range []bool{false, true} {
			base := func(i Item) bool {
				return i.Kind == Full && (!i.Imported || p.Imported) && !i.Created.After(at.Add(-captureTakes)) && (i.Proved || !proved)
			}
			before, after := newestOf(items, base), newestOf(stay, base)
			if before != nil && (after == nil || after.ID != before.ID) {
				fail("%s has lost its base %+v", at, before)
			}
		}
	}
}

func TestApplyLeavesItsInputAlone(t *testing.T) {
	items := everySix(5)
	before := slices.Clone(items)
	Apply(items, defaults, now)
	if !slices.Equal(items, before) {
		t.Error("the items were changed")
	}
	if got := Apply(nil, defaults, now); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}
