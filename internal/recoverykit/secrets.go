package recoverykit

import (
	"bytes"
	"errors"
	"regexp"
)

// ErrSecret says that a kit would hold what must not lie open. Nothing was
// written.
var ErrSecret = errors.New("a recovery kit holds no secrets")

// forms are what secrets look like. The beginnings are enough: what only talks of
// them is refused too, since the next line may be one.
var forms = []struct {
	what string
	form *regexp.Regexp
}{
	{"an age identity", regexp.MustCompile(`(?i)AGE-SECRET-KEY-|AGE-PLUGIN-[A-Z0-9]+-1`)},
	{"a private key", regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PRIVATE\+KEY\+`)},
	{"an AWS access key", regexp.MustCompile(`\b(AKIA|ASIA)[A-Z0-9]{16}\b`)},
	{"credentials in a URL", regexp.MustCompile(`\b[a-z][a-z0-9+.-]*://[^\s/@:]+:[^\s/@]+@`)},
	{"a JSON web token", regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.`)},
}

// secretIn says what secret a text holds, without repeating it; empty if none.
func (k *Kit) secretIn(text []byte) string {
	for _, f := range forms {
		if f.form.Match(text) {
			return f.what
		}
	}
	for _, secret := range k.Secrets {
		if len(bytes.TrimSpace(secret)) > 0 && bytes.Contains(text, bytes.TrimSpace(secret)) {
			return "a secret of this machine"
		}
	}
	return ""
}
