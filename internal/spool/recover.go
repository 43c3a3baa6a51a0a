package spool

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// recover reads all there is, keeps what is whole from the first file on, and
// opens the last file for writing.
func (l *Log) recover() error {
	found, err := l.list()
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return l.begin(0)
	}
	kept := 1
	for kept < len(found) && found[kept][0] == found[kept-1][1] {
		kept++
	}
	for _, file := range found[:kept] {
		l.files = append(l.files, file[0])
	}
	l.start.Store(found[0][0])
	l.end.Store(found[kept-1][1])
	l.flushed = l.end.Load()
	whole, err := l.whole()
	if err != nil {
		return err
	}
	for l.files[kept-1] > whole {
		kept--
	}
	// From the newest: what is left after a crash in the midst of it is a log
	// with the same damage.
	for i := len(found) - 1; i >= kept; i-- {
		if err := os.Remove(l.path(found[i][0])); err != nil {
			return err
		}
	}
	l.files = l.files[:kept]
	return l.reopen(whole)
}

// whole is the end of the last record before the end, or before any damage.
func (l *Log) whole() (int64, error) {
	r := l.Read(l.Start())
	for {
		switch _, _, err := r.Next(); {
		case err == nil:
		case errors.Is(err, io.EOF) || errors.Is(err, ErrDamaged):
			return int64(r.at), nil
		default:
			return 0, err
		}
	}
}

// reopen appends to the last file from a position on, which is in it.
func (l *Log) reopen(at int64) error {
	begins := l.files[len(l.files)-1]
	f, err := os.OpenFile(l.path(begins), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	l.active = f
	if err := f.Truncate(at - begins); err != nil {
		return fmt.Errorf("cut off what is torn: %w", err)
	}
	l.end.Store(at)
	l.flushed = at
	return nil
}
