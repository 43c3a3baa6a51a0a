package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Since says what counts as new after a restore. The snapshot has old leases and
// old conditions of nodes in it, and they prove nothing. Of the zero value only what
// changes while it is watched is new.
type Since struct {
	// Time is when the restored etcd was started, by this machine's clock.
	Time time.Time
	// Revision is what the restored etcd started at. A resource version is etcd's
	// revision (kube-apiserver, storage/etcd3), so an object above it was written
	// after the restore, whatever any clock says. 0: not known, times decide.
	Revision int64
}

// Node is what a restore needs of a Node object.
type Node struct {
	Name      string   `json:"name"`
	UID       string   `json:"uid"`
	Ready     string   `json:"ready"`     // True, False, Unknown, or "": never told. It may be old
	Addresses []string `json:"addresses"` // its names too
}

// Lease is a node's in kube-node-lease, which its kubelet renews every ten
// seconds.
type Lease struct {
	Node     string    `json:"node"`
	Renewed  time.Time `json:"renewed"`  // by the node's clock
	Revision int64     `json:"revision"` // of etcd at the last write; 0: can't be told
	// Fresh says that the lease was renewed after the restore, and How by what
	// that is known.
	Fresh bool   `json:"fresh"`
	How   string `json:"how"`

	uid, version string
}

// metadata is that of any object.
type metadata struct {
	Name            string            `json:"name"`
	Namespace       string            `json:"namespace"`
	UID             string            `json:"uid"`
	ResourceVersion string            `json:"resourceVersion"`
	Annotations     map[string]string `json:"annotations"`
}

type nodeObject struct {
	Metadata metadata `json:"metadata"`
	Status   struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		Addresses []struct {
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

func (o *nodeObject) node() Node {
	n := Node{Name: o.Metadata.Name, UID: o.Metadata.UID, Addresses: []string{}}
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			n.Ready = c.Status
		}
	}
	for _, a := range o.Status.Addresses {
		n.Addresses = append(n.Addresses, a.Address)
	}
	return n
}

type leaseObject struct {
	Metadata metadata `json:"metadata"`
	Spec     struct {
		RenewTime *time.Time `json:"renewTime"`
	} `json:"spec"`
}

const (
	nodesPath  = "/api/v1/nodes"
	leasesPath = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
)

