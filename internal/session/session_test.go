package session

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
)

// A backup that was killed leaves the database as it was streamed. The next one
// of etcd may be hours away.
func TestWhatAKilledBackupLeftIsRemovedByWhoeverOpensNext(t *testing.T) {
	c := config.Default()
	c.StateDir, c.Stores = t.TempDir(), []config.Store{config.DefaultStore("file://" + t.TempDir())}
	dead := filepath.Join(c.StateDir, "scratch", "scratch-1")
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "snapshot.db"), []byte("secrets"), 0o600); err != nil {
		t.Fatal(err)
	}
	living, err := durable.OpenScratch(filepath.Join(t.TempDir(), "scratch"))
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	mine := filepath.Join(c.StateDir, "scratch", filepath.Base(living.Path()))
	if err := os.Rename(living.Path(), mine); err != nil { // OpenScratch itself would have swept
		t.Fatal(err)
	}
	defer os.RemoveAll(mine)
	cluster, err := manifest.NewCluster(rand.Reader, "prod")
	if err != nil {
		t.Fatal(err)
	}
	var told []events.Event
	options := Options{Now: time.Now, Rand: rand.Reader, Events: func(e events.Event) { told = append(told, e) }}
	if _, err := Open(t.Context(), c, &manifest.Trust{Cluster: cluster}, nil, "", options); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("the dead one's: %v", err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("the living one's: %v", err)
	}
	if len(told) != 0 {
		t.Errorf("told %+v", told)
	}
}
