package work

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"lifeboat/backup/record"
	"lifeboat/internal/agent"
	"lifeboat/internal/config"
	"lifeboat/internal/session"
	"lifeboat/internal/status"
)

const (
	// reportEvery is how often the agent hears how far a recorder is.
	reportEvery = time.Second

	// checkEvery is how often it is seen whether a recorder has become one of
	// yesterday's: with another key, or without a store that answers again.
	checkEvery = 30 * time.Second
)

// errRenewed ends a recorder so that another one begins where it was.
var errRenewed = errors.New("keys, certificates or stores are others now")

// Record records the changes of one etcd cluster until ctx ends. Unlike all
// else it holds what it has opened, so it begins anew when that is renewed.
func (w *Work) Record(ctx context.Context, cluster string, r agent.Recording) error {
	counted := map[string]status.RecorderStore{} // what the recorders before have committed
	for {
		err := w.recordUntilRenewed(ctx, cluster, r, counted)
		if ctx.Err() != nil || !errors.Is(err, errRenewed) {
			return err
		}
	}
}

func (w *Work) recordUntilRenewed(ctx context.Context, cluster string, r agent.Recording, counted map[string]status.RecorderStore) error {
	e, err := find(w.current(), cluster)
	if err != nil {
		return err
	}
	before := printOf(w.current(), e)
	s, err := session.OpenToWrite(ctx, w.current(), w.forgetful())
	if err != nil {
		return agent.Because(status.Config, err)
	}
	defer w.remember(s)
	options, err := s.Recording(e)
	if err != nil {
		return agent.Because(status.Config, err)
	}
	options.Rank = r.Rank
	options.AskFull = func(reason string, epoch uint64) {
		w.wantEpoch(cluster, epoch)
		r.AskFull(reason)
	}
	recorder := record.New(options)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- recorder.Run(ctx) }()
	report, check := time.NewTicker(reportEvery), time.NewTicker(w.checkEvery)
	defer report.Stop()
	defer check.Stop()
	for {
		select {
		case err := <-done:
			told := recorderStatus(recorder.Status(), counted, w.session.Now())
			r.Report(told)
			for _, in := range told.Stores {
				counted[in.Store] = in
			}
			if cause := context.Cause(ctx); errors.Is(cause, errRenewed) {
				return cause
			}
			return err
		case <-report.C:
			r.Report(recorderStatus(recorder.Status(), counted, w.session.Now()))
		case <-check.C:
			if printOf(w.current(), e) != before || w.answersAgain(ctx, s) {
				cancel(errRenewed)
			}
		}
	}
}

// answersAgain reports whether a store that could not be opened for a session
// can be now.
func (w *Work) answersAgain(ctx context.Context, s *session.Session) bool {
	quiet := w.forgetful()
	quiet.Events = nil // that it does not answer was said
	for i, o := range s.Stores {
		if o.Err == nil {
			continue
		}
		again, err := session.OpenToWrite(ctx, s.Config, quiet)
		return err == nil && i < len(again.Stores) && again.Stores[i].Err == nil
	}
	return false
}

// printOf tells whether the files that a recorder has read are still the same.
func printOf(c *config.Config, e config.Etcd) string {
	text := ""
	for _, name := range []string{c.Signing.KeyFile, c.Signing.TrustFile, e.CAFile, e.CertFile, e.KeyFile} {
		if name == "" {
			continue
		}
		if info, err := os.Stat(name); err == nil {
			text += info.ModTime().String() + " "
		}
	}
	return text
}

// wantEpoch notes in which epoch the fulls of a cluster are to be committed, at
// least.
func (w *Work) wantEpoch(cluster string, epoch uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.epochs[cluster] = max(w.epochs[cluster], epoch)
}

func (w *Work) wantedEpoch(cluster string) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.epochs[cluster]
}

// recorderStatus is what the agent tells of a recorder, with what those before
// it have committed.
func recorderStatus(s record.Status, counted map[string]status.RecorderStore, now time.Time) status.Recorder {
	out := status.Recorder{
		Active: s.Active, Why: s.Doing, Error: s.LastError, Revision: int64(s.Revision), Recorded: s.Time,
		SpoolBytes: s.SpoolBytes, SpoolLimit: s.SpoolLimit, Wanted: s.FullWanted, Stores: []status.RecorderStore{},
	}
	for _, in := range s.Stores {
		before := counted[in.URL]
		store := status.RecorderStore{
			Store: in.URL, Epoch: in.Epoch, Revision: int64(in.Revision), RecoveryPoint: in.RecoveryPoint, Behind: in.Behind,
			Waiting: in.Waiting, Error: in.Err, Segments: before.Segments + in.Segments, RollUps: before.RollUps + in.RollUps,
			LastGap: before.LastGap, GapWhy: before.GapWhy,
		}
		if store.RecoveryPoint.IsZero() {
			store.RecoveryPoint = before.RecoveryPoint // what can be restored stays so
			if store.RecoveryPoint.After(now) {        // the clock was set back since
				store.RecoveryPoint = now
			}
		}
		for _, gap := range s.Gaps {
			if gap.Store == in.URL && gap.At.After(store.LastGap) {
				store.LastGap, store.GapWhy = gap.At, gapText(gap)
			}
		}
		out.Stores = append(out.Stores, store)
	}
	return out
}

func gapText(g record.Gap) string {
	if g.To == 0 {
		return fmt.Sprintf("from revision %d on: %s", g.From, g.Why)
	}
	return fmt.Sprintf("revisions %d to %d: %s", g.From, g.To, g.Why)
}
