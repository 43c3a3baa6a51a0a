package plane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/hostfacts"
	"lifeboat/restore/datadir"
	"lifeboat/restore/node"
)

// serverNote is what undoing needs to know of an etcd outside of Kubernetes.
type serverNote struct {
	Unit    string // empty: a person starts and stops it
	DataDir string // as this process sees it
	Stop    string // what a person types
	Start   string
	Running bool // before the restore
}

// stopServer is the step that stops an etcd outside of Kubernetes.
func (p *Plan) stopServer(name string, s *hostfacts.EtcdServer) step {
	detail := "systemctl stop " + unitOf(s) + "."
	if s.Unit == "" {
		detail = "It must have been stopped by hand: its data directory must not be in use."
	}
	return step{
		name: name, title: fmt.Sprintf("Stop %s", s), detail: detail,
		before: func(ctx context.Context) (any, error) { return p.noteServer(ctx, s) },
		do: func(ctx context.Context, note json.RawMessage) error {
			n, err := read[serverNote](note)
			if err != nil {
				return err
			}
			return n.stop(ctx, p.opts.Machine)
		},
	}
}

// startServer is the step that starts it and waits until it serves.
func (p *Plan) startServer(name string, s *hostfacts.EtcdServer, serves func(context.Context, Health) error) step {
	detail := "systemctl start " + unitOf(s) + ", and wait until it serves."
	if s.Unit == "" {
		detail = "By hand, when this step says so:\n  " + startCommand(s)
	}
	if p.Order.Members == All {
		detail += "\nIt serves when most of the members are there: start the restore on the other hosts too."
	}
	return step{
		name: name, title: fmt.Sprintf("Start %s", s), detail: detail,
		before: func(ctx context.Context) (any, error) { return p.noteServer(ctx, s) },
		do: func(ctx context.Context, note json.RawMessage) error {
			n, err := read[serverNote](note)
			if err != nil {
				return err
			}
			if n.Unit != "" {
				return p.startUnit(ctx, n.Unit, serves)
			}
			if errors.Is(datadir.InUse(n.DataDir), datadir.ErrInUse) {
				// It was started while an earlier run waited.
			} else {
				p.listen.Emit(events.Warning{Chain: string(p.chain()), Subject: s.String(), Message: "start it now, in another terminal:\n  " + n.Start})
			}
			if err := p.waitFor(ctx, serves); err != nil {
				return fmt.Errorf("%w; start it with:\n  %s", err, n.Start)
			}
			return nil
		},
	}
}

// errStartTimedOut says that systemd has ended a unit that was not ready in time.
var errStartTimedOut = errors.New("systemd has ended it, since it was not ready within its TimeoutStartSec")

// unitPause is between two looks at a unit that is waited for.
const unitPause = 2 * time.Second

// startUnit starts a unit and waits until it serves. Where that takes other hosts,
// systemd's patience (TimeoutStartSec) ends before the restore's: then the unit is
// started again.
func (p *Plan) startUnit(ctx context.Context, unit string, serves func(context.Context, Health) error) error {
	err := p.waitFor(ctx, func(ctx context.Context, h Health) error {
		for {
			if err := p.opts.Machine.Start(ctx, unit); err != nil {
				return err
			}
			err := p.whileItRuns(ctx, unit, func(ctx context.Context) error { return serves(ctx, h) })
			if !errors.Is(err, errStartTimedOut) {
				return err
			}
			p.listen.Emit(events.Warning{Chain: string(p.chain()), Subject: unit, Message: errStartTimedOut.Error() + "; it is started again"})
		}
	})
	if err != nil {
		return fmt.Errorf("%w; see journalctl -u %s", err, unit)
	}
	return nil
}

// whileItRuns waits as long as a unit has not failed.
func (p *Plan) whileItRuns(ctx context.Context, unit string, wait func(context.Context) error) error {
	ctx, give := context.WithCancelCause(ctx)
	var looking sync.WaitGroup
	defer looking.Wait()
	defer give(nil)
	looking.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(unitPause):
			}
			s, err := p.opts.Machine.Service(ctx, unit)
			switch {
			case err != nil || s.Active != "failed": // or it can't be told: the wait has its own end
			case s.Result == "timeout":
				give(errStartTimedOut)
			default:
				give(fmt.Errorf("%s has failed (%s)", unit, s.Result))
			}
		}
	})
	return wait(ctx)
}

