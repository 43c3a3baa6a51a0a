package seal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
)

func TestRecipients(t *testing.T) {
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	const ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILsSx0zHtPBjbWFbBmQMvDLxW2p6u2SV8lrm4tC9ckGP someone@example"
	classic, quantum := x.Recipient().String(), pq.Recipient().String()
	for _, c := range []struct {
		name  string
		lines []string
		count int
		err   string // part of it
	}{
		{"X25519, SSH, comments and spaces", []string{"# keys", "", " " + classic + " ", ssh}, 2, ""},
		{"post-quantum alone", []string{quantum, quantum}, 2, ""},
		{"post-quantum with X25519", []string{quantum, classic}, 0, "can't be mixed"},
		{"SSH with post-quantum", []string{ssh, quantum}, 0, "can't be mixed"},
		{"none", []string{"# nobody"}, 0, "nobody could open"},
		{"a private key", []string{classic, x.String()}, 0, "recipient 2: a private key"},
		{"a secret of any kind", []string{"hunter2"}, 0, "not a public key"},
		{"a cut key", []string{classic[:40]}, 0, "recipient 1"},
		{"another SSH type", []string{"ssh-dss AAAA"}, 0, "recipient 1"},
	} {
		got, err := ParseRecipients(c.lines)
		if len(got) != c.count || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %d recipients, %v", c.name, len(got), err)
		}
		if err != nil && (strings.Contains(err.Error(), x.String()) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: the error holds a secret: %v", c.name, err)
		}
		if err == nil {
			if _, err := NewWriter(io.Discard, got); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

// locked seals text with a passphrase, as age -p does, but quickly.
func locked(t *testing.T, text, passphrase string, armored bool) []byte {
	t.Helper()
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		t.Fatal(err)
	}
	r.SetWorkFactor(8)
	var out bytes.Buffer
	var dst io.Writer = &out
	var closers []io.Closer
	if armored {
		a := armor.NewWriter(&out)
		dst, closers = a, append(closers, a)
	}
	w, err := age.Encrypt(dst, r)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	for _, c := range append([]io.Closer{w}, closers...) {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestIdentitiesOpenWhatIsSealedToThem(t *testing.T) {
	need(t, "ssh-keygen")
	x := identity(t)
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sshKey := func(name string, args ...string) (private []byte, recipient age.Recipient) {
		file := filepath.Join(dir, name)
		run(t, nil, "ssh-keygen", append([]string{"-q", "-N", "open sesame", "-f", file}, args...)...)
		private, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		public, err := os.ReadFile(file + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		recipients, err := ParseRecipients([]string{string(public)})
		if err != nil {
			t.Fatal(err)
		}
		return private, recipients[0]
	}
	ed25519, toEd25519 := sshKey("ed25519", "-t", "ed25519")
	rsa, toRSA := sshKey("rsa", "-t", "rsa", "-b", "2048")
	pem, toPEM := sshKey("pem", "-t", "rsa", "-b", "2048", "-m", "PEM")
	file := "# created: today\n# public key: " + x.Recipient().String() + "\n" + x.String() + "\n"

	for _, c := range []struct {
		name string
		file []byte
		to   age.Recipient
		asks bool
	}{
		{"X25519", []byte(file), x.Recipient(), false},
		{"X25519 with DOS line ends", []byte(strings.ReplaceAll(file, "\n", "\r\n")), x.Recipient(), false},
		{"post-quantum", []byte(pq.String()), pq.Recipient(), false},
		{"several", []byte(pq.String() + "\n" + file), x.Recipient(), false},
		{"a file that a passphrase opens", locked(t, file, "open sesame", false), x.Recipient(), true},
		{"an armored one", append([]byte("\n"), locked(t, file, "open sesame", true)...), x.Recipient(), true},
		{"a locked ed25519 SSH key", ed25519, toEd25519, true},
		{"a locked RSA SSH key", rsa, toRSA, true},
		{"a locked RSA SSH key in PEM", pem, toPEM, true},
	} {
		asked := 0
		answer := func(s string) func(string) ([]byte, error) {
			return func(string) ([]byte, error) { asked++; return []byte(s), nil }
		}
		ids, err := ParseIdentities(bytes.NewReader(c.file), answer("open sesame"))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if (asked == 1) != c.asks {
			t.Errorf("%s: asked %d times", c.name, asked)
		}
		stored, sums := sealed(t, []byte("plain"), c.to)
		if got, err := unseal(stored, sums, ids...); err != nil || string(got) != "plain" {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
		if !c.asks {
			continue
		}
		for name, ask := range map[string]func(string) ([]byte, error){
			"a wrong passphrase": answer("sesame"), "an empty one": answer(""), "nobody to ask": nil,
			"a failing terminal": func(string) ([]byte, error) { return nil, errors.New("not a terminal") },
		} {
			if _, err := ParseIdentities(bytes.NewReader(c.file), ask); err == nil {
				t.Errorf("%s: %s opens it", c.name, name)
			} else if strings.Contains(err.Error(), "sesame") {
				t.Errorf("%s: %s: the error holds it: %v", c.name, name, err)
			}
		}
	}
}

func TestIdentityFilesThatAreNot(t *testing.T) {
	x := identity(t)
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {"", "no identities"},
		"only comments":      {"# nothing\n", "no identities"},
		"a public key":       {"\n" + x.Recipient().String(), "line 2: a public key"},
		"junk":               {"junk", "line 1: not a private key"},
		"a cut key":          {x.String()[:50], "line 1: malformed"},
		"a key with a typo":  {strings.ToLower(x.String()), "line 1: not a private key"},
		"too long":           {strings.Repeat("#", maxKeyFile+1), "more than"},
		"a certificate":      {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ssh private key"},
		"damaged armor":      {armor.Header + "\nAAAA\n", "identity file"},
		"a cut age file":     {"age-encryption.org/v1\n-> scr", "identity file"},
		"sealed to somebody": {string(mustSeal(t, x)), "wrong passphrase, or not a file"},
	} {
		_, err := ParseIdentities(strings.NewReader(c.text), func(string) ([]byte, error) { return []byte("x"), nil })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(strings.ToUpper(err.Error()), x.String()[16:40]) {
			t.Errorf("%s: the error holds the key: %v", name, err)
		}
	}
	cause := errors.New("disk")
	if _, err := ParseIdentities(io.MultiReader(strings.NewReader("#"), failingReader{cause}), nil); !errors.Is(err, cause) {
		t.Errorf("a failing file: %v", err)
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

func mustSeal(t *testing.T, id *age.X25519Identity) []byte {
	stored, _ := sealed(t, []byte("x"), id.Recipient())
	return stored
}

// fakePlugin stands in for age-plugin-lifeboattest: it asks for a secret and
// then says that its token is missing.
const fakePlugin = `#!/bin/sh
while read -r line; do [ "$line" = "-> done" ] && read -r line && break; done
printf '%s\n' '-> msg' 'dG91Y2ggaXQ'
read -r answer; read -r body
printf '%s\n' '-> request-secret' 'UElO'
read -r answer; read -r body
printf '%s\n' '-> error internal' 'bm8gdG9rZW4'
read -r answer; read -r body
printf '%s\n' '-> done' ''
`

func TestPluginIdentities(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "age-plugin-lifeboattest"), []byte(fakePlugin), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	var asked, shown []string
	d := Dialog{
		Ask:  func(prompt string) ([]byte, error) { asked = append(asked, prompt); return []byte("1234"), nil },
		Show: func(message string) { shown = append(shown, message) },
	}
	ids, err := d.ParseIdentities(strings.NewReader(pluginKey(t, "lifeboattest")))
	if err != nil {
		t.Fatal(err)
	}
	x := identity(t)
	stored, sums := sealed(t, []byte("plain"), x.Recipient())
	_, err = unseal(stored, sums, ids...)
	if err == nil || !strings.Contains(err.Error(), "no token") || errors.Is(err, ErrDamaged) {
		t.Errorf("a missing token: %v", err)
	}
	if len(asked) != 1 || !strings.Contains(asked[0], "PIN") || len(shown) != 1 || !strings.Contains(shown[0], "touch it") {
		t.Errorf("asked %q, shown %q", asked, shown)
	}
	absent, err := ParseIdentities(strings.NewReader(pluginKey(t, "lifeboatabsent")), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = unseal(stored, sums, absent...); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("a plugin that is not installed: %v", err)
	}
	// A key that needs nobody goes first.
	if got, err := unseal(stored, sums, append(absent, x)...); err != nil || string(got) != "plain" {
		t.Errorf("%q, %v", got, err)
	}
}

func pluginKey(t *testing.T, name string) string {
	t.Helper()
	key := plugin.EncodeIdentity(name, []byte("data"))
	if key == "" {
		t.Fatalf("no key for plugin %s", name)
	}
	return key
}