// Nodes lists the Node objects, by name.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	objects, _, err := list[nodeObject](ctx, c, nodesPath, "")
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	out := []Node{}
	for _, o := range objects {
		out = append(out, o.node())
	}
	slices.SortFunc(out, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Leases lists the nodes' leases, by node, and says which were renewed since.
func (c *Client) Leases(ctx context.Context, since Since) ([]Lease, error) {
	objects, at, err := list[leaseObject](ctx, c, leasesPath, "")
	if err != nil {
		return nil, fmt.Errorf("list the nodes' leases: %w", err)
	}
	out := []Lease{}
	for _, o := range objects {
		out = append(out, c.judge(&o, since, at))
	}
	slices.SortFunc(out, func(a, b Lease) int { return strings.Compare(a.Node, b.Node) })
	return out, nil
}

// farAhead is how far before the server's clock a renewal may lie to be believed
// by its time alone: a node's clock that goes ahead makes old leases look new.
const farAhead = 30 * time.Second

// judge says whether a lease was renewed after the restore. at is the server's
// clock when it gave the lease.
func (c *Client) judge(o *leaseObject, since Since, at time.Time) Lease {
	l := Lease{Node: o.Metadata.Name, uid: o.Metadata.UID, version: o.Metadata.ResourceVersion}
	l.Revision, _ = strconv.ParseInt(l.version, 10, 64) // 0: not etcd's
	if o.Spec.RenewTime != nil {
		l.Renewed = o.Spec.RenewTime.UTC()
	}
	began := c.serverTime(since.Time)
	switch {
	case since.Revision > 0 && l.Revision > 0:
		l.Fresh = l.Revision > since.Revision
		l.How = fmt.Sprintf("written at revision %d, the restore ended at %d", l.Revision, since.Revision)
	case since.Time.IsZero():
		l.How = fmt.Sprintf("renewed %s, but nothing says when the restore ended", stamp(l.Renewed))
	case l.Renewed.IsZero():
		l.How = "never renewed"
	case l.Renewed.After(at.Add(farAhead)):
		l.How = fmt.Sprintf("renewed %s, which is ahead of the server's clock, %s: may be old", stamp(l.Renewed), stamp(at))
	default:
		l.Fresh = l.Renewed.After(began.Add(time.Second)) // the server's clock is known by whole seconds
		l.How = fmt.Sprintf("renewed %s, the restore ended %s by the server's clock", stamp(l.Renewed), stamp(began))
	}
	return l
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// watchLeases lists leases and takes those that changed between two looks for
// fresh, whatever their times are. seen is kept between the looks.
func (c *Client) watchLeases(ctx context.Context, since Since, seen map[string]string) (map[string]Lease, error) {
	leases, err := c.Leases(ctx, since)
	if err != nil {
		return nil, err
	}
	out := map[string]Lease{}
	for _, l := range leases {
		before, known := seen[l.Node]
		if !known {
			seen[l.Node] = l.version
		} else if before != l.version && !l.Fresh {
			l.Fresh, l.How = true, "was written while it was watched"
		}
		out[l.Node] = l
	}
	return out, nil
}

// WaitLease waits until the node has renewed its lease after the restore; an
// empty name stands for any node. It gives up when the context ends, or at once as WaitReady.
func (c *Client) WaitLease(ctx context.Context, node string, since Since, p Progress) (Lease, error) {
	what := "node " + node + " to renew its lease after the restore"
	if node == "" {
		what = "any node to renew its lease after the restore"
	}
	var found Lease
	seen := map[string]string{}
	err := c.wait(ctx, what, p, func() (string, error) {
		leases, err := c.watchLeases(ctx, since, seen)
		if err != nil {
			return err.Error(), hopeless(err)
		}
		for _, name := range slices.Sorted(maps.Keys(leases)) {
			if l := leases[name]; l.Fresh && (node == "" || name == node) {
				found = l
				return "", nil
			}
		}
		if l, ok := leases[node]; ok {
			return "it is old: " + l.How, nil
		}
		if node != "" {
			return "it has none; is its kubelet running?", nil
		}
		return fmt.Sprintf("none of %d is new; is a kubelet running?", len(leases)), nil
	})
	return found, err
}

// list reads a collection page by page. The time is the server's at the last one.
func list[T any](ctx context.Context, c *Client, path, query string) ([]T, time.Time, error) {
	var out []T
	token := ""
	for pages, restarts := 0, 0; ; pages++ {
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []T `json:"items"`
		}
		values, err := url.ParseQuery(query)
		if err != nil {
			return nil, time.Time{}, err
		}
		values.Set("limit", strconv.Itoa(maxPage))
		if token != "" {
			values.Set("continue", token)
		}
		at, err := c.get(ctx, path+"?"+values.Encode(), &page)
		var status *StatusError
		if token != "" && restarts < 3 && errors.As(err, &status) && status.Code == http.StatusGone {
			out, token, restarts = nil, "", restarts+1 // compacted meanwhile: from the beginning
			continue
		}
		if err != nil {
			return nil, at, err
		}
		out = append(out, page.Items...)
		if token = page.Metadata.Continue; token == "" {
			return out, at, nil
		}
		if pages > maxPages {
			return nil, at, fmt.Errorf("ask %s: GET %s: %w: more than %d pages", c.server, path, ErrTooLarge, maxPages)
		}
	}
}

// maxPages bounds a list: Kubernetes is made for 5,000 nodes.
const maxPages = 1000
