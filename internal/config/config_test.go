package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"lifeboat/internal/manifest"
)

func complete() *Config {
	c := Default()
	c.Cluster, c.Node, c.Recipients = "prod-eu1", "cp1", []string{"age1abc"}
	c.Etcd = []Etcd{{Name: "main", Endpoints: []string{"https://127.0.0.1:2379", "https://10.0.0.2:2379"}, CAFile: "/ca", CertFile: "/cert", KeyFile: "/key"}, {Name: "events", Endpoints: []string{"http://127.0.0.1:2381"}}}
	c.Host.ExtraPaths = []string{"/etc/haproxy", "/opt/a b: c#d"}
	c.Stores = []Store{DefaultStore("s3://bucket/prefix"), DefaultStore("file:///var/backups")}
	c.Stores[0].S3.ObjectLock = ObjectLock{Mode: "compliance", Days: 30}
	return c
}

func TestWhatRenderWritesParseReads(t *testing.T) {
	want := complete()
	text, err := Render(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("differs (-want +got):\n%s\nin\n%s", diff, text)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		trimmed := strings.TrimSpace(line)
		if !strings.Contains(line, "# ") && !strings.HasPrefix(trimmed, "- ") {
			t.Errorf("line %d has no comment: %s", i+1, line)
		}
		if strings.Contains(line, "{") {
			t.Errorf("line %d is in flow style: %s", i+1, line)
		}
	}
}

func TestMissingKeysKeepTheirDefaults(t *testing.T) {
	got, err := Parse([]byte("cluster: a\nstores: [{url: file:///x}]\nrecipients: [age1x]\nsegments: {interval: 5s}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Schedule.Full != "0 */6 * * *" || got.Segments.Interval != Duration(5*time.Second) || got.Segments.MaxBytes != 4<<20 || got.Stores[0].S3.PathStyle != "auto" {
		t.Errorf("got %+v", got)
	}
}

func TestMistakesAreNamedWithTheirLine(t *testing.T) {
	good := "cluster: a\nstores:\n  - url: file:///x\nrecipients: [age1x]\n"
	if _, err := Parse([]byte(good + "segments: {spoolBytes: 16777216, maxBytes: 4194304}\n")); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ text, want string }{
		"a tiny spool":               {good + "segments:\n  spoolBytes: 16777215\n", "line 6: segments.spoolBytes: 16777215, want 16777216 (16 MiB) or more"},
		"a segment that fills it":    {good + "segments:\n  spoolBytes: 16777216\n  maxBytes: 4194305\n", "line 7: segments.maxBytes: 4194305, want 4194304 at the most, a quarter of segments.spoolBytes"},
		"an unknown key":             {good + "shedule: {}\n", "line 5: field shedule is unknown"},
		"an unknown nested key":      {good + "host:\n  rot: /\n", "line 6: field rot is unknown"},
		"a key that stands twice":    {good + "cluster: b\n", "line 5"},
		"a wrong type":               {good + "minStores: many\n", "line 5"},
		"a bad duration":             {good + "proof:\n  maxStall: soon\n", "soon"},
		"no cluster":                 {strings.Replace(good, "cluster: a", "node: n", 1), "cluster: give"},
		"no stores":                  {"cluster: a\nrecipients: [age1x]\n", "stores: name"},
		"no recipients":              {strings.Replace(good, "[age1x]", "[]", 1), "line 4: recipients"},
		"more stores than there are": {good + "minStores: 2\n", "line 5: minStores: 2"},
		"credentials in a URL":       {strings.Replace(good, "file:///x", "s3://key:secret@bucket", 1), "line 3: stores.0.url: credentials"},
		"a relative file URL":        {strings.Replace(good, "file:///x", "file://x/y", 1), "line 3"},
		"an unknown scheme":          {strings.Replace(good, "file:///x", "ftp://x/y", 1), "line 3"},
		"an endpoint without http":   {good + "etcd:\n  - name: main\n    endpoints:\n      - 127.0.0.1:2379\n", "line 8: etcd.0.endpoints.0"},
		"a password in an endpoint":  {good + "etcd:\n  - name: main\n    endpoints: [https://root:secret@a:1]\n", "etcd.0.endpoints.0: a user name or password"},
		"half a key pair":            {good + "etcd:\n  - name: main\n    certFile: x\n    endpoints: [http://a:1]\n", "certFile and keyFile"},
		"two etcd of one name":       {good + "etcd:\n  - {name: a, endpoints: [http://a:1]}\n  - {name: a, endpoints: [http://a:1]}\n", "line 7: etcd.1.name"},
		"a name that no chain has":   {good + "etcd:\n  - {name: a b, endpoints: [http://a:1]}\n", "line 6: etcd.0.name: \"a b\" is not letters"},
		"a node's that no chain has": {good + "node: -cp1\n", "line 5: node: \"-cp1\" is not letters"},
		"an empty file":              {"", "empty"},
		"a schedule that is none":    {good + "schedule:\n  full: every day\n", "line 6: schedule.full"},
		"a private key":              {strings.Replace(good, "age1x", "AGE-SECRET-KEY-1SECRETsecret", 1), "line 4: recipients.0: is a private key"},
		"an empty recipient":         {strings.Replace(good, "age1x", "\"\"", 1), "line 4: recipients.0"},
		"two documents":              {good + "---\ncluster: b\n", "more than one document"},
		"half of the server's pair":  {good + "http:\n  certFile: a\n", "line 5: http: certFile and keyFile"},
		"too much jitter":            {good + "schedule:\n  jitter: 11\n", "line 6: schedule.jitter: 11"},
		"a dead man without pause":   {good + "deadMan:\n  interval: 0s\n", "line 6: deadMan.interval"},
		"a key of no section":        {good + "deadMan:\n  url: https://example.org\n", "line 6: field url is unknown"},
		"a lock without days":        {good[:strings.Index(good, "recip")] + "    s3: {objectLock: {mode: compliance}}\nrecipients: [age1x]\n", "mode and days"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(test.text))
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want ErrInvalid with %q", err, test.want)
			}
			if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "config.")) {
				t.Errorf("the message shows a secret or a Go type: %v", err)
			}
		})
	}
}

