package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/etcdtest"
)

// A disk of another master was carried here: its data directory holds what was
// written after the last backup.
func TestAControlPlaneComesBackFromADataDirectoryThatSurvived(t *testing.T) {
	w := newWard(t)
	lost := filepath.Join(w.work, "lost")
	etcd := w.start("lost", w.port)
	client, err := etcdtest.NewClient(etcd.Endpoint)
	must(t, err)
	var last int64
	for i := range 25 {
		res, err := client.Put(t.Context(), fmt.Sprintf("/registry/late/%d", i), "x")
		must(t, err)
		last = res.Header.Revision
	}
	must(t, client.Close())

	from := w.flags("--from-data-dir", lost)
	if code, _, errs := w.run(t.Context(), "", append(from, "--yes")...); code != exitRefused || !strings.Contains(errs, "in use") {
		t.Errorf("while its etcd runs: exit code %d, %s", code, errs)
	}
	must(t, etcd.Close())
	var plan planePlanJSON
	must(t, json.Unmarshal([]byte(w.must(append(from, "--dry-run", "-o", "json")...)), &plan))
	if s := plan.Survivor; s == nil || s.Against == nil || s.Against.Directory != "fresher" || s.Against.Most < 25 || s.Dir != lost {
		t.Errorf("the plan's survivor: %+v", s)
	}
	for _, other := range [][]string{{"--backup", "x"}, {"--revision", "7"}, {"--with", "restore.json"}, {"--wal", "some"}} {
		if code, _, errs := w.run(t.Context(), "", append(from, other...)...); code != exitUsage {
			t.Errorf("with %v: exit code %d, %s", other, code, errs)
		}
	}
	code, out, errs := w.run(t.Context(), "y\n", from...)
	if code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, out, errs)
	}
	for _, words := range []string{"The control plane of node cp1 is back", "that of the data directory " + lost} {
		if !strings.Contains(out, words) {
			t.Errorf("the report does not say %q:\n%s", words, out)
		}
	}
	if got := w.revision(); got < last+1_000_000_000 {
		t.Errorf("etcd is at revision %d, the last that was acknowledged is %d", got, last)
	}
	again, err := etcdtest.NewClient(w.machine.etcd.Endpoint)
	must(t, err)
	defer again.Close()
	if got, err := again.Get(t.Context(), "/registry/late/24"); err != nil || got.Count != 1 || got.Kvs[0].ModRevision != last {
		t.Errorf("the last change: %+v, %v", got, err)
	}
}
