package main

import (
	"context"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/deadman"
)

// deadMan requests the dead-man URL while every backup is in time.
type deadMan struct {
	config config.DeadMan
	cancel context.CancelFunc
	ended  chan struct{}
}

func (d *daemon) watch(ctx context.Context, c config.DeadMan) *deadMan {
	ctx, cancel := context.WithCancel(ctx)
	m := &deadMan{config: c, cancel: cancel, ended: make(chan struct{})}
	if c.URLFile == "" {
		close(m.ended)
		return m
	}
	d.metrics.WatchDeadMan()
	go func() {
		defer close(m.ended)
		deadman.Run(ctx, deadman.Options{
			URLFile: c.URLFile, Interval: time.Duration(c.Interval), Events: d.event, OnPing: d.metrics.OnPing, Wall: d.app.now,
			Healthy: func() bool { return deadman.Healthy(d.agent.Status(), d.config.Load().MinStores) },
		})
	}()
	return m
}

func (m *deadMan) stop() {
	m.cancel()
	<-m.ended
}

// again is the same for another configuration.
func (m *deadMan) again(ctx context.Context, d *daemon, c config.DeadMan) *deadMan {
	if c == m.config {
		return m
	}
	m.stop()
	return d.watch(ctx, c)
}