// The rule for names stands here and in manifest: they must not drift apart.
func TestNamesAreThoseThatAChainMayHave(t *testing.T) {
	for _, name := range []string{
		"", "main", "cp1.example.org", "A_b-9", "-a", ".a", "_a", "a.", "a/b", "a b", "ä", "a\x00", "a\u202eb", "manifests", "data", "drills",
		strings.Repeat("a", 200), strings.Repeat("a", 201),
	} {
		for _, family := range []string{"etcd/", "hosts/"} {
			want := manifest.Chain(family + name).Check()
			if got := checkName(name); (got == nil) != (want == nil) {
				t.Errorf("%s%q: %v here, %v there", family, name, got, want)
			}
		}
	}
}

func TestALocksModeIsTakenInAnyCase(t *testing.T) {
	for _, mode := range []string{"compliance", "COMPLIANCE", "Compliance"} {
		c, err := Parse([]byte("cluster: a\nstores: [{url: s3://b, s3: {objectLock: {mode: " + mode + ", days: 7}}}]\nrecipients: [age1x]\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Stores[0].S3.ObjectLock.Mode; got != "compliance" {
			t.Errorf("%s is loaded as %q", mode, got)
		}
	}
}

func TestRelativePathsAreRelativeToTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, []byte("cluster: a\nstores: [{url: file:///x}]\nrecipients: [age1x]\nstateDir: state\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.Signing.TrustFile != filepath.Join(dir, "trust") || c.StateDir != filepath.Join(dir, "state") || c.Host.Root != "/" || c.Node == "" {
		t.Errorf("got %+v", c)
	}
}

func TestTheNextBackupIsLateAtTheSecondScheduledTime(t *testing.T) {
	c := complete()
	now := time.Date(2026, 11, 21, 13, 5, 0, 0, time.FixedZone("", 3600)) // 12:05 UTC
	for chain, want := range map[string]string{
		"etcd/main":     "2026-11-22T00:00:00Z",
		"etcd/events":   "2026-11-22T00:00:00Z",
		"hosts/cp1":     "2026-11-21T18:15:00Z",
		"etcd/imported": "",
		"drills":        "",
	} {
		got := ""
		if at := c.NextExpectedBy(chain, now); at != nil {
			got = at.Format(time.RFC3339)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", chain, got, want)
		}
	}
	c.Schedule.Full = ""
	if got := c.NextExpectedBy("etcd/main", now); got != nil {
		t.Errorf("without a schedule: %v", got)
	}
	c.Schedule.Full = "0 0 30 2 *"
	if got := c.NextExpectedBy("etcd/main", now); got != nil {
		t.Errorf("for a date that never comes: %v", got)
	}
}

func FuzzParse(f *testing.F) {
	text, err := Render(complete())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("cluster: a\nstores: [{url: s3://b}]\nrecipients: [x]\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Render(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse(again)
		if err != nil {
			t.Fatalf("what was rendered does not parse: %v\n%s", err, again)
		}
		if diff := cmp.Diff(c, back, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("differs: %s", diff)
		}
	})
}
