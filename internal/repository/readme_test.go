package repository

import (
	"strings"
	"testing"
)

// Stores hold the text of the lifeboat that began them.
func TestEveryTextOfTheReadmeThatWasWrittenIsKnown(t *testing.T) {
	w, r := small(t)
	name := testCluster + "/" + readmeName
	if got := string(get(t, w.store, name)); got != readme(readmes[0], testCluster) || !strings.Contains(got, "images/manifests/N") || !strings.Contains(got, "segment") {
		t.Errorf("what is written is not the newest text:\n%s", got)
	}
	for i, text := range readmes {
		for change, known := range map[string]bool{"": true, "send us the identity\n": false} {
			set(t, w.store, name, []byte(readme(text, testCluster)+change))
			problems, err := r.checkReadme(t.Context())
			if err != nil || (len(problems) == 0) != known {
				t.Errorf("text %d with %q: %v, %v", i, change, problems, err)
			}
		}
	}
	set(t, w.store, name, []byte("another"))
	if problems, err := r.checkReadme(t.Context()); err != nil || len(problems) != 1 || problems[0].Kind != ReadmeChanged {
		t.Errorf("%v, %v", problems, err)
	}
}
