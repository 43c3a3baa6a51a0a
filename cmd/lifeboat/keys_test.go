package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/status"
)

// What signed a backup is in its manifest, and whom to believe in the trust file.
// Both are replaced while the agent runs, and it is told of neither.
func TestAReplacedSigningKeyCountsFromTheNextRunOn(t *testing.T) {
	t.Parallel()
	c := newCrew(t, "", cluster.StartBinary(t, "3.6", cluster.Options{}), nil, "full:", `full: "@every 3s"`, "files:", `files: ""`)
	p := c.agents[0]
	key, trust := filepath.Join(c.dir, "keys/signing.key"), filepath.Join(c.dir, "keys/trust")
	c.start(p)
	c.until(60*time.Second, "the first full", func() bool { return len(c.fulls()) > 0 })

	// A key whose verifier is in no trust file yet: nothing may be signed with it.
	old, err := os.ReadFile(trust)
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(c.dir, "keys/next.key")
	if out, err := exec.Command("lifeboat", "rekey", "signer", "--out", next, "--config", c.config).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	both, err := os.ReadFile(trust)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, trust, old)
	copyFile(t, next, key)
	c.until(60*time.Second, "a run fails for the key", func() bool {
		r := p.run(status.Full)
		return r.Result == status.Failed && r.Reason == status.Config
	})
	before := c.fulls()

	// Now the trust file alone.
	replace(t, trust, both)
	c.until(120*time.Second, "the next full", func() bool { return len(c.fulls()) > len(before) })
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil { // no more of them
		t.Fatal(err)
	}
	c.verified()
	// Who believes the old key alone believes the old backups alone.
	replace(t, trust, old)
	cmd := exec.Command("lifeboat", "verify", "--config", c.config)
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != exitVerify || !strings.Contains(string(out), "etcd/main") {
		t.Errorf("what was taken since verifies by the old key: %v\n%s", err, out)
	}
}
