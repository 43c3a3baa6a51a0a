package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"lifeboat/internal/durable"
)

// unfinishedMark is the file beside an aside folder that is there while a restore of
// files moves what it replaces into that folder, and stays where it was interrupted.
func unfinishedMark(aside string) string { return aside + ".unfinished" }

// markUnfinished writes the mark, and says whether it was not there before.
func markUnfinished(mark string) (made bool, err error) {
	if _, err := os.Lstat(mark); err == nil {
		return false, nil
	}
	_, err = durable.WriteFile(mark, strings.NewReader(""), durable.Options{Mode: 0o600})
	return err == nil, err
}

// removeMark removes the mark if it is there. It looks first: on a read-only disk
// removing fails even where there is nothing to remove.
func removeMark(mark string) error {
	_, err := os.Lstat(mark)
	if err == nil {
		err = os.Remove(mark)
	}
	if isMissing(err) {
		return nil
	}
	return err
}

// isBare says that nothing is in a folder, or that there is no such folder.
func isBare(folder string) bool {
	entries, err := os.ReadDir(folder)
	return isMissing(err) || err == nil && len(entries) == 0
}

// isMissing says that there is no such file or folder, or that a file is where its
// folder should be.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
