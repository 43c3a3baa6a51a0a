package salvage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/snapdb"
)

// slow makes members commit their database rarely, so that a kill leaves much in
// the log alone.
var slow = []string{"--backend-batch-interval", "30s", "--backend-batch-limit", "1000000"}

// copyDir copies a data directory as an operator would.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "survivor")
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}

// load writes in several goroutines until the member is killed, and returns what
// was acknowledged: for each key the last value.
func load(t *testing.T, client *clientv3.Client, kill func(), writers int) map[string]string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	acked := map[string]string{}
	var running sync.WaitGroup
	for w := range writers {
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key, value := fmt.Sprintf("load/%d/%d", w, i), fmt.Sprintf("value %d of %d", i, w)
				if _, err := client.Put(ctx, key, value); err != nil {
					return
				}
				mu.Lock()
				acked[key] = value
				mu.Unlock()
			}
		})
	}
	for n, deadline := 0, time.Now().Add(time.Minute); n <= 300; {
		time.Sleep(5 * time.Millisecond)
		mu.Lock()
		n = len(acked)
		mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("only %d writes in a minute", n)
		}
	}
	kill()
	cancel()
	running.Wait()
	return acked
}

// variety makes a change of every kind that a client can ask for.
func variety(t *testing.T, c *clientv3.Client) {
	t.Helper()
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for i := range 40 {
		_, err := c.Put(ctx, fmt.Sprintf("v/%02d", i%10), fmt.Sprint(i))
		must("put", err)
	}
	_, err := c.Delete(ctx, "v/03")
	must("delete", err)
	_, err = c.Delete(ctx, "v/05", clientv3.WithRange("v/08"))
	must("delete a range", err)
	_, err = c.Delete(ctx, "v/none")
	must("delete nothing", err)
	kept, err := c.Grant(ctx, 3600)
	must("grant", err)
	gone, err := c.Grant(ctx, 3600)
	must("grant", err)
	for i := range 5 {
		_, err = c.Put(ctx, fmt.Sprintf("leased/%d", i), "x", clientv3.WithLease(kept.ID))
		must("put with a lease", err)
		_, err = c.Put(ctx, fmt.Sprintf("gone/%d", i), "x", clientv3.WithLease(gone.ID))
		must("put with a lease", err)
	}
	_, err = c.Put(ctx, "leased/0", "", clientv3.WithIgnoreValue(), clientv3.WithIgnoreLease())
	must("put that keeps value and lease", err)
	_, err = c.Revoke(ctx, gone.ID)
	must("revoke", err)
	if _, err = c.Put(ctx, "refused", "x", clientv3.WithLease(gone.ID)); err == nil {
		t.Fatal("a put with a lease that is gone was taken")
	}
	for _, want := range []string{"39", "nothing"} {
		_, err = c.Txn(ctx).If(clientv3.Compare(clientv3.Value("v/09"), "=", want), clientv3.Compare(clientv3.Version("v/01"), ">", 1)).
			Then(clientv3.OpPut("txn/then", want), clientv3.OpPut("txn/also", want), clientv3.OpDelete("v/00"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("txn/inner", "1")}, nil)).
			Else(clientv3.OpGet("v/01"), clientv3.OpPut("txn/else", want)).Commit()
		must("transaction", err)
	}
	_, err = c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision("v/01"), "=", 0)).Then(clientv3.OpPut("never", "x")).Else(clientv3.OpGet("v/01")).Commit()
	must("transaction that reads", err)
	now, err := c.Get(ctx, "v/01")
	must("get", err)
	_, err = c.Compact(ctx, now.Header.Revision-10)
	must("compact", err)
	if _, err = c.Compact(ctx, now.Header.Revision-20); err == nil {
		t.Fatal("a compaction below another was taken")
	}
	_, err = c.UserAdd(ctx, "root", "secret")
	must("add a user", err)
	_, err = c.RoleAdd(ctx, "root")
	must("add a role", err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	must("grant a role", err)
	_, err = c.RoleAdd(ctx, "reader")
	must("add a role", err)
	_, err = c.RoleGrantPermission(ctx, "reader", "v/", "v0", clientv3.PermissionType(clientv3.PermRead))
	must("grant a permission", err)
}

// salvaged opens a directory and makes a copy of its database with the log applied.
func salvaged(t *testing.T, dir string, take Take) (string, *Found, *Applied) {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f, err := s.Inspect(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "db")
	r, size, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(out, r); err != nil || n != size {
		t.Fatalf("%d of %d bytes, %v", n, size, err)
	}
	if err := errors.Join(out.Truncate(size-32), out.Close()); err != nil {
		t.Fatal(err)
	}
	through := f.Log.Through(take)
	if through == f.Log.Applied {
		return path, f, &Applied{Revision: f.Database.Revision}
	}
	a, err := s.Apply(t.Context(), path, f, through, nil)
	if err != nil {
		t.Fatal(err)
	}
	return path, f, a
}

