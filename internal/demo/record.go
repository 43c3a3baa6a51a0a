package demo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/backup/etcd"
	"lifeboat/backup/record"
	"lifeboat/internal/manifest"
)

const (
	changes     = 200
	recordLimit = time.Minute // for a recorder to be as far as etcd; a second or two is usual
)

// recordChanges makes changes after the full backup, and at their end a
// mistake, while they are recorded.
func (s *story) recordChanges(ctx context.Context) (text string, err error) {
	e := s.kit.Config.Etcd[0]
	recorder := record.New(record.Options{
		Etcd: etcd.Config{Name: e.Name, Endpoints: e.Endpoints}, Stores: s.runner.Stores, Signer: s.signer,
		Recipients: s.runner.Recipients, RecipientNames: s.runner.RecipientNames, Writer: s.runner.Writer,
		Interval: 500 * time.Millisecond, SpoolDir: filepath.Join(s.kit.Config.StateDir, "spool"),
		Now: s.Now, Rand: s.Rand, Events: s.Events,
	})
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- recorder.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()

	client, err := s.etcd.Client()
	if err != nil {
		return "", err
	}
	defer client.Close()
	var head int64
	for i := range changes {
		answer, err := client.Put(ctx, fmt.Sprintf("/registry/configmaps/default/change-%d", i%50), fmt.Sprint("value ", i))
		if err != nil {
			return "", fmt.Errorf("change etcd: %w", err)
		}
		head = answer.Header.Revision
	}
	s.good = manifest.Revision(head)
	if s.hash, err = s.liveHash(ctx, s.good); err != nil {
		return "", err
	}
	gone, err := client.Delete(ctx, "/registry/", clientv3.WithPrefix())
	if err != nil {
		return "", fmt.Errorf("make a mistake: %w", err)
	}
	if err := s.recorded(ctx, recorder, manifest.Revision(gone.Header.Revision)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d changes to revision %d, then all %d objects deleted: all that is recorded as it happens", changes, s.good, gone.Deleted), nil
}

// recorded returns when the store can give back a revision.
func (s *story) recorded(ctx context.Context, recorder *record.Recorder, revision manifest.Revision) error {
	for deadline := time.After(recordLimit); ; {
		status := recorder.Status()
		if len(status.Stores) == 1 && status.Stores[0].Revision >= revision {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return fmt.Errorf("revision %d was not recorded within %s: %s %s", revision, recordLimit, status.Doing, status.LastError)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
