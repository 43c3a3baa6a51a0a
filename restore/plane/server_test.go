package plane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/events"
	"lifeboat/restore/node"
	"lifeboat/restore/nodefiles"
)

// notifying is a unit of Type=notify on a machine whose systemd waits 90 seconds
// for it.
type notifying struct {
	node.Machine
	starts int
	began  time.Time
	result string // of a run that did not become ready
}

func (n *notifying) Start(context.Context, string) error {
	n.starts++
	n.began = time.Now()
	return nil
}

func (n *notifying) Service(_ context.Context, name string) (node.Service, error) {
	s := node.Service{Name: name, Unit: name + ".service", Active: "activating", PID: 77}
	if time.Since(n.began) > 90*time.Second {
		s.Active, s.PID, s.Result = "failed", 0, n.result
	}
	return s, nil
}

func TestAUnitThatWaitsForOtherHostsIsStartedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		result     string
		after      time.Duration // the other hosts have come
		wantStarts int
		wantError  string // in it; empty: none
	}{
		"they come at once":            {"timeout", 10 * time.Second, 1, ""},
		"they come after some minutes": {"timeout", 5 * time.Minute, 4, ""},
		"they never come":              {"timeout", time.Hour, 7, "not within 10m0s"},
		"its options are wrong":        {"exit-code", time.Hour, 1, "etcd has failed (exit-code)"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				unit, ready := &notifying{result: c.result}, time.Now().Add(c.after)
				var told []string
				p := &Plan{
					opts: Options{Machine: unit, Limit: 10 * time.Minute, Health: func(*nodefiles.Staged) (Health, error) { return nil, nil }},
					listen: func(e events.Event) {
						if w, ok := e.(events.Warning); ok {
							told = append(told, w.Message)
						}
					},
				}
				err := p.startUnit(t.Context(), "etcd", func(ctx context.Context, _ Health) error {
					select {
					case <-time.After(time.Until(ready)):
						return nil
					case <-ctx.Done():
						return fmt.Errorf("wait for etcd: %w", context.Cause(ctx))
					}
				})
				if c.wantError == "" && err != nil || c.wantError != "" && (err == nil || !strings.Contains(err.Error(), c.wantError) || !strings.Contains(err.Error(), "journalctl -u etcd")) {
					t.Errorf("it ended with %v", err)
				}
				if unit.starts != c.wantStarts || len(told) != c.wantStarts-1 {
					t.Errorf("%d starts, told %q", unit.starts, told)
				}
				if err != nil && errors.Is(err, errStartTimedOut) {
					t.Errorf("%v names what was borne", err)
				}
			})
		})
	}
}
