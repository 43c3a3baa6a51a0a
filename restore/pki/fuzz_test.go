package pki

import (
	"bytes"
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fuzzed are options that change what a fuzzer is likely to find.
var fuzzed = Options{
	Rename:  map[string]string{"cp1": "cp9"},
	Address: map[netip.Addr]netip.Addr{netip.MustParseAddr("10.0.0.11"): netip.MustParseAddr("10.0.0.99")},
}

func FuzzPEM(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := parsePEM(data)
		if err != nil {
			return
		}
		if again, err := parsePEM(encodeCertificates(b.certs...)); len(b.certs) > 0 && (err != nil || len(again.certs) != len(b.certs)) {
			t.Errorf("certificates don't come back: %v", err)
		}
		for _, key := range b.keys {
			text, err := key.encode()
			if err != nil {
				continue // a key that can be read and not written, such as one of an unusual curve
			}
			if again, err := parsePEM(text); err != nil || len(again.keys) != 1 || !samePublic(again.keys[0].signer.Public(), key.signer.Public()) {
				t.Errorf("a key does not come back: %v", err)
			}
		}
		for _, cert := range b.certs {
			_ = makeable(cert.PublicKey)
			subject, err := fuzzed.subject(cert.RawSubject)
			if err != nil {
				continue
			}
			if again, err := fuzzed.subject(subject); err != nil || !bytes.Equal(again, subject) {
				t.Errorf("subject %x, mapped again %x: %v", subject, again, err)
			}
			(&Leaf{Old: face(cert)}).print(new(strings.Builder))
		}
	})
}

func FuzzAlternatives(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := fuzzed.alternatives(raw, []string{"cp9", "192.0.2.7"})
		if err != nil {
			return
		}
		again, err := fuzzed.alternatives(got, []string{"cp9", "192.0.2.7"})
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%x, mapped again %x: %v", got, again, err)
		}
		_ = alternativeTexts(got)
	})
}

func FuzzKubeconfig(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfigFile(&saved{name: "/etc/kubernetes/fuzzed.conf", data: data})
		if err != nil {
			return
		}
		p := &Plan{opts: fuzzed, scan: &scan{configs: []*configFile{c}}}
		p.edits()
		for _, e := range p.Kubeconfigs {
			for _, change := range e.Changes {
				set(change.node, change.New)
			}
		}
		for _, u := range c.users {
			if u.certData != nil {
				set(u.certData, base64.StdEncoding.EncodeToString(encodeCertificates()))
			}
		}
		text, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseKubeconfig(text)
		if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		if diff := cmp.Diff(scalars(c.kubeconfig), scalars(again)); diff != "" {
			t.Errorf("%s\n%s", diff, text)
		}
	})
}

// scalars are the values of a kubeconfig that may change.
func scalars(k *kubeconfig) []string {
	out := []string{value(k.current)}
	for _, c := range k.clusters {
		out = append(out, value(c.server), value(c.tlsName), value(c.caData))
	}
	for _, c := range k.contexts {
		out = append(out, value(c.name), value(c.user))
	}
	for _, u := range k.users {
		out = append(out, value(u.name), value(u.certData), value(u.keyData), value(u.certFile), value(u.keyFile))
	}
	return out
}

func FuzzJournal(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		j := new(journal)
		if j.parse(data) != nil {
			return
		}
		for _, m := range j.Moves {
			if m.Staged != "" && m.Staged != stagedName(m.Place) {
				t.Errorf("takes %q for a staged file", m.Staged)
			}
		}
	})
}
