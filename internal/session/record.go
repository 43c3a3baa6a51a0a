package session

import (
	"fmt"
	"path/filepath"
	"time"

	"lifeboat/backup"
	"lifeboat/backup/record"
	"lifeboat/internal/config"
	"lifeboat/internal/seal"
)

// Recording are the options of a recorder of one etcd cluster to the stores of a
// session that was opened to write. Rank and AskFull are the caller's to set.
func (s *Session) Recording(e config.Etcd) (record.Options, error) {
	c := s.Config
	recipients, err := seal.ParseRecipients(c.Recipients)
	if err != nil {
		return record.Options{}, fmt.Errorf("%w: recipients: %w", config.ErrInvalid, err)
	}
	o := record.Options{
		Etcd: EtcdConfig(e), Limits: Limits(c), Signer: s.signer, Recipients: recipients, RecipientNames: c.Recipients, Writer: s.Writer(),
		Interval: time.Duration(c.Segments.Interval), MaxBytes: c.Segments.MaxBytes, SpoolBytes: c.Segments.SpoolBytes,
		// What is in it is of one cluster and not sealed yet: never another's.
		SpoolDir: filepath.Join(c.StateDir, "spool", s.Trust.Cluster, e.Name),
		Prune:    true, Now: s.options.Now, Rand: s.options.Rand, Events: s.options.Events,
	}
	for _, opened := range s.Stores {
		o.Stores = append(o.Stores, backup.Store{
			URL: opened.URL, Repository: opened.Repository, Err: opened.Err, RetainDays: opened.Settings.S3.ObjectLock.Days,
		})
	}
	return o, nil
}