func (p *Plan) noteServer(ctx context.Context, s *hostfacts.EtcdServer) (serverNote, error) {
	n := serverNote{Unit: s.Unit, DataDir: p.opts.under(s.DataDir), Start: startCommand(s)}
	if n.Unit != "" {
		state, err := p.opts.Machine.Service(ctx, n.Unit)
		n.Running = state.Unit != "" && !state.Stopped()
		return n, err
	}
	var err error
	n.Stop, err = stopCommand(ctx, p.opts.Machine, s)
	return n, err
}

// stop makes sure that the etcd does not run. Its data directory tells what
// systemd can't: whether somebody uses it.
func (n serverNote) stop(ctx context.Context, m node.Machine) error {
	if n.Unit != "" {
		s, err := m.Service(ctx, n.Unit)
		if err != nil {
			return err
		}
		if s.Unit != "" && !s.Stopped() {
			if err := m.Stop(ctx, n.Unit); err != nil {
				return err
			}
		}
	}
	err := datadir.InUse(n.DataDir)
	if errors.Is(err, datadir.ErrInUse) {
		return fmt.Errorf("stop etcd: %w: %w; stop it so that it does not come back, then go on:\n  %s", node.ErrByHand, err, orPID(n.Stop))
	}
	return err
}

func orPID(stop string) string {
	if stop == "" {
		return "kill PID    # of the process that uses it: fuser -v DATA-DIRECTORY/member/snap/db"
	}
	return stop
}

// inUse refuses a restore of an etcd that only a person can stop while it runs.
func (p *Plan) inUse(ctx context.Context, s *hostfacts.EtcdServer) error {
	err := datadir.InUse(p.opts.under(s.DataDir))
	if !errors.Is(err, datadir.ErrInUse) {
		return err
	}
	stop, serr := stopCommand(ctx, p.opts.Machine, s)
	if serr != nil {
		return serr
	}
	return refuse("%s runs, and no unit of systemd's runs it: stop it so that it does not come back, then run this again:\n  %s\nThe restore will say when to start it again:\n  %s", s, orPID(stop), startCommand(s))
}

// stopCommand is what a person types to stop a process; empty if none is found.
func stopCommand(ctx context.Context, m node.Machine, s *hostfacts.EtcdServer) (string, error) {
	found, err := m.Processes(ctx, "etcd")
	if err != nil {
		return "", err
	}
	for _, p := range found {
		named := slices.ContainsFunc(p.Args, func(w string) bool {
			_, value, _ := strings.Cut(w, "=")
			return w == s.DataDir || value == s.DataDir
		})
		if p.Container == "" && (named || len(s.Args) > 0 && slices.Equal(p.Args, s.Args)) {
			return fmt.Sprintf("kill %d    # %s", p.PID, strings.Join(p.Args, " ")), nil
		}
	}
	return "", nil
}

// startCommand is what a person types to start a process that no unit runs.
func startCommand(s *hostfacts.EtcdServer) string {
	if s.Unit != "" {
		return "systemctl start " + s.Unit
	}
	var words []string
	if s.WorkingDir != "" && s.WorkingDir != "/" {
		words = append(words, "cd", quoted(s.WorkingDir), "&&")
	}
	if s.Owner != nil && s.Owner.UID != 0 {
		words = append(words, fmt.Sprintf("setpriv --reuid=%d --regid=%d --clear-groups", s.Owner.UID, s.Owner.GID))
	}
	if len(s.Environment) > 0 {
		words = append(words, "env")
		for _, entry := range s.Environment {
			words = append(words, quoted(entry))
		}
	}
	switch {
	case len(s.Args) > 0:
		for _, w := range s.Args {
			words = append(words, quoted(w))
		}
	case len(s.Files) > 0 && (path.Ext(s.Files[0]) == ".yml" || path.Ext(s.Files[0]) == ".yaml"):
		words = append(words, "etcd", "--config-file="+quoted(s.Files[0]))
	case len(s.Files) > 0:
		words = append(words, "sh", "-c", quoted("set -a; . "+s.Files[0]+"; exec etcd"))
	default:
		words = append(words, "etcd", "--name="+quoted(s.Name), "--data-dir="+quoted(s.DataDir))
	}
	return strings.Join(words, " ")
}

// quoted is a word for a shell.
func quoted(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,@%+", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
