package witness

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/manifest"
)

func head(store string, chain manifest.Chain, sequence manifest.Sequence) manifest.Head {
	return manifest.Head{Store: store, Chain: chain, Sequence: sequence, Hash: manifest.Hash{byte(sequence)}}
}

func open(t *testing.T, dir, cluster string) *Memory {
	t.Helper()
	m, err := Open(dir, cluster)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestHeadsAreRememberedAcrossProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	m := open(t, dir, "a-1")
	if got := m.Heads(); len(got) != 0 {
		t.Fatalf("a new memory holds %v", got)
	}
	if err := m.Note(head("s1", "etcd/main", 3), head("s2", "etcd/main", 2), head("s1", "hosts/cp1", 1)); err != nil {
		t.Fatal(err)
	}
	want := []manifest.Head{head("s1", "etcd/main", 3), head("s1", "hosts/cp1", 1), head("s2", "etcd/main", 2)}
	if diff := cmp.Diff(want, open(t, dir, "a-1").Heads()); diff != "" {
		t.Error(diff)
	}
	of := open(t, dir, "a-1").Of("s1")
	if len(of) != 2 || of["etcd/main"].Sequence != 3 {
		t.Errorf("of s1: %v", of)
	}
	info, err := os.Stat(filepath.Join(dir, "heads.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestALowerHeadNeverReplacesAHigherOne(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir, "a-1")
	for _, sequence := range []manifest.Sequence{5, 4, 6, 1} {
		if err := m.Note(head("s", "etcd/main", sequence)); err != nil {
			t.Fatal(err)
		}
	}
	if got := open(t, dir, "a-1").Heads(); len(got) != 1 || got[0].Sequence != 6 {
		t.Errorf("got %v, want sequence 6", got)
	}
}

func TestClustersDoNotMix(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir, "a-1").Note(head("s", "etcd/main", 9)); err != nil {
		t.Fatal(err)
	}
	other := open(t, dir, "a-2")
	if len(other.Heads()) != 0 {
		t.Errorf("the other cluster sees %v", other.Heads())
	}
	if err := other.Note(head("s", "etcd/main", 1)); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir, "a-1").Heads(); len(got) != 1 || got[0].Sequence != 9 {
		t.Errorf("the first cluster lost its memory: %v", got)
	}
}

func TestProcessesThatOverlapForgetNothingOfEachOther(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir, "a-1"), open(t, dir, "a-1")
	if err := b.Note(head("s", "etcd/main", 7)); err != nil {
		t.Fatal(err)
	}
	if err := a.Note(head("s", "hosts/cp1", 1), head("s", "etcd/main", 6)); err != nil {
		t.Fatal(err)
	}
	want := []manifest.Head{head("s", "etcd/main", 7), head("s", "hosts/cp1", 1)}
	if diff := cmp.Diff(want, open(t, dir, "a-1").Heads()); diff != "" {
		t.Error(diff)
	}
}

func TestADamagedMemoryIsAnErrorThatSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "heads.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "a-1"); err == nil || !strings.Contains(err.Error(), "move the file away") {
		t.Errorf("got %v", err)
	}
}
