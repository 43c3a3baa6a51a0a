// Package witness remembers the newest head that this machine has seen of
// every chain in every store. A store that later shows a lower head, or
// another manifest in its place, was rolled back or tampered with; without a
// memory outside the store nobody could tell.
//
// The memory is one JSON file in the state folder, keyed by store, cluster and
// chain. It holds no secrets.
package witness

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
	"lifeboat/internal/manifest"
)

// fileName is the memory's name in the state folder.
const fileName = "heads.json"

// Memory is the set of heads seen. It is safe for concurrent use.
type Memory struct {
	path    string
	cluster string

	mu   sync.Mutex
	seen map[key]manifest.Head
}

type key struct {
	cluster, store string
	chain          manifest.Chain
}

// record is one head as the file holds it.
type record struct {
	Cluster string `json:"cluster"`
	manifest.Head
}

// Open reads the memory in stateDir as far as it concerns one cluster; none
// yet is an empty memory. A damaged file is an error: silently forgetting
// would hide a rollback.
func Open(stateDir, cluster string) (*Memory, error) {
	m := &Memory{path: filepath.Join(stateDir, fileName), cluster: cluster, seen: map[key]manifest.Head{}}
	return m, m.read()
}

// read takes over what the file holds, except where we know better.
func (m *Memory) read() error {
	data, err := os.ReadFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the heads seen before: %w", err)
	}
	var records []record
	if err := json.Unmarshal(data, &records); err != nil {
		return fmt.Errorf("read the heads seen before from %s: %w; move the file away to start afresh", m.path, err)
	}
	for _, r := range records {
		m.note(key{r.Cluster, r.Store, r.Chain}, r.Head)
	}
	return nil
}

func (m *Memory) note(k key, head manifest.Head) {
	if old, known := m.seen[k]; !known || old.Sequence < head.Sequence {
		m.seen[k] = head
	}
}

// Path is the memory's file, for messages.
func (m *Memory) Path() string { return m.path }

// Heads lists the cluster's heads, ordered by store and chain. No memory at all
// has none.
func (m *Memory) Heads() []manifest.Head {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var heads []manifest.Head
	for k, head := range m.seen {
		if k.cluster == m.cluster {
			heads = append(heads, head)
		}
	}
	slices.SortFunc(heads, func(a, b manifest.Head) int {
		return cmp.Or(cmp.Compare(a.Store, b.Store), cmp.Compare(a.Chain, b.Chain))
	})
	return heads
}

// Of lists the heads of one store, by chain.
func (m *Memory) Of(store string) map[manifest.Chain]manifest.Head {
	heads := map[manifest.Chain]manifest.Head{}
	for _, head := range m.Heads() {
		if head.Store == store {
			heads[head.Chain] = head
		}
	}
	return heads
}

// Note remembers heads that are higher than the ones remembered and saves the
// memory, with what other processes have saved meanwhile. A lower head is not an
// error here: telling is verification's work.
func (m *Memory) Note(heads ...manifest.Head) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := os.MkdirAll(filepath.Dir(m.path), 0o700); err != nil {
		return fmt.Errorf("remember heads: %w", err)
	}
	lock, err := os.OpenFile(m.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("remember heads: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("remember heads: lock: %w", err)
	}
	if err := m.read(); err != nil {
		return err
	}
	before := maps.Clone(m.seen)
	for _, head := range heads {
		m.note(key{m.cluster, head.Store, head.Chain}, head)
	}
	if maps.Equal(before, m.seen) {
		return nil
	}
	return m.save()
}

func (m *Memory) save() error {
	records := []record{}
	for k, head := range m.seen {
		records = append(records, record{Cluster: k.cluster, Head: head})
	}
	slices.SortFunc(records, func(a, b record) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Store, b.Store), cmp.Compare(a.Chain, b.Chain))
	})
	data, err := json.MarshalIndent(records, "", "  ")
	if err != nil {
		return fmt.Errorf("remember heads: %w", err)
	}
	if _, err := durable.WriteFile(m.path, bytes.NewReader(append(data, '\n')), durable.Options{Mode: 0o600}); err != nil {
		return fmt.Errorf("remember heads: %w", err)
	}
	return nil
}
