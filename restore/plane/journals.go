package plane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"lifeboat/internal/durable"
	"lifeboat/restore/journal"
)

// stagedName is the folder of a restore's staged files, beside its journal. It holds
// private keys, and goes when the restore has ended.
const stagedName = "staged"

// OpenJournals opens the folder of the journals of restores for this process
// alone, and removes the private keys that others have left there as they died: their
// scratch folders, and what was staged for restores that have ended. Errors are
// journal.Open's and those of the disk.
func OpenJournals(path string, now func() time.Time) (*journal.Folder, error) {
	folder, err := journal.Open(path, now)
	if err != nil {
		return nil, err
	}
	if err := sweep(folder, path); err != nil {
		return nil, errors.Join(fmt.Errorf("remove what restores that have ended left in %s: %w", path, err), folder.Close())
	}
	return folder, nil
}

func sweep(folder *journal.Folder, path string) error {
	if err := durable.SweepScratch(path); err != nil {
		return err
	}
	list, err := folder.List()
	if err != nil && !unreadable(err) {
		return err
	}
	var errs []error
	for _, j := range list {
		if j.Record().Outcome != journal.UnderWay {
			errs = append(errs, removeStaged(j))
		}
	}
	return errors.Join(errs...)
}

// unreadable says that some journals could not be read, which hides no others.
func unreadable(err error) bool {
	return errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrNewer)
}

// removeStaged removes the staged files of a restore that has ended.
func removeStaged(j *journal.Journal) error {
	return os.RemoveAll(filepath.Join(j.Dir(), stagedName))
}

// Unfinished finds the restore that was begun in a state folder and has not
// ended; nil if there is none. Journals that can't be read are an error only if
// no other is unfinished.
func Unfinished(folder *journal.Folder) (*journal.Journal, error) {
	list, err := folder.List()
	for _, j := range list {
		if j.Record().Outcome == journal.UnderWay {
			return j, nil
		}
	}
	if err != nil && unreadable(err) {
		return nil, fmt.Errorf("look for an unfinished restore: %w", err)
	}
	return nil, err
}
