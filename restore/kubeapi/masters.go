package kubeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// MasterLease is the key in etcd by which an API server says that it serves at an
// address: the endpoints of the service "kubernetes" are made of these
// (pkg/controlplane/reconcilers/lease.go).
type MasterLease struct {
	Key      string     `json:"key"`
	Address  netip.Addr `json:"address"` // invalid: the key's end is no address
	Revision int64      `json:"revision"`
}

// StaleMasters lists the keys of API servers at addresses that are not among
// these. prefix is the API server's --etcd-prefix; empty is /registry. The keys
// hang on leases of 15 s, so where etcd kept those, they end by themselves.
func (e *Etcd) StaleMasters(ctx context.Context, alive []netip.Addr, prefix string) ([]MasterLease, error) {
	if len(alive) == 0 {
		return nil, errors.New("list the addresses of gone API servers: the addresses of those that live must be given")
	}
	from := "/" + strings.Trim(cmp.Or(prefix, "/registry"), "/") + "/masterleases/"
	asking, cancel := e.within(ctx, e.limit)
	defer cancel()
	r, err := e.client.Get(asking, from, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(1000))
	if err != nil {
		return nil, fmt.Errorf("list the addresses of API servers below %s in etcd: %w", from, caused(asking, err))
	}
	var out []MasterLease
	for _, kv := range r.Kvs {
		m := MasterLease{Key: string(kv.Key), Revision: kv.ModRevision}
		if a, err := netip.ParseAddr(strings.TrimPrefix(m.Key, from)); err == nil {
			m.Address = a.Unmap()
		}
		if !slices.ContainsFunc(alive, func(a netip.Addr) bool { return a.Unmap() == m.Address }) {
			out = append(out, m)
		}
	}
	return out, nil
}

// DeleteMasters deletes such keys, each only if it was not written since it was
// listed: an API server that lives writes its own every ten seconds. What was
// written since is ErrAlive, after all others were deleted.
func (e *Etcd) DeleteMasters(ctx context.Context, stale []MasterLease) (done []Change, err error) {
	var alive []string
	for _, m := range stale {
		asking, cancel := e.within(ctx, e.limit)
		r, err := e.client.Txn(asking).
			If(clientv3.Compare(clientv3.ModRevision(m.Key), "=", m.Revision)).
			Then(clientv3.OpDelete(m.Key)).
			Else(clientv3.OpGet(m.Key, clientv3.WithKeysOnly())).
			Commit()
		cancel()
		switch {
		case err != nil:
			return done, fmt.Errorf("delete %s in etcd: %w", m.Key, caused(asking, err))
		case r.Succeeded:
			done = append(done, Change{"etcd key " + m.Key, "deleted: no API server is at that address"})
		case len(r.Responses) == 1 && len(r.Responses[0].GetResponseRange().GetKvs()) > 0:
			alive = append(alive, m.Key)
		}
	}
	if len(alive) > 0 {
		return done, fmt.Errorf("delete the addresses of gone API servers: %w: %s was written just now; an API server runs there", ErrAlive, strings.Join(alive, ", "))
	}
	return done, nil
}
