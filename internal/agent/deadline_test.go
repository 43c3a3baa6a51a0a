package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

// hung is Works of which no run ends before it is told to.
type hung struct{ *fake }

func (hung) wait(ctx context.Context) (*Outcome, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (h hung) Full(ctx context.Context, _ string) (*Outcome, error)             { return h.wait(ctx) }
func (h hung) Files(ctx context.Context) (*Outcome, error)                      { return h.wait(ctx) }
func (h hung) Verify(ctx context.Context, _ []manifest.Chain) (*Outcome, error) { return h.wait(ctx) }
func (h hung) Prune(ctx context.Context) (*Outcome, error)                      { return h.wait(ctx) }

func TestARunThatHangsIsEndedAtItsDeadline(t *testing.T) {
	const schedule = "0 */6 * * *"
	for kind, c := range map[status.Kind]struct {
		schedule config.Schedule
		deadline time.Duration
	}{
		status.Full:   {config.Schedule{Full: schedule}, time.Hour},
		status.Files:  {config.Schedule{Files: schedule}, 10 * time.Minute},
		status.Verify: {config.Schedule{Verify: schedule}, 6 * time.Hour},
		status.Prune:  {config.Schedule{Prune: schedule}, time.Hour},
	} {
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old := time.Now().Add(-24 * time.Hour)
				f := &fake{picture: func() (*Picture, error) {
					return &Picture{Stores: []StorePicture{holding("s3://a", map[manifest.Chain]time.Time{"etcd/main": old, "hosts/cp1": old})}}, nil
				}}
				config := testConfig(t)
				config.Schedule = c.schedule
				a, stop := started(t, Options{Config: config, Works: hung{f}})
				time.Sleep(c.deadline - time.Second)
				if s := a.Status(); len(s.Runs) != 0 || len(s.Jobs) != 1 || !s.Jobs[0].Running {
					t.Errorf("before the deadline: runs %+v, jobs %+v", s.Runs, s.Jobs)
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				s := a.Status()
				if len(s.Runs) != 1 || s.Runs[0].Kind != kind || s.Runs[0].Reason != status.Timeout || s.Runs[0].Duration != c.deadline {
					t.Errorf("after it: %+v", s.Runs)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
