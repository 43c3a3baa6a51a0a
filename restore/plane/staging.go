package plane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"lifeboat/internal/durable"
	"lifeboat/restore/datadir"
	"lifeboat/restore/journal"
)

// madeName is the file beside the journal that says where a new member is made. A
// restore that is given up before the member was put in place has left it there,
// with all that the database holds.
const madeName = "members.json"

// noteMembers writes down where new members are made. Each run does, since one may
// have been killed before it came to that.
func (p *Plan) noteMembers(notes ...etcdNote) error {
	text, err := json.Marshal(notes)
	if err != nil {
		return err
	}
	_, err = durable.WriteFile(filepath.Join(p.journalDir(), madeName), bytes.NewReader(text), durable.Options{Mode: 0o600})
	return err
}

// dropMembers removes new members that were never put in place.
func dropMembers(j *journal.Journal) error {
	text, err := os.ReadFile(filepath.Join(j.Dir(), madeName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was given up before it had begun
	}
	if err != nil {
		return err
	}
	notes, err := read[[]etcdNote](text)
	if err != nil {
		return err
	}
	for _, n := range notes {
		// It finishes what is unfinished; by now no member of this restore is in place.
		if _, err := datadir.Installed(n.DataDir, n.AsideDir, n.ID); err != nil {
			return fmt.Errorf("remove the member that was made in %s: %w", n.DataDir, err)
		}
	}
	return nil
}
