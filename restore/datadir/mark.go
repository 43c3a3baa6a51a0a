package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// markName is the file in a new member's folder that says which restore made
// it. Being in the folder it comes into place with the member, by the same
// exchange, and leaves with it: no moment and no kill can part the two. etcd
// opens snap and wal below the folder and never lists the folder itself.
const markName = ".lifeboat-restore"

// mark is what stands in that file.
type mark struct {
	ID string `json:"id"` // of the restore

	// What was in place before the restore of that id first came: nothing, or
	// a member, whose folder keeps its inode number wherever it is renamed to.
	Had      bool   `json:"had"`
	OldInode uint64 `json:"oldInode,omitempty"`

	// Undoing is set before PutBack takes the member away, so that one that
	// was killed is told from a member that another Install moved aside.
	Undoing bool `json:"undoing,omitempty"`
}

// readMark returns nil if the member, or its mark, does not exist.
func readMark(member string) (*mark, error) {
	path := filepath.Join(member, markName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m mark
	if err := json.Unmarshal(text, &m); err != nil || m.ID == "" {
		return nil, fmt.Errorf("%s is not a restore's mark", path)
	}
	return &m, nil
}

// isOf says whether the member at path was made by the restore of that id. A
// mark that can't be read is nobody's.
func isOf(member, id string) bool {
	m, err := readMark(member)
	return err == nil && m != nil && m.ID == id
}

func (m *mark) write(member string, owner *Owner) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	path := filepath.Join(member, markName)
	if err := os.WriteFile(path+".tmp", text, 0o600); err != nil {
		return fmt.Errorf("mark the new member: %w", err)
	}
	if owner != nil {
		if err := os.Lchown(path+".tmp", owner.UID, owner.GID); err != nil {
			return fmt.Errorf("mark the new member: %w", err)
		}
	}
	if err := syncFile(path + ".tmp"); err != nil {
		return err
	}
	return rename(path+".tmp", path)
}

// mark writes into the staged member what Install is about to do. Where the
// same restore's member is in place already, what was there before it counts.
func (s *Staging) mark(member, staged string) error {
	m := mark{ID: s.opts.ID}
	if was, err := readMark(member); err == nil && was != nil && was.ID == m.ID {
		m.Had, m.OldInode = was.Had, was.OldInode
		return m.write(staged, s.owner)
	}
	var err error
	if m.Had, err = exists(member); err != nil {
		return err
	}
	if m.Had {
		if m.OldInode, err = inode(member); err != nil {
			return err
		}
	}
	return m.write(staged, s.owner)
}

// IsOf says whether the member in a data directory was made by the restore of that
// id. It changes nothing; Installed says it too, and finishes what a kill has left.
func IsOf(dataDir, id string) (bool, error) {
	m, err := readMark(filepath.Join(dataDir, "member"))
	return m != nil && m.ID == id, err
}
