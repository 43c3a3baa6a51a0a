package browsertest

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/recoverykit"
)

// kitPage is the printed side of a recovery kit whose names are as long as they
// may come.
func kitPage(t *testing.T) []byte {
	t.Helper()
	made := time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC)
	store := config.DefaultStore("s3://a-bucket-with-a-long-name-of-the-department/and/a/prefix/that/goes/on/and/on/for/this/cluster")
	store.S3.Endpoint = "https://objects.storage.internal.example.com:9000"
	k := &recoverykit.Kit{
		Made: made, Cluster: "berlin-production-abcdefgh", IdentityKept: strings.Repeat("safe in Berlin, envelope 3; ", 12),
		Recipients: []string{"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"},
		Binary:     recoverykit.Binary{Version: "v1.2.3", Platform: "linux/amd64", Go: "go1.26", SHA256: strings.Repeat("ab", 32), Path: "/usr/local/bin/lifeboat"},
		Stores:     []recoverykit.Store{recoverykit.NewStore(store, nil)},
		Trust:      []byte("verifier " + strings.Repeat("x", 200) + "\n"), StateDir: "/var/lib/lifeboat",
		Backups: []recoverykit.Backup{{Chain: "etcd/main", ID: "jv2qunwfwwrlubjnnlxeoxtl3i", Created: made, Revision: 1048210337, Bytes: 3 << 30, Etcd: "3.6.5", Store: store.URL}},
		Heads:   []manifest.Head{{Store: store.URL, Chain: "etcd/main", Sequence: 42, Hash: manifest.Hash{1}}},
	}
	for _, name := range []string{"a", "b", "c"} {
		k.Nodes = append(k.Nodes, recoverykit.Node{
			Name: "control-plane-" + name + ".berlin.internal.example.com", Kind: recoverykit.ControlPlane, Role: "control plane, member of etcd/main (stacked)",
			Addresses: []string{"2001:db8:1234:5678:9abc:def0:1234:567" + name}, ID: "jv2qunwfwwrlubjnnlxeoxtl3i", Created: made,
		})
	}
	files, err := recoverykit.Files(k)
	if err != nil {
		t.Fatal(err)
	}
	return files[0].Text
}

func TestARecoveryKitPrintsOnA4InBlackAndAsksNobody(t *testing.T) {
	html := kitPage(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r) // the browser's look for an icon
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(html)
	}))
	t.Cleanup(server.Close)
	const paper = 680 // CSS pixels between the margins of A4
	for _, width := range []int64{paper, phone, desk} {
		b := open(t, width)
		if err := chromedp.Do(b.ctx, chromedp.Navigate(server.URL+"/")); err != nil {
			t.Fatal(err)
		}
		if width == paper {
			b.media("print", "light")
		}
		for _, e := range eval[[]string](b, sticksOut) {
			if width != phone { // where tables of a printed page may
				t.Errorf("at %d: %s", width, e)
			}
		}
		for _, e := range eval[[]string](b, `[...document.querySelectorAll("main *")].filter(e => getComputedStyle(e).color !== "rgb(0, 0, 0)" || !["rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"].includes(getComputedStyle(e).backgroundColor)).map(e => e.tagName).slice(0, 5)`) {
			t.Errorf("at %d: %s is not black on white", width, e)
		}
		if n := eval[int](b, `document.querySelectorAll("img, iframe, object, form, script, link").length`); n != 0 {
			t.Errorf("%d elements that the page does not have", n)
		}
		if width != paper {
			continue
		}
		yes := true
		pdf := send(b, page.PrintToPDF, page.PrintToPDFParams{PreferCSSPageSize: &yes}).Data
		pages := len(regexp.MustCompile(`/Type\s*/Page[^s]`).FindAll(pdf, -1))
		cases := eval[int](b, `document.querySelectorAll(".restore h2").length`)
		if cases < 15 || pages < cases {
			t.Errorf("%d pages of paper for %d cases", pages, cases)
		}
		for _, m := range regexp.MustCompile(`/MediaBox\s*\[([^\]]*)\]`).FindAllSubmatch(pdf, -1) {
			if box := string(m[1]); !strings.Contains(box, "594.9") || !strings.Contains(box, "841.9") {
				t.Errorf("a page is of %s points, not of A4", box)
			}
		}
	}
}
