package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/restore/journal"
)

// withEvents gives a node a second etcd, in a static pod, that holds events.
func withEvents(t *testing.T) func(host string) {
	return func(host string) {
		const pod = `apiVersion: v1
kind: Pod
metadata: {name: etcd-events, namespace: kube-system}
spec:
  hostNetwork: true
  containers:
  - name: etcd
    image: registry.k8s.io/etcd:3.6.8-0
    command: [etcd, --name=cp1-events, --data-dir=/var/lib/etcd-events, "--listen-client-urls=https://127.0.0.1:2381", "--advertise-client-urls=https://127.0.0.1:2381", "--initial-advertise-peer-urls=https://127.0.0.1:2382"]
    volumeMounts: [{name: data, mountPath: /var/lib/etcd-events}]
  volumes: [{name: data, hostPath: {path: /var/lib/etcd-events}}]
`
		manifests := filepath.Join(host, "etc/kubernetes/manifests")
		must(t, os.WriteFile(filepath.Join(manifests, "etcd-events.yaml"), []byte(pod), 0o600))
		rewrite(t, filepath.Join(manifests, "kube-apiserver.yaml"), "    - --etcd-servers=", "    - --etcd-servers-overrides=/events#https://127.0.0.1:2381\n    - --etcd-servers=")
	}
}

func TestWhatBelongsToAnUnfinishedRestoreStaysWhateverItsName(t *testing.T) {
	w := newWardOf(t, withEvents(t))
	db := filepath.Join(w.root, "var/lib/etcd-events/member/snap/db")
	must(t, os.MkdirAll(filepath.Dir(db), 0o700))
	must(t, os.WriteFile(db, []byte("old events"), 0o600))
	before := w.old()
	w.interrupt("API", w.flags("--yes")...)
	clean := []string{"restore", "clean", "--config", w.config, "--root", w.root, "--yes", "-o", "json"}

	found, err := filepath.Glob(filepath.Join(w.state, "restores/*", journal.FileName))
	if err != nil || len(found) != 1 {
		t.Fatalf("journals: %v, %v", found, err)
	}
	id := filepath.Base(filepath.Dir(found[0]))
	// Of another restore, whose name only begins alike, and which has no journal.
	other := filepath.Join(w.state, "aside", id+"0")
	stays := func(why string) {
		t.Helper()
		must(t, os.MkdirAll(other, 0o700))
		events := false
		for _, k := range decode[[]keptJSON](t, w.must(clean...)) {
			events = events || strings.HasSuffix(k.Path, ".events")
			if k.Removed != (k.Path == other) || !k.Removed && k.Stays != why {
				t.Errorf("%s is of %s, removed %v, stays: %q", k.Path, k.RestoreID, k.Removed, k.Stays)
			}
		}
		if !events {
			t.Error("it does not tell of the old events")
		}
	}
	stays("its restore is not finished")
	text, err := os.ReadFile(found[0])
	must(t, err)
	must(t, os.WriteFile(found[0], text[:len(text)/2], 0o600))
	stays("its journal can't be read")
	must(t, os.WriteFile(found[0], text, 0o600))

	w.must("restore", "abort", "--config", w.config, "--root", w.root, "--yes")
	sameTree(t, before, w.tree())
}

func TestADryRunOfCleanChangesNothing(t *testing.T) {
	w := newWard(t)
	state := filepath.Join(t.TempDir(), "state")
	text := w.must("restore", "clean", "--state-dir", state, "--root", w.root, "--dry-run")
	if left, err := os.ReadDir(state); !os.IsNotExist(err) {
		t.Errorf("it made %v in the state folder (%v):\n%s", left, err, text)
	}

	// An ended restore, killed before it removed its staged files.
	folder, err := journal.Open(journalsDir(state), time.Now)
	must(t, err)
	j, err := folder.Begin("r1", nil)
	must(t, err)
	must(t, j.End(journal.Done))
	must(t, folder.Close())
	key := filepath.Join(j.Dir(), "staged/ca.key")
	must(t, os.MkdirAll(filepath.Dir(key), 0o700))
	must(t, os.WriteFile(key, []byte("key"), 0o600))
	text = w.must("restore", "clean", "--state-dir", state, "--root", w.root, "--dry-run")
	if _, err := os.Stat(key); err != nil || !strings.Contains(text, j.Dir()) {
		t.Errorf("%v\n%s", err, text)
	}
}
