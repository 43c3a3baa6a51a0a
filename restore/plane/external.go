package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/topology"
)

// lookAtEtcd finds out about an etcd that is on other hosts: its newest full says
// who its members are and which encryption keys are in use. Nothing of it is
// restored here.
func (p *Plan) lookAtEtcd(ctx context.Context) error {
	if p.opts.Shared != nil {
		return refuse("node %s has no member of etcd, so another node's order is nothing for it: restore etcd's hosts with it, and this node without it when etcd serves", p.Order.Node)
	}
	p.Etcd = &restore.EtcdPlan{Plan: &restore.Plan{}, Choice: restore.Choice{Chain: p.chain()}, Backup: &manifest.Manifest{Chain: p.chain(), Etcd: &manifest.Etcd{}}}
	route, err := p.opts.Repo.Route(ctx, p.chain(), repository.Point{})
	if errors.Is(err, repository.ErrNothing) {
		p.doubts = append(p.doubts, fmt.Sprintf("there is no backup of %s: whether this node's files hold every encryption key in use is not known", p.chain()))
		return nil
	}
	if err != nil {
		return err
	}
	p.Etcd.Choice, p.Etcd.Backup = restore.ChoiceOf(route), route.Base.Manifest
	return nil
}

// Outside says whether the node's API server uses an etcd on other hosts, which a
// restore of the node does not touch.
func (p *Plan) Outside() bool { return p.member.runs == elsewhere }

// OfHost says whether the node runs its etcd outside of Kubernetes.
func (p *Plan) OfHost() bool { return p.member.server != nil }

// EtcdOnly says whether the node has an etcd and no API server.
func (p *Plan) EtcdOnly() bool { return !p.hasAPI() }

// mustLive refuses a master whose etcd is on other hosts and does not live: its
// API server would wait for it.
func (p *Plan) mustLive(ctx context.Context) error {
	l := &p.Host.Living
	if l.Quorum {
		if l.Same != nil && !*l.Same {
			p.doubts = append(p.doubts, fmt.Sprintf("etcd is cluster %s, the newest backup is of %s: right where etcd was restored since", l.ClusterID, p.Etcd.Backup.Etcd.ClusterID))
		}
		return nil
	}
	var found []string
	for _, m := range l.Members {
		found = append(found, fmt.Sprintf("%s: %s", m, m.How))
	}
	why := fmt.Sprintf("the etcd of node %s is on other hosts (%s), and has no living quorum (%d of %d voters answer)", p.Node(), strings.Join(p.Files.Etcd.EtcdEndpoints, ", "), l.Answering, l.Voters)
	if len(found) > 0 {
		why += "\n  " + strings.Join(found, "\n  ")
	}
	if l.Answering+len(accepting(l)) > l.Voters/2 && l.Answering+len(accepting(l)) > 0 {
		return refuse("%s\nMost of its members are there: find out why they don't agree, or don't take these certificates, then run this again", why)
	}
	how, err := p.howToRestoreEtcd(ctx)
	if err != nil {
		return err
	}
	return refuse("%s\nRestore it first, then run this again:\n%s", why, how)
}

func accepting(l *topology.Living) (out []topology.Member) {
	for _, m := range l.Members {
		if m.State == topology.Accepts {
			out = append(out, m)
		}
	}
	return out
}

// howToRestoreEtcd writes what to type on which host.
func (p *Plan) howToRestoreEtcd(ctx context.Context) (string, error) {
	chains, err := p.opts.Repo.Chains(ctx)
	if err != nil {
		return "", err
	}
	var voters []manifest.Member
	for _, m := range p.Etcd.Backup.Etcd.Members {
		if !m.Learner {
			voters = append(voters, m)
		}
	}
	if len(voters) == 0 {
		return fmt.Sprintf("  on each host of etcd: lifeboat restore control-plane --identity FILE --node HOST    # %s", strings.Join(p.Files.Etcd.EtcdEndpoints, ", ")), nil
	}
	var lines []string
	for i, m := range voters {
		flags := ""
		switch {
		case len(voters) > 1 && i == 0:
			flags = " --members all --share restore.json"
		case len(voters) > 1:
			flags = " --with restore.json    # of " + voters[0].Name + ", at the same time"
		}
		at := strings.Join(m.PeerURLs, ", ")
		if slices.Contains(chains, manifest.Chain("hosts/"+m.Name)) {
			lines = append(lines, fmt.Sprintf("  on %s (%s): lifeboat restore control-plane --identity FILE --node %s%s", m.Name, at, m.Name, flags))
			continue
		}
		lines = append(lines, fmt.Sprintf("  on %s (%s), by the name NODE under which its files are backed up: lifeboat restore control-plane --identity FILE --node NODE%s", m.Name, at, flags))
		lines = append(lines, fmt.Sprintf("    or, if they are not: lifeboat restore etcd --identity FILE --name %s --peer-url %s --data-dir DIR, and its files by hand", m.Name, m.PeerURLs[0]))
	}
	return strings.Join(lines, "\n"), nil
}

var versionLine = regexp.MustCompile(`(?m)^etcd Version: ([0-9]+\.[0-9]+\.[0-9]+\S*)`)

// askVersion asks an etcd program for its version. A script is not run: it could
// start what it stands for.
func askVersion(ctx context.Context, program string) (string, error) {
	f, err := os.Open(program)
	if err != nil {
		return "", err
	}
	magic := make([]byte, 4)
	_, err = f.Read(magic)
	_ = f.Close()
	if err != nil || string(magic) != "\x7fELF" {
		return "", errors.New("it is a script")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("no answer within 10s"))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Env = []string{} // its variables would be options
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if cause := context.Cause(ctx); cause != nil {
		return "", cause
	}
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", program, err)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s --version does not tell it", program)
	}
	return string(m[1]), nil
}
