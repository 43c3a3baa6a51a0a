package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKilledCopiesAndRekeysGoOn kills real processes that copy and seal anew,
// and lets the next one finish.
func TestKilledCopiesAndRekeysGoOn(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes")
	}
	s := newSite(t)
	for range 4 {
		s.run(exitDone, "backup", "--config", s.config)
	}
	s.run(exitDone, "init", "--cluster", "other", "--store", "file:///none", "--out", filepath.Join(s.dir, "new"), "--host-root", filepath.Join(s.dir, "root"), "--node", "cp1", "--etcd", "http://127.0.0.1:1")
	fresh := filepath.Join(s.dir, "new/recovery.key")
	s.edit(publicKey(t, s.identity), publicKey(t, fresh))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	moments := rand.New(rand.NewPCG(seed, 0))
	two := "file://" + filepath.Join(s.dir, "two")
	died := map[string]int{}
	for _, verb := range [][]string{{"copy", "-q", "--to", two}, {"rekey", "-q", "--identity", s.identity}} {
		for range 8 {
			cmd, errs := s.process(verb...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(40+moments.IntN(120)) * time.Millisecond)
			_ = cmd.Process.Kill()
			if err := cmd.Wait(); err != nil {
				if cmd.ProcessState.ExitCode() != -1 {
					t.Fatalf("%s: %v\n%s", verb[0], err, errs)
				}
				died[verb[0]]++
			}
			s.run(exitDone, "verify", "--config", s.config)
		}
		s.run(exitDone, append(verb, "--config", s.config)...)
	}
	t.Logf("died at work: %v", died)
	s.run(exitDone, "verify", "--config", s.config, "--deep", "--identity", fresh)
	trust := filepath.Join(s.dir, "keys/trust")
	out := s.run(exitDone, "list", "--store", two, "--cluster", "prod", "--trust", trust, "-o", "json")
	var list []listJSON
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 8 {
		t.Errorf("%d backups were copied, want 8: %v", len(list), err)
	}
	s.run(exitDone, "verify", "--store", two, "--cluster", "prod", "--trust", trust, "--deep", "--identity", s.identity)
}

// publicKey is the recipient of an identity's file.
func publicKey(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "# public key: ")
	key, _, _ := strings.Cut(rest, "\n")
	return key
}
