package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

func recordingConfig(t *testing.T) *config.Config {
	c := testConfig(t)
	c.Segments = config.Default().Segments
	return c
}

// inTime is a store with a full of an hour ago, by the bubble's clock.
func inTime() (*Picture, error) {
	now := time.Now()
	return &Picture{Stores: []StorePicture{holding("s3://a", map[manifest.Chain]time.Time{"etcd/main": now.Add(-time.Minute)})}}, nil
}

func TestARecorderRunsFromStartToEndAndSaysWhatItDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := false
		f := &fake{picture: inTime, record: func(ctx context.Context, r Recording) error {
			r.Report(status.Recorder{Active: true, Revision: 17, Stores: []status.RecorderStore{{Store: "s3://a", RecoveryPoint: time.Now()}}})
			<-ctx.Done()
			ended = true
			return ctx.Err()
		}}
		a, stop := started(t, Options{Config: recordingConfig(t), Works: f})
		time.Sleep(time.Minute)
		synctest.Wait()
		s := a.Status()
		if len(s.Recorders) != 1 || s.Recorders[0].Chain != "etcd/main" || !s.Recorders[0].Running || s.Recorders[0].Revision != 17 || s.Recorders[0].Interval != 2*time.Second {
			t.Errorf("%+v", s.Recorders)
		}
		if list := problemsOf(s, "recorder etcd/main"); len(list) > 0 {
			t.Errorf("problems %q", list)
		}
		time.Sleep(10 * time.Minute) // and its recovery point stands still
		synctest.Wait()
		if list := problemsOf(a.Status(), "recorder etcd/main"); len(list) != 1 || !strings.HasPrefix(list[0], "critical: the changes since ") {
			t.Errorf("problems %q", list)
		}
		if err := stop(); err != nil || !ended {
			t.Errorf("%v, ended %v", err, ended)
		}
	})
}

func TestARecorderThatFailsIsStartedAgainLaterEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		f := &fake{picture: inTime, record: func(context.Context, Recording) error {
			at = append(at, time.Since(start))
			if len(at) == 2 {
				panic("a bug")
			}
			return errors.New("no member answers")
		}}
		a, stop := started(t, Options{Config: recordingConfig(t), Works: f})
		time.Sleep(100 * time.Second)
		synctest.Wait()
		want := []time.Duration{0, 5 * time.Second, 15 * time.Second, 35 * time.Second, 75 * time.Second}
		if !slices.Equal(at, want) {
			t.Errorf("started at %s, want %s", at, want)
		}
		list := problemsOf(a.Status(), "recorder etcd/main")
		if !slices.Contains(list, "warning: it failed and is started again: no member answers") {
			t.Errorf("problems %q", list)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAFullThatARecorderAsksForIsTakenAtOnceAndNotAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		newest := time.Now() // and the next slot is in six hours
		var fulls []time.Duration
		start := time.Now()
		f := &fake{
			picture: func() (*Picture, error) {
				return &Picture{Stores: []StorePicture{holding("s3://a", map[manifest.Chain]time.Time{"etcd/main": newest})}}, nil
			},
			// Not the first in turn: for what only it knows of it does not wait.
			standing: func() (*Standing, error) { return &Standing{Rank: 2, Quorum: true, First: "cp0"}, nil },
			record: func(ctx context.Context, r Recording) error {
				for ctx.Err() == nil {
					sleep(ctx, time.Minute, nil)
					if time.Since(start) < 25*time.Minute {
						r.AskFull("the spool is full")
					}
				}
				return ctx.Err()
			},
		}
		f.full = func(context.Context) (*Outcome, error) {
			fulls = append(fulls, time.Since(start))
			time.Sleep(10 * time.Second)
			newest = time.Now()
			return &Outcome{Created: newest}, nil
		}
		_, stop := started(t, Options{Config: recordingConfig(t), Works: f})
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		want := []time.Duration{time.Minute, 11*time.Minute + 10*time.Second, 21*time.Minute + 20*time.Second}
		if !slices.Equal(fulls, want) {
			t.Errorf("fulls at %s, want %s", fulls, want)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAnotherConfigurationEndsARecorderBeforeTheNextBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most, began atomic.Int64
		f := &fake{picture: inTime, record: func(ctx context.Context, r Recording) error {
			began.Add(1)
			most.Store(max(most.Load(), running.Add(1)))
			<-ctx.Done()
			time.Sleep(3 * time.Second) // commits what it has
			running.Add(-1)
			return ctx.Err()
		}}
		c := recordingConfig(t)
		a, stop := started(t, Options{Config: c, Works: f})
		time.Sleep(time.Minute)
		same := *c
		same.Schedule.Verify = "30 4 * * *" // nothing to a recorder
		if err := a.Reload(t.Context(), &same); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if began.Load() != 1 {
			t.Errorf("began %d times", began.Load())
		}
		other := same
		other.Segments.MaxBytes *= 2
		if err := a.Reload(t.Context(), &other); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if began.Load() != 2 || most.Load() != 1 {
			t.Errorf("began %d times, %d at once", began.Load(), most.Load())
		}
		off := other
		off.Segments.Interval = 0
		if err := a.Reload(t.Context(), &off); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if s := a.Status(); running.Load() != 0 || len(s.Recorders) != 0 {
			t.Errorf("%d run, %+v", running.Load(), s.Recorders)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestARecorderThatDoesNotStopIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		f := &fake{picture: inTime, record: func(context.Context, Recording) error { <-hang; return nil }}
		_, stop := started(t, Options{Config: recordingConfig(t), Works: f})
		time.Sleep(time.Minute)
		if err := stop(); err == nil || !strings.Contains(err.Error(), "the recorder of etcd/main did not stop") {
			t.Errorf("%v", err)
		}
		close(hang)
	})
}

