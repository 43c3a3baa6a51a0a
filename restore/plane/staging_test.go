package plane

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/restore/journal"
)

func TestARestoreThatIsGivenUpLeavesNoNewMember(t *testing.T) {
	for _, point := range []string{"begun " + stepStop, "did " + stepFence, "begun " + stepEtcd, "did " + stepPods} {
		w := newWorld(t)
		w.old()
		before := w.tree()
		if err := w.run(point); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		folder, err := journal.Open(filepath.Join(w.state, "restores"), w.options().Now)
		check(t, err)
		j, err := Unfinished(folder)
		check(t, err)
		// Where a process is killed its new member stays, which it has not been here.
		made := filepath.Join(w.root, "var/lib/etcd/.lifeboat-restore", j.Record().ID, "member/snap")
		check(t, folder.Close())
		check(t, os.MkdirAll(made, 0o700))
		check(t, os.WriteFile(filepath.Join(made, "db"), []byte("all Secrets"), 0o600))
		check(t, w.abort())
		after := w.tree()
		for name := range after {
			if _, known := before[name]; !known {
				t.Errorf("%s: %s is left", point, name)
			}
		}
		for name, text := range before {
			if after[name] != text {
				t.Errorf("%s: %s is not as it was", point, name)
			}
		}
	}
}
