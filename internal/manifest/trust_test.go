package manifest

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestATrustFileReadsAsWritten(t *testing.T) {
	a, b := signer(t, "prod-eu1/cp1", 1), signer(t, "prod-eu1/cp2", 2)
	want := &Trust{Cluster: cluster, Verifiers: []Verifier{
		{Key: a.VerifierText(), Chains: []string{"etcd/*", "hosts/cp?", "drills"}, Kinds: []string{"*"}},
		{Key: b.VerifierText(), Chains: []string{"*"}, Kinds: []string{"full", "p*"}, Until: time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)},
	}}
	if err := want.Check(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"as written":      want.String(),
		"with comments":   "# kit\n\n  # more\n" + strings.ReplaceAll(want.String(), "\n", "\n\n"),
		"with other ends": strings.ReplaceAll(want.String(), "\n", "\r\n"),
		"with no end":     strings.TrimSuffix(want.String(), "\n"),
		"with other gaps": strings.ReplaceAll(want.String(), " ", " \t "),
	} {
		got, err := ParseTrust([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if got.String() != want.String() {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestTrustFilesThatAreRefusedNameTheLine(t *testing.T) {
	key := signer(t, "cp1", 1).VerifierText()
	good := "verifier " + key + " chains=etcd/* kinds=* until=never\n"
	const first = "cluster prod-eu1-k3x9m2q7\n"
	for name, c := range map[string]struct{ text, want string }{
		"empty":                      {"", "no cluster"},
		"no verifier":                {first, "no verifier"},
		"no cluster":                 {good, "line 1"},
		"two clusters":               {first + first, "line 2"},
		"a cluster without id":       {"cluster prod\n", "line 1"},
		"an unknown word":            {first + "\n# x\nverifer x\n", "line 4"},
		"a key twice":                {first + good + good, "line 3"},
		"a missing field":            {first + strings.Replace(good, "kinds=* ", "", 1), "line 2"},
		"a field more":               {first + strings.TrimSuffix(good, "\n") + " x\n", "line 2"},
		"fields in another order":    {first + "verifier " + key + " kinds=* chains=* until=never\n", "line 2"},
		"a damaged key":              {first + strings.Replace(good, "+", "+0", 1), "line 2"},
		"a key of another name":      {first + strings.Replace(good, "cp1", "cp2", 1), "line 2"},
		"a key in other bytes":       {first + strings.Replace(good, key, strings.ToUpper(key[:12])+key[12:], 1), "line 2"},
		"a private key":              {first + "verifier PRIVATE+KEY+x chains=* kinds=* until=never\n", "line 2"},
		"no chains":                  {first + strings.Replace(good, "etcd/*", "", 1), "line 2"},
		"a pattern with a class":     {first + strings.Replace(good, "etcd/*", "[a-z", 1), "line 2"},
		"an empty pattern":           {first + strings.Replace(good, "etcd/*", "etcd/*,", 1), "line 2"},
		"a kind that is none":        {first + strings.Replace(good, "kinds=*", "kinds=fulls", 1), "line 2"},
		"an until with a zone":       {first + strings.Replace(good, "never", "2027-01-31T00:00:00+01:00", 1), "line 2"},
		"an until that is no time":   {first + strings.Replace(good, "never", "tomorrow", 1), "line 2"},
		"an until with fractions":    {first + strings.Replace(good, "never", "2027-01-31T00:00:00.5Z", 1), "line 2"},
		"an until before all":        {first + strings.Replace(good, "never", "0001-01-01T00:00:00Z", 1), "line 2"},
		"control characters":         {first + "\x1b[2J\n", "line 2"},
		"bytes that are not UTF-8":   {first + "# \xff\n", "line 2"},
		"a file that is far too big": {first + strings.Repeat("#\n", maxTrustSize/2), "limit"},
	} {
		if got, err := ParseTrust([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "etcd/main", true}, {"*", "drills", true}, {"etcd/*", "etcd/main", true}, {"etcd/*", "hosts/cp1", false},
		{"etcd/*", "etcd", false}, {"*/*", "drills", false}, {"hosts/cp?", "hosts/cp1", true}, {"hosts/cp?", "hosts/cp10", false},
		{"etcd/main", "etcd/main2", false}, {"drills", "drills", true}, {"*s", "etcd/events", false},
	} {
		if got := matches([]string{"x", c.pattern}, c.s); got != c.want {
			t.Errorf("%s matches %s: %v", c.pattern, c.s, got)
		}
	}
}

func TestAKeyMaySignUntilItsLastSecond(t *testing.T) {
	s := signer(t, "cp1", 1)
	trust := trusting(s)
	m := small()
	m.Created = noon.Truncate(time.Second)
	trust.Verifiers[0].Until = m.Created
	if _, err := Open(sign(t, m, s), trust); err != nil {
		t.Errorf("at until: %v", err)
	}
	m.Created = m.Created.Add(time.Millisecond)
	if _, err := Open(sign(t, m, s), trust); err == nil {
		t.Error("after until: opened")
	}
}

func FuzzParseTrust(f *testing.F) {
	a, b := signer(f, "cp1", 1), signer(f, "cp2", 2)
	trust := trusting(a, b)
	f.Add([]byte(trust.String()))
	trust.Verifiers[1].Until = noon.Truncate(time.Second)
	trust.Verifiers[0].Chains = []string{"etcd/*", "drills"}
	f.Add([]byte("# comment\n" + trust.String()))
	f.Add([]byte("cluster x-aaaaaaaa\nverifier"))
	f.Fuzz(func(t *testing.T, text []byte) {
		trust, err := ParseTrust(text)
		if err != nil {
			return
		}
		if err := trust.Check(); err != nil {
			t.Fatalf("accepted %q: %v", text, err)
		}
		again, err := ParseTrust([]byte(trust.String()))
		if err != nil {
			t.Fatalf("accepted %q, wrote %q: %v", text, trust, err)
		}
		if diff := cmp.Diff(trust, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestASignerReadsAsWrittenAndNeverShowsItsKey(t *testing.T) {
	s := signer(t, "prod-eu1/cp1", 1)
	text := s.PrivateText()
	again, err := ParseSigner([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if again.PrivateText() != text || again.VerifierText() != s.VerifierText() || again.Name() != "prod-eu1/cp1" {
		t.Errorf("read back as %s", again)
	}
	secret := text[strings.LastIndex(strings.TrimSpace(text), "+")+1:][8:40]
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("x", "pointer", s, "value", *s, "nested", struct{ S *Signer }{s})
	fmt.Fprintf(&log, "%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s)
	fmt.Fprintf(&log, "%v %+v %#v %v %+v", *s, *s, *s, struct{ s Signer }{*s}, struct{ s *Signer }{s})
	fmt.Fprintln(&log, fmt.Errorf("with %v", s))
	if strings.Contains(log.String(), secret) || strings.Contains(log.String(), "PRIVATE") {
		t.Errorf("the key shows: %s", &log)
	}
	if !strings.HasPrefix(s.VerifierText(), s.String()+"+") {
		t.Errorf("String %q, verifier %q", s, s.VerifierText())
	}
}

func TestSignerFilesThatAreRefused(t *testing.T) {
	s := signer(t, "cp1", 1)
	private := s.private()
	for name, text := range map[string]string{
		"empty": "", "comments": "# x\n", "two keys": private + "\n" + private, "a public key": s.VerifierText(),
		"a cut key": private[:len(private)-4], "another name": strings.Replace(private, "cp1", "cp2", 1), "junk": "hunter2",
	} {
		_, err := ParseSigner([]byte(text))
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), private[30:50]) {
			t.Errorf("%s: the error holds the key: %v", name, err)
		}
	}
	for _, name := range []string{"", "a b", "a+b", "a\n", strings.Repeat("x", 300)} {
		if _, err := GenerateSigner(bytes.NewReader(make([]byte, 64)), name); err == nil {
			t.Errorf("a key named %q", name)
		}
	}
}

func TestAPrivateKeyTakenForATrustFileIsNotRepeated(t *testing.T) {
	private := signer(t, "cp1", 1).PrivateText()
	key := strings.TrimSpace(private[strings.LastIndex(strings.TrimSpace(private), "\n")+1:])
	const identity = "AGE-SECRET-KEY-1GK2WQD7NP0RQ0RQ0RQ0RQ0RQ0RQ0RQ0RQ0RQ0RQ0RQ0RQ0"
	for _, text := range []string{
		identity + "\n", "# a comment\n" + identity + "\n", private, "cluster prod-eu1-k3x9m2q7\nverifier " + key + " chains=* kinds=* until=never\n",
		"cluster prod-eu1-k3x9m2q7\nverifier x " + identity + " y z\n", identity + "\x00\n",
	} {
		_, err := ParseTrust([]byte(text))
		if err == nil {
			t.Fatalf("%q was taken for a trust file", text)
		}
		for _, secret := range []string{identity[:20], key[len(key)-20:]} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows a secret: %v", err)
			}
		}
	}
}