func TestWhatARecorderTellsBecomesProblems(t *testing.T) {
	tests := []struct {
		name string
		told status.Recorder
		want string
	}{
		{"a gap", status.Recorder{Stores: []status.RecorderStore{{Store: "s3://b", LastGap: time.Now(), GapWhy: "the spool was full"}}},
			"the history in s3://b has a gap, found at"},
		{"a full that nothing takes", status.Recorder{Wanted: "there is none"}, "it needs a full and schedule.full is empty; run `lifeboat backup`: there is none"},
		{"a full spool", status.Recorder{SpoolBytes: 90, SpoolLimit: 100}, "its spool is almost full: 90 of 100 bytes"},
		{"a store that lags", status.Recorder{Stores: []status.RecorderStore{
			{Store: "s3://b", Error: "connection refused"},
		}}, "s3://b lags: it has the changes until"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				f := &fake{picture: inTime, record: func(ctx context.Context, r Recording) error {
					for ctx.Err() == nil {
						told := tt.told
						told.Stores = slices.Clone(tt.told.Stores)
						for i := range told.Stores {
							if told.Stores[i].RecoveryPoint = time.Now(); told.Stores[i].LastGap.IsZero() {
								told.Stores[i].RecoveryPoint = time.Now().Add(-time.Hour)
							} else {
								told.Stores[i].LastGap = begun
							}
						}
						told.Stores = append([]status.RecorderStore{{Store: "s3://a", RecoveryPoint: time.Now()}}, told.Stores...)
						r.Report(told)
						sleep(ctx, time.Minute, nil)
					}
					return ctx.Err()
				}}
				c := recordingConfig(t)
				if tt.told.Wanted != "" {
					c.Schedule.Full = ""
				}
				a, stop := started(t, Options{Config: c, Works: f})
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				list := problemsOf(a.Status(), "recorder etcd/main")
				if gaps := a.Status().Recorders[0].Gaps; (gaps == 1) != (tt.name == "a gap") {
					t.Errorf("%d gaps", gaps)
				}
				if len(list) != 1 || !strings.Contains(list[0], tt.want) {
					t.Errorf("problems %q, want %q", list, tt.want)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
