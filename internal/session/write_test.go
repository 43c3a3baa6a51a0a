package session

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/storage/memory"
)

// shelf is a repository in memory that takes fulls without content.
type shelf struct {
	t    *testing.T
	repo *repository.Repository
	now  time.Time
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	cluster, err := manifest.NewCluster(rand.Reader, "prod")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := manifest.GenerateSigner(rand.Reader, cluster)
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{t: t, now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	s.repo, err = repository.Open(memory.New(), repository.Options{
		Trust:  &manifest.Trust{Cluster: cluster, Verifiers: []manifest.Verifier{{Key: signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}}}},
		Signer: signer, Name: "memory", Now: func() time.Time { return s.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// full commits a full whose values are encrypted with the key.
func (s *shelf) full(chain manifest.Chain, key string) {
	s.t.Helper()
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	name := repository.ObjectName(chain, id, "snapshot.db.zst.age")
	const body = "x"
	if err := s.repo.PutObject(s.t.Context(), name, strings.NewReader(body), time.Time{}); err != nil {
		s.t.Fatal(err)
	}
	s.now = s.now.Add(time.Minute)
	_, err = s.repo.Commit(s.t.Context(), &manifest.Manifest{
		Chain: chain, Kind: manifest.KindFull, ID: id, Created: s.now, Writer: manifest.Writer{Node: "cp1", Version: "test"},
		Recipients: []string{"age1x"}, Unproved: []string{"a test"},
		Objects: []manifest.Object{{Name: name, Role: manifest.RoleSnapshot, Size: 1, PlainSize: 1, SHA256: sha256.Sum256([]byte(body))}},
		Etcd:    &manifest.Etcd{Revision: 5, DBBytes: 1, Encryption: uses(key)},
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func uses(key string) []manifest.KeyUse {
	return []manifest.KeyUse{{Provider: "aescbc", Key: key, Objects: 1, Example: "/registry/secrets/a"}}
}

func TestWhoBacksUpEtcdAloneHearsOfAKeyThatNoFilesHold(t *testing.T) {
	s := newShelf(t)
	s.full("etcd/main", "lost")
	newest, err := s.repo.NewestFull(t.Context(), "etcd/main")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	session := &Session{Stores: []Store{{Err: errors.New("no answer")}, {Repository: s.repo}}, options: Options{Events: func(e events.Event) {
		if w, ok := e.(events.Warning); ok {
			told = append(told, w.Message)
		}
	}}}
	session.WarnOfKeys(t.Context(), nil)
	session.WarnOfKeys(t.Context(), &manifest.Manifest{Chain: "etcd/main", Etcd: &manifest.Etcd{}})
	if len(told) > 0 {
		t.Errorf("nothing is encrypted, and it told %q", told)
	}
	session.WarnOfKeys(t.Context(), newest)
	if len(told) != 1 || !strings.Contains(told[0], `"lost"`) || !strings.Contains(told[0], "/registry/secrets/a") {
		t.Errorf("told %q", told)
	}
}

func TestEncryptionKeysInUseAreThoseOfEveryConfiguredEtcd(t *testing.T) {
	first, second := newShelf(t), newShelf(t)
	first.full("etcd/main", "old")
	first.full("etcd/main", "main")
	first.full("etcd/imported", "another cluster's")
	second.now = first.now
	second.full("etcd/events", "events") // the first store missed it
	stores := []Store{{Err: errors.New("no answer")}, {Repository: first.repo}, {Repository: second.repo}}
	clusters := []config.Etcd{{Name: "main"}, {Name: "events"}}
	taken := func(chain manifest.Chain, key string) *manifest.Manifest {
		return &manifest.Manifest{Chain: chain, Etcd: &manifest.Etcd{Encryption: uses(key)}}
	}
	for name, test := range map[string]struct {
		taken []*manifest.Manifest
		want  []string
	}{
		"nothing was taken":                 {nil, []string{"main", "events"}},
		"one was taken, the other failed":   {[]*manifest.Manifest{taken("etcd/main", "new")}, []string{"new", "events"}},
		"one has no manifest in its result": {[]*manifest.Manifest{nil, taken("etcd/events", "new")}, []string{"main", "new"}},
		"both were taken":                   {[]*manifest.Manifest{taken("etcd/main", "a"), taken("etcd/events", "b")}, []string{"a", "b"}},
	} {
		var got []string
		s := &Session{Config: &config.Config{Etcd: clusters}, Stores: stores}
		for _, use := range s.EncryptionUses(t.Context(), test.taken) {
			got = append(got, use.Key)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}
