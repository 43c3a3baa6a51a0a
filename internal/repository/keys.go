package repository

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/manifest"
)

// KeyGap is a key that values in etcd are encrypted with, by the newest full of a
// chain, and that the newest backup of a node's files lacks. A restore that needs
// those files is refused.
type KeyGap struct {
	Chain   manifest.Chain // etcd's
	Backup  manifest.ID    // the full
	Use     manifest.KeyUse
	Held    []string // nodes whose newest files hold the key; none: the values could not be read after a restore
	Lacking []string // nodes whose newest files hold other keys, but not this one
}

// String says what is missing, for a person.
func (g KeyGap) String() string {
	name := g.Use.Name()
	who := "which no backup of a node's files holds"
	if len(g.Held) > 0 {
		who = fmt.Sprintf("which the newest files of %s don't hold (those of %s do)", strings.Join(g.Lacking, ", "), strings.Join(g.Held, ", "))
	}
	return fmt.Sprintf("%d objects in %s, such as %s, are encrypted with the %s key %q, %s", g.Use.Objects, g.Chain, g.Use.Example, name.Provider, name.Key, who)
}

// KeyCoverage is what became of comparing keys, and of how much it tells.
type KeyCoverage struct {
	Fulls int // that were looked at: none tells nothing
	Keys  int // that values in them are encrypted with
	Gaps  []KeyGap
}

// KeyCoverage compares the encryption keys in use, by the newest full of each etcd
// chain, with the names of those in every node's newest files. Nothing is unsealed
// for it. A node whose files hold no encryption key at all has no API server that
// encrypts. Without chains it looks at all of etcd's.
func (r *Repository) KeyCoverage(ctx context.Context, chains ...manifest.Chain) (KeyCoverage, error) {
	all, err := r.Chains(ctx)
	if err != nil {
		return KeyCoverage{}, err
	}
	if len(chains) == 0 {
		chains = slices.DeleteFunc(slices.Clone(all), func(c manifest.Chain) bool { return !strings.HasPrefix(string(c), "etcd/") })
	}
	var out KeyCoverage
	var fulls []*manifest.Manifest
	for _, chain := range chains {
		full, err := r.NewestFull(ctx, chain)
		if err != nil {
			return KeyCoverage{}, err
		}
		if full == nil {
			continue
		}
		out.Fulls, out.Keys = out.Fulls+1, out.Keys+len(full.Etcd.Encryption)
		if len(full.Etcd.Encryption) > 0 {
			fulls = append(fulls, full)
		}
	}
	if len(fulls) == 0 {
		return out, nil
	}
	var hosts []*manifest.Host
	for _, chain := range all {
		if !strings.HasPrefix(string(chain), "hosts/") {
			continue
		}
		host, err := r.newestHost(ctx, chain)
		if err != nil {
			return KeyCoverage{}, err
		}
		if host != nil && len(host.Encryption) > 0 {
			hosts = append(hosts, host)
		}
	}
	for _, full := range fulls {
		out.Gaps = append(out.Gaps, keyGaps(full, hosts)...)
	}
	return out, nil
}

// keyGaps compares one full with the nodes that hold keys.
func keyGaps(full *manifest.Manifest, hosts []*manifest.Host) (gaps []KeyGap) {
	for _, use := range full.Etcd.Encryption {
		g := KeyGap{Chain: full.Chain, Backup: full.ID, Use: use}
		for _, h := range hosts {
			if slices.Contains(h.Encryption, use.Name()) {
				g.Held = append(g.Held, h.Node)
			} else {
				g.Lacking = append(g.Lacking, h.Node)
			}
		}
		if len(g.Held) == 0 || len(g.Lacking) > 0 {
			gaps = append(gaps, g)
		}
	}
	return gaps
}

// newestHost is what is known of the node's files that were captured last; nil
// if there are none.
func (r *Repository) newestHost(ctx context.Context, chain manifest.Chain) (*manifest.Host, error) {
	view, err := r.load(ctx, chain, depth{tail: true, since: r.now()})
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(view.st.live) {
		if e.Kind != manifest.KindFiles {
			continue
		}
		s, err := r.slotOf(ctx, view, e)
		if err != nil {
			return nil, fmt.Errorf("look for the newest files of %s in %s: %w", chain, r.opts.Name, err)
		}
		if s.m != nil && s.m.Host != nil {
			return s.m.Host, nil
		}
	}
	return nil, nil
}
