package pki

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"lifeboat/internal/durable"
)

// journalName is where a run notes what it puts in place, relative to the root.
const journalName = "var/lib/lifeboat/reissue.json"

const stagedPrefix = ".lifeboat-reissue-"

// journal is there from the moment when all new files are written and all old
// ones kept until the last of them is in place.
type journal struct {
	ID    string `json:"id"`
	Moves []move `json:"moves"`
}

// move puts a staged file or link in its place, or empties the place.
type move struct {
	Place  string `json:"place"`
	Staged string `json:"staged,omitempty"` // "": the place becomes empty
	Sum    string `json:"sum,omitempty"`    // SHA-256 of the staged bytes, of a link's target
}

// stagedName is the name under which a file is written before it takes its
// place: in the same folder, the same at every try.
func stagedName(place string) string {
	sum := sha256.Sum256([]byte(place))
	return path.Join(path.Dir(place), stagedPrefix+hex.EncodeToString(sum[:10]))
}

// names are the files of a journal as the host sees them; none for no journal.
func (j *journal) names() []string {
	if j == nil {
		return nil
	}
	out := []string{}
	for _, m := range j.Moves {
		out = append(out, "/"+m.Place)
	}
	return out
}

// journal reads the journal of an interrupted run, nil if there is none.
func (t *tree) journal() (*journal, error) {
	place, err := t.resolve(journalName)
	if err != nil || place.Missing {
		return nil, err
	}
	_, data, err := t.readPlace(place.Name, journalLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	j := new(journal)
	if err == nil {
		err = j.parse(data)
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal of an interrupted run, /%s: %w", journalName, err)
	}
	return j, nil
}

func (j *journal) parse(data []byte) error {
	if err := json.Unmarshal(data, j); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if len(j.Moves) == 0 {
		return fmt.Errorf("%w: it names no file", ErrUnreadable)
	}
	for _, m := range j.Moves {
		if !fs.ValidPath(m.Place) || m.Place == "." || m.Staged != "" && m.Staged != stagedName(m.Place) {
			return fmt.Errorf("%w: it names %q, which no run does", ErrUnreadable, m.Place)
		}
	}
	return nil
}

// begin writes the journal: the moment from which a run is finished and no
// longer dropped.
func (t *tree) begin(j *journal) error {
	place, err := t.resolve(journalName)
	if err != nil {
		return err
	}
	dir := path.Dir(place.Name)
	if err := t.root.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for above := path.Dir(dir); above != "."; above = path.Dir(above) {
		if err := durable.SyncDirIn(t.root, above); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	if err := t.before("journal", place.Name); err != nil {
		return err
	}
	return t.write(place.Name, data)
}

// write makes or replaces a file, durably.
func (t *tree) write(place string, data []byte) (err error) {
	temp, err := durable.CreateTemp(t.root, path.Dir(place), 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, temp.Discard()) }()
	if _, err := temp.Write(data); err != nil {
		return err
	}
	return temp.Publish(place, false)
}

// finish puts in place what the journal names and has not been, and ends it.
func (t *tree) finish(j *journal) error {
	dirs := map[string]bool{}
	for _, m := range j.Moves {
		if err := t.finishOne(m); err != nil {
			return fmt.Errorf("put /%s in place: %w", m.Place, err)
		}
		dirs[path.Dir(m.Place)] = true
	}
	for dir := range dirs {
		if err := durable.SyncDirIn(t.root, dir); err != nil {
			return fmt.Errorf("make folder /%s durable; apply again to go on: %w", dir, err)
		}
	}
	// From here on nothing is left to do but to forget the journal.
	place, err := t.resolve(journalName)
	if err != nil {
		return err
	}
	if err := t.before("end", place.Name); err != nil {
		return err
	}
	if err := t.root.Remove(place.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the journal /%s: %w", place.Name, err)
	}
	return durable.SyncDirIn(t.root, path.Dir(place.Name))
}

func (t *tree) finishOne(m move) error {
	if m.Staged == "" {
		if err := t.before("remove", m.Place); err != nil {
			return err
		}
		if err := t.root.Remove(m.Place); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if _, err := t.lstat(m.Staged); errors.Is(err, fs.ErrNotExist) {
		return t.inPlace(m)
	} else if err != nil {
		return err
	}
	if err := t.before("rename", m.Place); err != nil {
		return err
	}
	return t.root.Rename(m.Staged, m.Place)
}

// errLost says that an interrupted run can't be finished.
var errLost = errors.New("the new file is neither beside its place nor in it; undo with the aside folder, then plan again")

// inPlace makes sure that a move whose staged file is gone has been made.
func (t *tree) inPlace(m move) error {
	var data []byte
	var err error
	if target, linkErr := t.readlink(m.Place); linkErr == nil && target != "" {
		data = []byte(target)
	} else {
		_, data, err = t.readPlace(m.Place, fileLimit)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || sumOf(data) != m.Sum {
		return errLost
	}
	return nil
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// sweep removes what a run left that never came to its journal.
func (t *tree) sweep(dir string) error {
	f, err := t.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, stagedPrefix) {
			if err := t.root.Remove(path.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return durable.SweepTemp(t.root, dir)
}
