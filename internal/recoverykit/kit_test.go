package recoverykit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/docs"
	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
)

const recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"

// example is a cluster whose names are none of the documents' but one, which
// stands there for another node.
func example() *Kit {
	made := time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC)
	s3 := config.DefaultStore("s3://vault/k8s")
	s3.S3.Endpoint, s3.S3.Region = "https://minio.example:9000", "eu-1"
	return &Kit{
		Made: made, Cluster: "berlin-abcdefgh", IdentityKept: "safe in Berlin, envelope 3", Recipients: []string{recipient},
		Binary: Binary{Version: "v1.2.3", Platform: "linux/amd64", Go: "go1.26", SHA256: strings.Repeat("ab", 32), Path: "/usr/local/bin/lifeboat"},
		Stores: []Store{NewStore(s3, []byte("-----BEGIN CERTIFICATE-----\n")), NewStore(config.DefaultStore("file:///mnt/backup"), nil)},
		Nodes: []Node{
			{Name: "alpha", Kind: ControlPlane, Role: "control plane", Addresses: []string{"10.0.0.12"}, ID: "aaaa", Created: made},
			{Name: "cp1", Kind: ControlPlane, Role: "control plane", Addresses: []string{"192.0.2.2"}, ID: "bbbb", Created: made},
		},
		Backups: []Backup{{
			Chain: "etcd/main", ID: "cccc", Created: made, Revision: 48210337, Bytes: 3 << 30, Etcd: "3.6.5", Store: "s3://vault/k8s",
			Encryption: []manifest.KeyUse{{Provider: "secretbox", Key: "key1", Objects: 7}},
		}},
		Heads:    []manifest.Head{{Store: "s3://vault/k8s", Chain: "etcd/main", Sequence: 42, Hash: manifest.Hash{0xfe, 0xed}}},
		Trust:    []byte("cluster berlin-abcdefgh\n"),
		StateDir: "/var/lib/lifeboat",
	}
}

func files(t *testing.T, k *Kit) map[string]File {
	t.Helper()
	list, err := Files(k)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]File{}
	for _, f := range list {
		byName[f.Name] = f
	}
	return byName
}

func TestAKitTellsWhatIsNeeded(t *testing.T) {
	all := files(t, example())
	for _, name := range []string{HTMLFile, TextFile} {
		text := string(all[name].Text)
		for _, want := range []string{
			"safe in Berlin, envelope 3", recipient, "v1.2.3", strings.Repeat("ab", 32), "s3://vault/k8s", "file:///mnt/backup",
			"https://minio.example:9000", "alpha", "10.0.0.12", "192.0.2.2", "48210337", "3.6.5", "secretbox/key1", "feed000000000000",
			"cluster berlin-abcdefgh", "trustFile: trust",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s does not tell %q", name, want)
			}
		}
		if strings.Contains(text, "my-bucket") || strings.Contains(text, "prod-eu1") {
			t.Errorf("%s has an example's name in it", name)
		}
	}
	var facts Kit
	if err := json.Unmarshal(all[FactsFile].Text, &facts); err != nil || facts.Cluster != "berlin-abcdefgh" || len(facts.Nodes) != 2 || facts.Nodes[1].Addresses[0] != "192.0.2.2" {
		t.Errorf("%s: %v, %+v", FactsFile, err, facts)
	}
}

func TestListsForProgramsAreNeverNull(t *testing.T) {
	k := example()
	k.Nodes, k.Heads, k.Warnings = []Node{{Name: "alone", Kind: ControlPlane}}, nil, nil
	k.Backups[0].Encryption = nil
	if text := files(t, k)[FactsFile].Text; bytes.Contains(text, []byte("null")) {
		t.Errorf("%s", text)
	}
	if k.Nodes[0].Addresses != nil {
		t.Error("the kit that was given changed")
	}
}

func TestTheConfigurationReadsTheStoresAndNothingElse(t *testing.T) {
	all := files(t, example())
	c, err := config.Parse(all[ConfigFile].Text)
	if err != nil {
		t.Fatal(err)
	}
	if c.Cluster != "berlin" || c.Signing.TrustFile != TrustFile || len(c.Stores) != 2 || len(c.Etcd) != 0 {
		t.Errorf("%+v", c)
	}
	first := c.Stores[0]
	if first.URL != "s3://vault/k8s" || first.S3.Endpoint != "https://minio.example:9000" || first.S3.Region != "eu-1" || first.S3.CAFile != "store-1-ca.crt" {
		t.Errorf("%+v", first)
	}
	if string(all["store-1-ca.crt"].Text) != "-----BEGIN CERTIFICATE-----\n" {
		t.Error("the authority of the first store is not in the kit")
	}
	if c.Stores[1] != config.DefaultStore("file:///mnt/backup") {
		t.Errorf("%+v", c.Stores[1])
	}
}

