package hostfacts

import (
	"errors"
	"strings"
	"testing"

	"lifeboat/internal/manifest"
)

func TestReadingFacts(t *testing.T) {
	f, err := Read(strings.NewReader(`{"format": 1, "node": "cp1", "etcd": {"kind": "stacked", "name": "cp1"}, "somethingNew": 7}`))
	if err != nil || f.Node != "cp1" || f.Etcd == nil || f.Etcd.Name != "cp1" {
		t.Errorf("%+v, %v", f, err)
	}
	for text, want := range map[string]error{
		"":                                ErrDamaged,
		`{"format": 1, "node": 7}`:        ErrDamaged,
		`{"node": "cp1"}`:                 ErrDamaged,
		`{"format": 2}`:                   ErrNewer,
		strings.Repeat(" ", mostBytes+10): ErrDamaged,
	} {
		if _, err := Read(strings.NewReader(text)); !errors.Is(err, want) {
			t.Errorf("%.30q: %v, want %v", text, err, want)
		}
	}
}

func TestWhatADistributionHasLeftIsNoServer(t *testing.T) {
	for etcd, kept := range map[string]bool{"k3s": true, "stacked": false} {
		f, err := Read(strings.NewReader(`{"format": 1, "etcd": {"kind": "` + etcd + `"}, "distribution": {"kind": "k3s"}}`))
		if err != nil || (f.Distribution != nil) != kept {
			t.Errorf("%s: %+v, %v", etcd, f, err)
		}
	}
}

func TestKeysThatNoConfigurationHoldsAreNamed(t *testing.T) {
	f := &Facts{Encryption: []Keys{{File: "a", Providers: []Provider{{Provider: "aescbc", Keys: []string{"one"}}, {Provider: "kms", Keys: []string{"vault"}}}}}}
	missing := f.Covers([]manifest.KeyUse{
		{Provider: "aescbc", Key: "one", Objects: 3, Example: "/registry/secrets/a/b"}, {Provider: "kms:v2", Key: "vault", Objects: 1, Example: "/x"},
		{Provider: "secretbox", Key: "one", Objects: 2, Example: "/registry/secrets/c/d"},
	})
	if len(missing) != 1 || !strings.Contains(missing[0], "secretbox") || !strings.Contains(missing[0], `"one"`) || !strings.Contains(missing[0], "/registry/secrets/c/d") {
		t.Errorf("%q", missing)
	}
}

func TestAKeyInAFileThatNobodyReadsIsMissing(t *testing.T) {
	f := &Facts{Encryption: []Keys{
		{File: "etc/kubernetes/enc.yaml", Providers: []Provider{{Provider: "aescbc", Keys: []string{"two"}}}},
		{File: "etc/kubernetes/enc.yaml.bak", Providers: []Provider{{Provider: "aescbc", Keys: []string{"one"}}}, Unread: true},
	}}
	uses := []manifest.KeyUse{{Provider: "aescbc", Key: "one", Objects: 3, Example: "/registry/secrets/a/b"}, {Provider: "aescbc", Key: "two", Objects: 3}}
	if missing := f.Covers(uses); len(missing) != 1 || !strings.Contains(missing[0], `"one"`) || !strings.Contains(missing[0], "/etc/kubernetes/enc.yaml.bak has one of that name") {
		t.Errorf("%q", missing)
	}
	f.Encryption[1].Unread = false // as an older backup has it
	if missing := f.Covers(uses); len(missing) > 0 {
		t.Errorf("%q", missing)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(`{"format": 1, "node": "cp1"}`)
	f.Add(`{"format": 1, "etcd": {"kind": "stacked"}, "files": [{"name": "a", "size": 1}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		facts, err := Read(strings.NewReader(text))
		if (facts == nil) != (err != nil) || err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Errorf("%+v, %v", facts, err)
		}
	})
}
