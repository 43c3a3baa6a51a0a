package repository

import (
	"strings"
	"testing"

	"lifeboat/internal/manifest"
)

func TestKeysInUseAreComparedWithThoseInTheNewestFiles(t *testing.T) {
	one, two, vault := manifest.KeyName{Provider: "aescbc", Key: "one"}, manifest.KeyName{Provider: "secretbox", Key: "two"}, manifest.KeyName{Provider: "kms", Key: "vault"}
	use := func(n manifest.KeyName) manifest.KeyUse {
		return manifest.KeyUse{Provider: n.Provider, Key: n.Key, Objects: 3, Example: "/registry/secrets/a/" + n.Key}
	}
	v2 := use(vault)
	v2.Provider = "kms:v2"
	type keys = []manifest.KeyName
	for name, test := range map[string]struct {
		before, uses []manifest.KeyUse // by the full before the newest, and by it
		files        []struct {        // in the order of their capture
			node string
			keys keys
		}
		want []string // of each gap: what its text holds
	}{
		"nothing is encrypted": {},
		"all is there": {uses: []manifest.KeyUse{use(one), use(two), v2}, files: []struct {
			node string
			keys keys
		}{{"cp1", keys{one, two, vault}}}},
		"no files at all": {uses: []manifest.KeyUse{use(one)}, want: []string{`3 objects in etcd/main, such as /registry/secrets/a/one, are encrypted with the aescbc key "one", which no backup of a node's files holds`}},
		"the newest files lost a key that older ones hold": {uses: []manifest.KeyUse{use(one), use(two)}, files: []struct {
			node string
			keys keys
		}{{"cp1", keys{one, two}}, {"cp1", keys{one}}}, want: []string{`secretbox key "two", which no backup`}},
		"a key was taken out of use": {before: []manifest.KeyUse{use(one)}, uses: []manifest.KeyUse{use(two)}, files: []struct {
			node string
			keys keys
		}{{"cp1", keys{two}}}},
		"one node is behind, and one encrypts nothing": {uses: []manifest.KeyUse{use(two)}, files: []struct {
			node string
			keys keys
		}{{"cp1", keys{one, two}}, {"cp2", keys{one}}, {"worker", nil}}, want: []string{"which the newest files of cp2 don't hold (those of cp1 do)"}},
		"a provider of the same key name": {uses: []manifest.KeyUse{use(one)}, files: []struct {
			node string
			keys keys
		}{{"cp1", keys{{Provider: "aesgcm", Key: "one"}}}}, want: []string{`aescbc key "one", which no backup`}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			encrypted := func(uses []manifest.KeyUse) func(*manifest.Manifest) {
				return func(m *manifest.Manifest) { m.Etcd.Encryption = uses }
			}
			w.full(r, encrypted(test.before))
			w.full(r, encrypted(test.uses))
			for _, f := range test.files {
				w.backup(r, manifest.Chain("hosts/"+f.node), manifest.KindFiles, func(m *manifest.Manifest) { m.Host.Encryption = f.keys })
			}
			for _, chains := range [][]manifest.Chain{nil, {etcdMain}} {
				got, err := w.open().KeyCoverage(t.Context(), chains...)
				if err != nil || len(got.Gaps) != len(test.want) || got.Fulls != 1 || got.Keys != len(test.uses) {
					t.Fatalf("of %v: %+v, %v; want %q of %d keys", chains, got, err, test.want, len(test.uses))
				}
				for i, g := range got.Gaps {
					if !strings.Contains(g.String(), test.want[i]) {
						t.Errorf("%s; want %s", g, test.want[i])
					}
				}
			}
			if got, err := r.KeyCoverage(t.Context(), "etcd/events"); err != nil || len(got.Gaps) > 0 || got.Fulls > 0 {
				t.Errorf("of a chain that is not there: %+v, %v", got, err)
			}
			w.clean(r)
		})
	}
}