func TestEqualKitsHaveEqualBytesAndRightSums(t *testing.T) {
	one, err := Files(example())
	if err != nil {
		t.Fatal(err)
	}
	other, err := Files(example())
	if err != nil {
		t.Fatal(err)
	}
	var sums strings.Builder
	for i, f := range one {
		if !bytes.Equal(f.Text, other[i].Text) || f.Name != other[i].Name {
			t.Errorf("%s is another the second time", f.Name)
		}
		sum := sha256.Sum256(f.Text)
		if f.Sum != hex.EncodeToString(sum[:]) {
			t.Errorf("%s has the sum %s", f.Name, f.Sum)
		}
		if f.Name != SumsFile {
			sums.WriteString(hex.EncodeToString(sum[:]) + "  " + f.Name + "\n")
		}
	}
	if last := one[len(one)-1]; last.Name != SumsFile || string(last.Text) != sums.String() {
		t.Errorf("the last file is %s:\n%s", last.Name, last.Text)
	}
}

func TestAKitWithASecretIsRefusedAndTheSecretNotRepeated(t *testing.T) {
	for what, change := range map[string]struct {
		secret string
		put    func(*Kit, string)
	}{
		"an identity":                {"AGE-SECRET-KEY-1QQPQYQSZQGPQYQSZQGP", func(k *Kit, s string) { k.IdentityKept = "it is " + s }},
		"a post-quantum identity":    {"AGE-SECRET-KEY-PQ-1QQPQYQSZQGPQYQSZ", func(k *Kit, s string) { k.Binary.Kept = s }},
		"one in small letters":       {"age-secret-key-1qqpqyqszqgpqyqszqgp", func(k *Kit, s string) { k.Warnings = []string{s} }},
		"a plugin's identity":        {"AGE-PLUGIN-YUBIKEY-1QQPQYQSZQGPQYQS", func(k *Kit, s string) { k.IdentityKept = s }},
		"a signing key":              {"PRIVATE+KEY+berlin+0a0b0c0d+AAAAAAA", func(k *Kit, s string) { k.Trust = []byte(s) }},
		"a private key beside a CA":  {"-----BEGIN EC PRIVATE KEY-----", func(k *Kit, s string) { k.Stores[0].CA = []byte("-----BEGIN CERTIFICATE-----\n" + s) }},
		"an access key":              {"AKIAIOSFODNN7EXAMPLE", func(k *Kit, s string) { k.IdentityKept = s }},
		"a password in an endpoint":  {"https://user:geheim@minio", func(k *Kit, s string) { k.Stores[0].S3.Endpoint = s }},
		"a secret of this machine":   {"correct horse battery", func(k *Kit, s string) { k.Secrets, k.IdentityKept = [][]byte{[]byte(s + "\n")}, "say "+s }},
		"a token of service account": {"eyJhbGciOiJSUzI1NiJ9.eyJzdWIi.c2ln", func(k *Kit, s string) { k.Binary.Kept = s }},
	} {
		k := example()
		change.put(k, change.secret)
		_, err := Files(k)
		if !errors.Is(err, ErrSecret) {
			t.Errorf("%s: error %v", what, err)
		} else if strings.Contains(strings.ToLower(err.Error()), strings.ToLower(change.secret)) {
			t.Errorf("%s: the error repeats it: %v", what, err)
		}
	}
}

