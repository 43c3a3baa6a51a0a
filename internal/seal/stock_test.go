package seal

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func run(t *testing.T, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, stderr.String())
	}
	return out
}

func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("this test needs %s: install age, zstd, tar and openssh-client", tool)
		}
	}
}

func TestStockToolsOpenWhatIsSealedAndTheReverse(t *testing.T) {
	need(t, "age", "age-keygen", "zstd", "ssh-keygen")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, nil, "age-keygen", "-o", at("x25519"))
	run(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", at("ed25519"))
	run(t, nil, "ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", at("rsa"))
	public := map[string]string{"x25519": string(run(t, nil, "age-keygen", "-y", at("x25519")))}
	for _, kind := range []string{"ed25519", "rsa"} {
		pub, err := os.ReadFile(at(kind + ".pub"))
		if err != nil {
			t.Fatal(err)
		}
		public[kind] = string(pub)
	}
	plain := kubernetes(1 << 20)
	recipients, err := ParseRecipients([]string{public["x25519"], "# a comment", "", public["ed25519"], public["rsa"]})
	if err != nil {
		t.Fatal(err)
	}
	stored, _ := sealed(t, plain, recipients...)
	for kind, pub := range public {
		opened := run(t, run(t, stored, "age", "-d", "-i", at(kind)), "zstd", "-dc")
		if !bytes.Equal(opened, plain) {
			t.Errorf("%s: stock tools open %d bytes", kind, len(opened))
		}
		theirs := run(t, run(t, plain, "zstd", "-c"), "age", "-r", strings.TrimSpace(pub))
		key, err := os.Open(at(kind))
		if err != nil {
			t.Fatal(err)
		}
		ids, err := ParseIdentities(key, nil)
		key.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := unseal(theirs, Sums{}, ids...); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: what stock tools sealed: %d bytes, %v", kind, len(got), err)
		}
	}
	// zstd -d reads frames one after another, and so do we.
	theirs := run(t, append(run(t, plain, "zstd", "-c", "-19"), run(t, plain, "zstd", "-c")...), "age", "-r", strings.TrimSpace(public["x25519"]))
	key, err := os.ReadFile(at("x25519"))
	if err != nil {
		t.Fatal(err)
	}
	ids, err := ParseIdentities(bytes.NewReader(key), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := unseal(theirs, Sums{}, ids...); err != nil || len(got) != 2*len(plain) {
		t.Errorf("two frames: %d bytes, %v", len(got), err)
	}
}
