package main

import (
	"context"
	"fmt"
	"net"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/web"
)

// server is the agent's HTTP server at one address, or at none.
type server struct {
	at     string // as it listens; empty: turned off
	config config.HTTP
	cancel context.CancelFunc
	ended  chan struct{}
}

// stop returns when nothing listens any more.
func (s *server) stop() {
	s.cancel()
	<-s.ended
}

// serve listens and answers until ctx ends. What goes wrong at once is an error.
func (d *daemon) serve(ctx context.Context, c config.HTTP) (*server, error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{config: c, cancel: cancel, ended: make(chan struct{})}
	if c.Listen == "" {
		close(s.ended)
		return s, nil
	}
	handler := web.New(web.Options{
		Status: d.status, Metrics: d.metrics.Handler(), CertFile: c.CertFile, KeyFile: c.KeyFile, TokenFile: c.TokenFile, Events: d.event,
	})
	if err := handler.Check(); err != nil { // a token or certificate that can't be read
		cancel()
		return nil, fmt.Errorf("%w: http: %w", config.ErrInvalid, err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("serve metrics and status, http.listen: %w", err)
	}
	s.at = listener.Addr().String()
	go func() {
		defer close(s.ended)
		if err := handler.Serve(ctx, listener); err != nil && ctx.Err() == nil {
			d.log.Error("the HTTP server ended", "error", err)
		}
	}()
	return s, nil
}

// replaced is a server for another configuration. At another address it begins
// before the old one ends; at the same one, behind it. On an error the old one
// serves.
func (s *server) replaced(ctx context.Context, d *daemon, c config.HTTP) (*server, error) {
	if c.Listen == s.config.Listen && c.Listen != "" {
		s.stop()
		next, err := d.serve(ctx, c)
		if err != nil {
			d.server = s.backTo(ctx, d, s.config)
			return nil, err
		}
		return next, nil
	}
	next, err := d.serve(ctx, c)
	if err != nil {
		return nil, err
	}
	s.stop()
	return next, nil
}

// backTo ends a server and serves as before. An address that was ours a moment
// ago may be gone: then the agent works on without, and says so.
func (s *server) backTo(ctx context.Context, d *daemon, c config.HTTP) *server {
	s.stop()
	old, err := d.serve(ctx, c)
	if err == nil {
		return old
	}
	d.log.Error("the HTTP server can't go on", "error", err)
	ended := make(chan struct{})
	close(ended)
	return &server{config: c, cancel: func() {}, ended: ended}
}

func hostsChain(node string) manifest.Chain { return manifest.Chain("hosts/" + node) }