// contents reads all that a database holds, but what its cluster is.
func contents(t *testing.T, path string) map[string][]byte {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	all := map[string][]byte{}
	err = db.View(func(tx *bbolt.Tx) error {
		for _, name := range []string{"key", "lease", "auth", "authUsers", "authRoles", "alarm"} {
			b := tx.Bucket([]byte(name))
			if b == nil {
				continue
			}
			if err := b.ForEach(func(k, v []byte) error {
				all[fmt.Sprintf("%s %x", name, k)] = bytes.Clone(v)
				return nil
			}); err != nil {
				return err
			}
		}
		for _, name := range []string{"scheduledCompactRev", "finishedCompactRev"} {
			all["meta "+name] = bytes.Clone(tx.Bucket([]byte("meta")).Get([]byte(name)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func same(t *testing.T, got, want map[string][]byte) {
	t.Helper()
	n := 0
	for k := range maps.Keys(want) {
		if g, ok := got[k]; !ok || !bytes.Equal(g, want[k]) {
			if n++; n < 10 {
				t.Errorf("%s: %x (there: %v), the member has %x", k, g, ok, want[k])
			}
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			if n++; n < 10 {
				t.Errorf("%s: %x, the member has none", k, got[k])
			}
		}
	}
}

func TestWhatASoleMemberAcknowledgedIsAllThereAndAsItWouldStartItself(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			c := cluster.StartBinary(t, version, cluster.Options{Args: slow})
			client := c.Client()
			// A compaction commits what is before it. So that the log has one of
			// everything, the database is that of a commit before.
			if _, err := client.Put(t.Context(), "first", "x"); err != nil {
				t.Fatal(err)
			}
			old, err := os.ReadFile(c.Members[0].DBFile())
			if err != nil {
				t.Fatal(err)
			}
			variety(t, client)
			acked := load(t, client, func() { c.Kill(0) }, 4)
			dir := copyDir(t, c.Members[0].Dir)
			if err := os.WriteFile(filepath.Join(dir, "member", "snap", "db"), old, 0o600); err != nil {
				t.Fatal(err)
			}
			path, f, applied := salvaged(t, dir, TakeAll)
			t.Logf("%d acknowledged puts; database at revision %d, log %+v; applied %+v", len(acked), f.Database.Revision, f.Log, *applied)
			if !f.Sole() || f.Log.Broken != "" || f.Log.Gap != "" || f.Log.ClusterID == 0 || f.Voters() != 1 {
				t.Errorf("found %+v, %d voters", f.Log, f.Voters())
			}
			if applied.Entries < int64(len(acked)) || applied.Refused < 2 {
				t.Errorf("applied %+v, of %d acknowledged puts in the log alone and two that were refused", *applied, len(acked))
			}
			facts, err := snapdb.Inspect(t.Context(), path, snapdb.Options{})
			if err != nil || facts.Revision != applied.Revision {
				t.Fatalf("the result: %+v, %v", facts, err)
			}

			c.Restart(0) // a sole member commits and applies its whole log
			again := c.Client()
			got, err := again.Get(t.Context(), "load/", clientv3.WithPrefix())
			if err != nil {
				t.Fatal(err)
			}
			if got.Header.Revision != applied.Revision {
				t.Errorf("revision %d, the member starts at %d", applied.Revision, got.Header.Revision)
			}
			hash, err := again.HashKV(t.Context(), c.Members[0].Endpoint, applied.Revision)
			if err != nil {
				t.Fatal(err)
			}
			if mine, err := snapdb.HashKV(t.Context(), path, applied.Revision, hash.CompactRevision); err != nil || mine != hash.Hash {
				t.Errorf("HashKV %08x (%v), the member's is %08x", mine, err, hash.Hash)
			}
			c.Stop(0)
			mine, theirs := contents(t, path), contents(t, c.Members[0].DBFile())
			same(t, mine, theirs)
			missing := 0
			values := map[string]bool{}
			for k, v := range mine {
				if len(k) > 4 && k[:4] == "key " {
					values[string(v)] = true
				}
			}
			for key, value := range acked {
				found := false
				for v := range values {
					if bytes.Contains([]byte(v), []byte(key)) && bytes.Contains([]byte(v), []byte(value)) {
						found = true
						break
					}
				}
				if !found {
					missing++
				}
			}
			if missing > 0 {
				t.Errorf("%d of %d acknowledged puts are missing", missing, len(acked))
			}
		})
	}
}
