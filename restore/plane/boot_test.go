package plane

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
)

// boot starts what systemd starts when the machine boots.
func (o *outside) boot() {
	o.t.Helper()
	o.units["kubelet"], o.units["etcd"] = true, true
	o.release = lockDB(o.t, filepath.Join(o.root, o.data, "member/snap/db"))
	o.machine.story = nil
}

func TestAfterAPowerCutWhatBootsIsStoppedAgain(t *testing.T) {
	for _, point := range []string{"begun " + stepFence, "did " + stepStopEtcd, "begun " + stepFiles, "did " + stepFiles, "begun " + stepEtcd, "did " + stepEtcd, "begun " + stepStartEtcd} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			o := newOutside(t, nil)
			o.lost()
			if err := o.restore(point); !errors.Is(err, errKilled) {
				t.Fatalf("not killed: %v", err)
			}
			o.boot()
			check(t, o.restore(""))
			o.wantBack()
			// It reads its files as it starts, so it starts after they are there.
			stop, start := slices.Index(o.machine.story, "stop kubelet"), slices.Index(o.machine.story, "start kubelet")
			if stop < 0 || start < stop || !o.units["kubelet"] {
				t.Errorf("kubelet goes on with the files of before: %v", o.machine.story)
			}
		})
	}
}

func TestAKubeletThatAPersonRunsIsNotStoppedByItsStart(t *testing.T) {
	w := newWorld(t)
	w.machine.noUnit = true
	w.machine.running = false
	if err := w.run("begun " + stepStart); !errors.Is(err, errKilled) {
		t.Fatalf("not killed: %v", err)
	}
	w.machine.running, w.machine.story = true, nil // a person has, as the step said
	check(t, w.run(""))
	w.wantRestored()
	if slices.Contains(w.machine.story, "stop kubelet") {
		t.Errorf("what happened: %v", w.machine.story)
	}
}
