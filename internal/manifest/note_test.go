package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const cluster = "prod-eu1-k3x9m2q7"

var noon = time.Date(2026, 11, 21, 12, 0, 0, 123e6, time.UTC)

func signer(t testing.TB, name string, seed byte) *Signer {
	t.Helper()
	s, err := GenerateSigner(rand.NewChaCha8([32]byte{seed}), name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func trusting(signers ...*Signer) *Trust {
	t := &Trust{Cluster: cluster}
	for _, s := range signers {
		t.Verifiers = append(t.Verifiers, Verifier{Key: s.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}})
	}
	return t
}

func id(n byte) ID {
	id, err := NewID(bytes.NewReader(bytes.Repeat([]byte{n}, 16)))
	if err != nil {
		panic(err)
	}
	return id
}

// full is a manifest with every field of its kind filled in.
func full() *Manifest {
	next := noon.Add(6 * time.Hour)
	return &Manifest{
		Format: 1, Cluster: cluster, Chain: "etcd/main", Epoch: 1, Sequence: 42, Previous: Hash{1},
		Skipped: []Skipped{{Sequence: 41, SHA256: Hash{2}}},
		Kind:    KindFull, ID: id(7), Created: noon, NextExpectedBy: &next,
		Writer: Writer{Node: "cp1", Version: "0.1.0"},
		Heads:  []Head{{Store: "s3://bucket/a", Chain: "hosts/cp1", Sequence: 7, Hash: Hash{3}}},
		Etcd: &Etcd{
			ClusterID: 0xcdf818194e3a8c32, MemberID: 0x8e9e05c52164694d, Version: "3.6.16", StorageVersion: "3.6.0",
			ClusterVersion: "3.6.0", Revision: 123456, CompactRevision: 120000, HashKV: 0xdeadbeef,
			ComparedWith: []EtcdID{1, 2}, RaftIndex: 9, RaftTerm: 2, Keys: 1000, DBBytes: 1 << 20, Rate: 0.125,
			Members:    []Member{{ID: 1, Name: "cp1 & <co>", PeerURLs: []string{"https://10.0.0.1:2380"}}},
			Encryption: []KeyUse{{Provider: "aescbc", Key: "key1", Objects: 4, Example: "/registry/secrets/a/b"}},
		},
		Objects: []Object{{
			Name: "etcd/main/data/" + string(id(7)) + "/snapshot.db.zst.age", Role: RoleSnapshot,
			Size: 1000, SHA256: Hash{4}, PlainSize: 4000,
		}},
		Index:      []Entry{{Sequence: 40, Hash: Hash{5}, Kind: KindFull, ID: id(6)}},
		Recipients: []string{"age1qqqq"},
		Degraded:   []string{"member cp3 is \"down\""},
	}
}

// small is the least manifest, to keep exhaustive tests quick.
func small() *Manifest {
	return &Manifest{
		Format: 1, Cluster: cluster, Chain: "etcd/main", Epoch: 1, Sequence: 1, Kind: KindProof, ID: id(1), Created: noon,
		Writer: Writer{Node: "cp1", Version: "0.1.0"}, Proof: &Proof{Of: id(2), Revision: 5, How: "drill"},
	}
}

func sign(t testing.TB, m *Manifest, s *Signer) []byte {
	t.Helper()
	signed, err := Sign(m, s)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestWhatIsSignedOpensAsItWas(t *testing.T) {
	s := signer(t, "cp1", 1)
	for _, m := range []*Manifest{full(), small(), rekey(), rekeyOfFiles(), copied()} {
		signed := sign(t, m, s)
		got, err := Open(signed, trusting(s))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Errorf("%s", diff)
		}
		text, err := got.Text()
		if err != nil || !bytes.HasPrefix(signed, append(text, '\n')) {
			t.Errorf("text %q, %v; signed %q", text, err, signed)
		}
	}
}

func TestEverySingleBitFlipIsRefused(t *testing.T) {
	a, b := signer(t, "cp1", 1), signer(t, "cp2", 2)
	signed := sign(t, small(), a)
	cosigned, err := Cosign(signed, trusting(a), b)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		bytes []byte
		trust *Trust
	}{
		"one signature":                    {signed, trusting(a)},
		"one signature, more keys trusted": {signed, trusting(b, a)},
		"two trusted signatures":           {cosigned, trusting(a, b)},
		"a full":                           {sign(t, full(), a), trusting(a)},
	} {
		if _, err := Open(c.bytes, c.trust); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := 0; i < len(c.bytes)*8; i += stride {
			flipped := bytes.Clone(c.bytes)
			flipped[i/8] ^= 1 << (i % 8)
			if _, err := Open(flipped, c.trust); !refused(err) {
				t.Errorf("%s: bit %d of byte %d (%q): %v", name, i%8, i/8, c.bytes[i/8], err)
			}
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	s := signer(t, "cp1", 1)
	signed := sign(t, full(), s)
	for n := 0; n < len(signed); n += stride {
		if _, err := Open(signed[:n], trusting(s)); !refused(err) {
			t.Errorf("%d of %d bytes: %v", n, len(signed), err)
		}
	}
	if _, err := Open(append(bytes.Clone(signed), '\n'), trusting(s)); !refused(err) {
		t.Errorf("a byte more: %v", err)
	}
}

// refused: every refusal is one of the errors that callers know.
func refused(err error) bool {
	for _, known := range []error{ErrMalformed, ErrNotCanonical, ErrUnsigned, ErrOtherCluster, ErrUnknownFormat} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

func TestOpenRefuses(t *testing.T) {
	a, b := signer(t, "cp1", 1), signer(t, "cp2", 2)
	twin := signer(t, "cp1", 3) // another key of the same name
	restricted := func(edit func(*Verifier)) *Trust {
		tr := trusting(a)
		edit(&tr.Verifiers[0])
		return tr
	}
	raw := func(text string) []byte { // a trusted signature over any text
		return signText(t, text, a)
	}
	text, err := small().Text()
	if err != nil {
		t.Fatal(err)
	}
	canonical := string(text)
	signed := sign(t, small(), a)
	lastLine := signed[bytes.LastIndex(signed[:len(signed)-1], []byte("\n"))+1:]

	for _, c := range []struct {
		name  string
		bytes []byte
		trust *Trust
		want  error
	}{
		{"no trust", signed, nil, ErrUnsigned},
		{"a stranger's signature", sign(t, small(), b), trusting(a), ErrUnsigned},
		{"a stranger of the same name", sign(t, small(), twin), trusting(a), ErrUnsigned},
		{"no signature", text, trusting(a), ErrMalformed},
		{"an empty signature block", append(bytes.Clone(text), '\n'), trusting(a), ErrMalformed},
		{"nothing", nil, trusting(a), ErrMalformed},
		{"a signature line twice", append(bytes.Clone(signed), lastLine...), trusting(a), ErrNotCanonical},
		{"another text's signature", append(append(bytes.Clone(text[:len(text)-2]), " }\n\n"...), lastLine...), trusting(a), ErrUnsigned},
		{"another cluster", signed, &Trust{Cluster: "prod-eu1-aaaaaaaa", Verifiers: trusting(a).Verifiers}, ErrOtherCluster},
		{"a chain that the key may not sign", signed, restricted(func(v *Verifier) { v.Chains = []string{"hosts/*", "drills"} }), ErrUnsigned},
		{"a kind that the key may not sign", signed, restricted(func(v *Verifier) { v.Kinds = []string{"full", "files"} }), ErrUnsigned},
		{"a time that the key may not sign", signed, restricted(func(v *Verifier) { v.Until = noon.Truncate(time.Second) }), ErrUnsigned},
		{"a trust that is broken", signed, restricted(func(v *Verifier) { v.Key = "x" }), ErrUnsigned},
		{"a space", raw(strings.Replace(canonical, ":", ": ", 1)), trusting(a), ErrNotCanonical},
		{"an unknown field", raw(strings.Replace(canonical, `{"format":1,`, `{"format":1,"x":1,`, 1)), trusting(a), ErrMalformed},
		{"a field twice", raw(strings.Replace(canonical, `{"format":1,`, `{"format":1,"format":1,`, 1)), trusting(a), ErrNotCanonical},
		{"a field in other case", raw(strings.Replace(canonical, `"epoch"`, `"Epoch"`, 1)), trusting(a), ErrNotCanonical},
		{"fields in another order", raw(strings.Replace(canonical, `"epoch":1,"sequence":1`, `"sequence":1,"epoch":1`, 1)), trusting(a), ErrNotCanonical},
		{"an escape that is not needed", raw(strings.Replace(canonical, `drill`, `dr\u0069ll`, 1)), trusting(a), ErrNotCanonical},
		{"null for an absent list", raw(strings.Replace(canonical, `"writer"`, `"heads":null,"writer"`, 1)), trusting(a), ErrNotCanonical},
		{"a time with a zone", raw(strings.Replace(canonical, `.123Z`, `.123+00:00`, 1)), trusting(a), ErrMalformed},
		{"a time with more digits", raw(strings.Replace(canonical, `.123Z`, `.1230Z`, 1)), trusting(a), ErrNotCanonical},
		{"a time with microseconds", raw(strings.Replace(canonical, `.123Z`, `.123001Z`, 1)), trusting(a), ErrMalformed},
		{"two texts", raw(canonical + canonical), trusting(a), ErrNotCanonical},
		{"a newer format", raw(strings.Replace(canonical, `"format":1`, `"format":2,"new":[]`, 1)), trusting(a), ErrUnknownFormat},
		{"an etcd id with leading zeros", raw(strings.Replace(mustText(full()), `"clusterID":"`, `"clusterID":"0`, 1)), trusting(a), ErrNotCanonical},
		{"a hash in capitals", raw(strings.Replace(mustText(full()), `"previous":"01`, `"previous":"0A`, 1)), trusting(a), ErrNotCanonical},
		{"deep nesting", raw(strings.Replace(canonical, `"epoch":1`, `"epoch":`+strings.Repeat("[", 1e6), 1)), trusting(a), ErrMalformed},
		{"too many bytes", append(make([]byte, MaxNoteSize), signed...), trusting(a), ErrMalformed},
	} {
		if _, err := Open(c.bytes, c.trust); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func mustText(m *Manifest) string {
	text, err := m.Text()
	if err != nil {
		panic(err)
	}
	return string(text)
}

func TestSignaturesCanBeAddedLater(t *testing.T) {
	old, next := signer(t, "lifeboat", 1), signer(t, "lifeboat", 2)
	signed := sign(t, small(), old)
	both, err := Cosign(signed, trusting(old), next)
	if err != nil {
		t.Fatal(err)
	}
	for name, trust := range map[string]*Trust{"old": trusting(old), "new": trusting(next), "both": trusting(old, next)} {
		if _, err := Open(both, trust); err != nil {
			t.Errorf("trusting %s: %v", name, err)
		}
	}
	if _, err := Open(signed, trusting(next)); !errors.Is(err, ErrUnsigned) {
		t.Errorf("the new key alone opens what it did not sign: %v", err)
	}
	a, err := TextHash(signed)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := TextHash(both); err != nil || a != b {
		t.Errorf("text hash %v and %v, %v", a, b, err)
	}
	if _, err := Cosign(both, trusting(old), next); err == nil {
		t.Error("a key cosigned twice")
	}
	if _, err := Cosign(signed, trusting(next), next); !errors.Is(err, ErrUnsigned) {
		t.Errorf("cosigned what is not trusted: %v", err)
	}
}

func TestOneKeyOfSeveralMaySuffice(t *testing.T) {
	a, b := signer(t, "cp1", 1), signer(t, "cp2", 2)
	both, err := Cosign(sign(t, small(), a), trusting(a), b)
	if err != nil {
		t.Fatal(err)
	}
	trust := trusting(a, b)
	trust.Verifiers[0].Chains = []string{"hosts/*"}
	if _, err := Open(both, trust); err != nil {
		t.Errorf("the second key may sign: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	s := signer(f, "cp1", 1)
	trust := trusting(s)
	for _, m := range []*Manifest{full(), small(), rekey(), rekeyOfFiles(), copied(), segment(), listing(), indexing(), prune(), images(), blob()} {
		f.Add(sign(f, m, s), true)
		text, _ := m.Text()
		f.Add(text[:len(text)-1], false)
	}
	f.Add([]byte(`{"format":1,"cluster":"`), false)
	f.Add([]byte("x\n\n— cp1 AAAAAAAA\n"), true)
	f.Fuzz(func(t *testing.T, data []byte, asIs bool) {
		if !asIs { // let the fuzzer past the signature
			if bytes.Contains(data, []byte("\n")) {
				return
			}
			if data = signText(t, string(data)+"\n", s); data == nil {
				return
			}
		}
		m, err := Open(data, trust)
		if err != nil {
			if !refused(err) {
				t.Fatalf("an unknown refusal: %v", err)
			}
			return
		}
		text, err := m.Text()
		if err != nil || !bytes.HasPrefix(data, append(text, '\n')) {
			t.Fatalf("accepted %q, re-encoded %q, %v", data, text, err)
		}
	})
}

func ExampleSign() {
	s, _ := GenerateSigner(rand.NewChaCha8([32]byte{1}), "cp1")
	trust, _ := ParseTrust([]byte("cluster prod-eu1-k3x9m2q7\nverifier " + s.VerifierText() + " chains=etcd/* kinds=* until=never\n"))
	signed, err := Sign(&Manifest{
		Format: FormatVersion, Cluster: "prod-eu1-k3x9m2q7", Chain: "etcd/main", Epoch: 1, Sequence: 1,
		Kind: KindProof, ID: "aaaaaaaaaaaaaaaaaaaaaaaaaa", Created: noon, Writer: Writer{Node: "cp1", Version: "0.1.0"},
		Proof: &Proof{Of: "bbbbbbbbbbbbbbbbbbbbbbbbbb", Revision: 5, How: "drill"},
	}, s)
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := Open(signed, trust)
	fmt.Println(m.Chain, m.Kind, err)
	// Output: etcd/main proof <nil>
}

func BenchmarkOpen(b *testing.B) {
	s := signer(b, "cp1", 1)
	signed, trust := sign(b, full(), s), trusting(s)
	b.SetBytes(int64(len(signed)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Open(signed, trust); err != nil {
			b.Fatal(err)
		}
	}
}
