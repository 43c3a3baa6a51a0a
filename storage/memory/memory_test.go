package memory_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"lifeboat/storage"
	"lifeboat/storage/memory"
	"lifeboat/storage/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) storage.Store { return memory.New() }, storetest.Protects())
}

func TestVersionedStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) storage.Store { return memory.New(memory.WithVersioning()) }, storetest.Protects())
}

func TestProtectionEndsByTheStoresClock(t *testing.T) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	s := memory.New(memory.WithClock(func() time.Time { return now }))
	if err := s.Put(t.Context(), "a", strings.NewReader("kept"), storage.PutOptions{RetainUntil: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(59 * time.Minute)
	if err := s.Delete(t.Context(), "a"); !errors.Is(err, storage.ErrProtected) {
		t.Fatalf("delete a minute early: %v", err)
	}
	if err := s.Put(t.Context(), "a", strings.NewReader("new"), storage.PutOptions{}); !errors.Is(err, storage.ErrProtected) {
		t.Fatalf("replace a minute early: %v", err)
	}
	now = now.Add(time.Minute)
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
}