func TestWordsOfOthersAreTextAndNothingElse(t *testing.T) {
	k := example()
	k.IdentityKept = "**safe** <script>alert(1)</script>\n\n# Berlin [x](http://evil) | `a"
	k.Nodes[0].Name = "a|b<img src=x>"
	k.Warnings = []string{"store said <b>no</b>"}
	html := string(files(t, k)[HTMLFile].Text)
	for _, bad := range []string{"<script>", "<strong>safe", "<img", "<b>no", "evil\"", ">Berlin "} {
		if strings.Contains(html, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	for _, want := range []string{"&lt;script&gt;", "a|b&lt;img src=x&gt;", "&lt;b&gt;no"} {
		if !strings.Contains(html, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestThePageNeedsNothingFromOutsideAndItsLinksLeadSomewhere(t *testing.T) {
	html := string(files(t, example())[HTMLFile].Text)
	for _, m := range regexp.MustCompile(`(?i)\b(src|href|action)="([^"]*)"|url\(|@import`).FindAllStringSubmatch(html, -1) {
		target, ok := strings.CutPrefix(m[2], "#")
		if !ok || m[1] != "href" {
			if strings.HasPrefix(m[2], "https://") && m[1] == "href" {
				continue // for a reader; nothing is fetched
			}
			t.Errorf("the page asks for %s", m[0])
			continue
		}
		if !strings.Contains(html, `id="`+target+`"`) {
			t.Errorf("the link to #%s leads nowhere", target)
		}
	}
	if !strings.Contains(html, "default-src 'none'") || !strings.Contains(html, "@page") {
		t.Error("the page has no policy, or no style for paper")
	}
}

func TestLinksToPagesThatAreNotThereBecomeText(t *testing.T) {
	html, err := render("t", []docs.Page{
		{Name: "restore.md", Text: "# A b: `c`\n\n[up](#a-b-c) [next](other.md#x-1) [all](other.md) [gone](gone.md#y) **[both](gone.md)**\n"},
		{Name: "other.md", Text: "# X 1\n"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`<h1 id="p0-a-b-c">`, `<a href="#p0-a-b-c">up</a>`, `<a href="#p1-x-1">next</a>`, `<a href="#p1-">all</a>`, ` gone `, `<strong>both</strong>`, `<section id="p1-" class="other">`, `<h1 id="p1-x-1">`,
	} {
		if !strings.Contains(string(html), want) {
			t.Errorf("no %s in\n%s", want, html)
		}
	}
}

func TestExamplesAreFilledInOnceAndWhole(t *testing.T) {
	k := example()
	for text, want := range map[string]string{
		"lifeboat list --store s3://my-bucket/lifeboat --cluster prod-eu1": "lifeboat list --store s3://vault/k8s --cluster berlin",
		// cp1 is alpha here, and cp2 is the node that is called cp1: nothing is filled in twice.
		"cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380": "alpha=https://10.0.0.12:2380,cp1=https://192.0.2.2:2380",
		"etcd-cp1 hosts/cp1. (cp1)":                             "etcd-alpha hosts/alpha. (alpha)",
		"cp3 at 10.0.0.13":                                      "NODE-3 at ADDRESS-3",
		"--rename cp1=cp4 --address 10.0.0.11=10.0.0.44":        "--rename alpha=NEW-NAME --address 10.0.0.12=NEW-ADDRESS",
		"cp10 xcp1 cp1.example.org 10.0.0.110 110.0.0.11":       "cp10 xcp1 cp1.example.org 10.0.0.110 110.0.0.11",
		"at 10.0.0.11. Then":                                    "at 10.0.0.12. Then",
		"nothing":                                               "nothing",
	} {
		if got := fill(text, k.values()); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := fill("e1=https://10.0.0.31:2380", k.values()); got != "alpha=https://10.0.0.12:2380" {
		t.Errorf("etcd on the control-plane nodes: %q", got)
	}
	k.Nodes, k.Stores = nil, nil
	if got := fill("cp1 10.0.0.11 cp2", k.values()); got != "NODE-1 ADDRESS-1 NODE-2" {
		t.Errorf("without nodes: %q", got)
	}
}

func TestAnIPv6AddressHasBracketsBeforeAPortAlone(t *testing.T) {
	k := example()
	k.Nodes = []Node{{Name: "a", Kind: ControlPlane, Addresses: []string{"fd00::2"}}, {Name: "b", Kind: ControlPlane, Addresses: []string{"fd00::3"}}}
	for text, want := range map[string]string{
		"--peer-url https://10.0.0.11:2380":                     "--peer-url https://[fd00::2]:2380",
		"cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380": "a=https://[fd00::2]:2380,b=https://[fd00::3]:2380",
		"e1=https://10.0.0.31:2380":                             "a=https://[fd00::2]:2380",
		"--address 10.0.0.11=10.0.0.44, at 10.0.0.11: it":       "--address fd00::2=NEW-ADDRESS, at fd00::2: it",
		"cp3=https://10.0.0.13:2380":                            "NODE-3=https://ADDRESS-3:2380",
	} {
		if got := fill(text, k.values()); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	text := string(files(t, k)[TextFile].Text)
	if strings.Contains(text, "//fd00") || !strings.Contains(text, "--peer-url https://[fd00::2]:2380") {
		t.Error("the pages have an IPv6 address without brackets in a URL")
	}
}

func TestHostsOfEtcdAreNoControlPlaneNodes(t *testing.T) {
	k := example()
	k.Nodes = []Node{
		{Name: "master1", Kind: ControlPlane, Addresses: []string{"192.0.2.1"}},
		{Name: "etcd1", Kind: EtcdHost, Addresses: []string{"192.0.2.11"}}, {Name: "etcd2", Kind: EtcdHost, Addresses: []string{"192.0.2.12"}}, {Name: "x"},
	}
	if got := fill("cp1 10.0.0.11 cp2 e1 10.0.0.31 e2 e3", k.values()); got != "master1 192.0.2.1 NODE-2 etcd1 192.0.2.11 etcd2 NODE-3" {
		t.Errorf("%q", got)
	}
	text := string(files(t, k)[TextFile].Text)
	for _, want := range []string{"--node etcd1 --members all --share", "--node master1 --dry-run", "--name etcd1 --peer-url https://192.0.2.11:2380"} {
		if !strings.Contains(text, want) {
			t.Errorf("the pages lack %q", want)
		}
	}
	if strings.Contains(text, "for three nodes.") {
		t.Error("nodes are said to be left out")
	}
}

func TestAKitSaysWhichNodesItsCommandsLeaveOut(t *testing.T) {
	k := example()
	k.Nodes = nil
	for _, name := range []string{"n1", "n2", "n3", "n4", "n5"} {
		k.Nodes = append(k.Nodes, Node{Name: name, Kind: ControlPlane})
	}
	if text := string(files(t, k)[TextFile].Text); !strings.Contains(text, "are for three nodes.**") || !strings.Contains(text, "`n4`, `n5`; and name them in each `--initial-cluster`") {
		t.Error("it does not say so")
	}
}

func TestAKitIsWrittenWholeOrNotAtAll(t *testing.T) {
	list, err := Files(example())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "a", "kit")
	if others, err := Write(dir, list, false); err != nil || len(others) > 0 {
		t.Fatal(others, err)
	}
	for _, f := range list {
		info, err := os.Stat(filepath.Join(dir, f.Name))
		if err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v", f.Name, info, err)
		}
	}
	if _, err := Write(dir, list, false); !errors.Is(err, ErrExists) {
		t.Errorf("again: %v", err)
	}

	// Replacing keeps what is not the kit's.
	key := filepath.Join(dir, "recovery.key")
	if err := os.WriteFile(key, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	k := example()
	k.IdentityKept = "elsewhere"
	list, err = Files(k)
	if err != nil {
		t.Fatal(err)
	}
	if others, err := Write(dir, list, true); err != nil || !slices.Equal(others, []string{"recovery.key"}) {
		t.Errorf("replacing: %q, %v", others, err)
	}
	if text, _ := os.ReadFile(key); string(text) != "precious" {
		t.Error("replacing changed a file that is not the kit's")
	}
	if text, _ := os.ReadFile(filepath.Join(dir, TextFile)); !bytes.Contains(text, []byte("elsewhere")) {
		t.Error("replacing did not replace")
	}

	// One that is in the way stops it before anything is written.
	half := t.TempDir()
	if err := os.WriteFile(filepath.Join(half, TrustFile), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(half, list, false); !errors.Is(err, ErrExists) {
		t.Errorf("beside a trust file: %v", err)
	}
	if entries, _ := os.ReadDir(half); len(entries) != 1 {
		t.Errorf("it left %v", entries)
	}
}

func TestABinaryThatChangedIsNotCopied(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("right"), 0o755); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("right"))
	k := example()
	k.Binary.Path, k.Binary.Copied, k.Binary.SHA256 = program, true, hex.EncodeToString(sum[:])
	list, err := Files(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "kit")
	if _, err := Write(dir, list, false); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, BinaryFile))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.WriteFile(program, []byte("wrong"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "kit")
	if _, err := Write(dir, list, false); !errors.Is(err, ErrChanged) {
		t.Errorf("a changed binary: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("it left %v", entries)
	}
	// Of a kit that is replaced the sums are gone, so that nobody takes it for whole.
	if err := os.WriteFile(program, []byte("right"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(dir, list, false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte("wrong"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(dir, list, true); !errors.Is(err, ErrChanged) {
		t.Errorf("a changed binary: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, SumsFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the sums of a kit half replaced: %v", err)
	}
}
