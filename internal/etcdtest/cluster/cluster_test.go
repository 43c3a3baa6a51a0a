package cluster_test

import (
	"context"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
)

func TestEveryVersionStarts(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			c := cluster.StartBinary(t, version, cluster.Options{})
			if _, err := c.Client().Put(t.Context(), "a", "b"); err != nil {
				t.Fatal(err)
			}
			c.Kill(0)
			c.Restart(0)
			if got, err := c.Client().Get(t.Context(), "a"); err != nil || got.Count != 1 {
				t.Errorf("after a restart: %v, %v", got, err)
			}
		})
	}
}

func TestThreeMembersWithTLSSurviveAPausedOne(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3, TLS: true})
	c.Pause(2)
	// The paused one may have been the leader: a write waits for an election.
	client := c.Client(0, 1)
	for start := time.Now(); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := client.Put(ctx, "a", "b")
		cancel()
		if err == nil {
			break
		}
		if time.Since(start) > 30*time.Second {
			t.Fatal(err)
		}
	}
	c.Resume(2)
	c.WaitHealthy(2)
}
