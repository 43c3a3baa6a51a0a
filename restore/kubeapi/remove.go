package kubeapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Removal says how RemoveNodes makes sure that the machines are gone.
type Removal struct {
	Since Since
	// Observe is how long the leases must stand still before anything is removed;
	// default 50 s. A kubelet renews every 10 s, and counts as dead after 40 s
	// (kubelet's nodeLeaseDurationSeconds). It counts only while the API server is ready.
	Observe  time.Duration
	Progress Progress
}

// RemoveNodes removes what tells of machines that are gone: their lease, their
// Node object, and the mirror pods of their static pods. Other pods bound to them
// are Kubernetes' own business: its pod garbage collector removes them.
//
// Nothing is removed while any of the machines may live: first all leases are
// watched for Removal.Observe, and an error that wraps ErrAlive names those that
// were renewed after the restore. Then each lease is deleted as it was last seen,
// so that a kubelet that renews at that moment wins, and only after that its node. What is
// gone already is left out of the changes.
func (c *Client) RemoveNodes(ctx context.Context, names []string, o Removal) ([]Change, error) {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	if len(names) == 0 {
		return nil, nil
	}
	fail := func(done []Change, err error) ([]Change, error) {
		return done, fmt.Errorf("remove the nodes %s: %w", strings.Join(names, ", "), err)
	}
	if slices.Contains(names, "") {
		return fail(nil, errors.New("one of the names is empty"))
	}
	if o.Since.Time.IsZero() && o.Since.Revision == 0 {
		return fail(nil, errors.New("when the restore ended must be given, by time or revision"))
	}
	seen := map[string]string{}
	before, err := c.dead(ctx, names, o.Since, seen)
	if err != nil {
		return fail(nil, err)
	}
	observe := cmp.Or(o.Observe, 50*time.Second)
	o.Progress.tell("watching the leases of %s for %v, to be sure that nobody renews them", strings.Join(names, ", "), observe)
	if err := c.sleep(ctx, observe); err != nil {
		return fail(nil, err)
	}
	if err := c.Ready(ctx); err != nil {
		return fail(nil, fmt.Errorf("nobody could have renewed a lease: %w; wait until it is ready, then run this again", err))
	}
	leases, err := c.dead(ctx, names, o.Since, seen)
	if err != nil {
		return fail(nil, err)
	}
	for name := range leases {
		if _, had := before[name]; !had {
			return fail(nil, fmt.Errorf("%w: %s has made itself a lease", ErrAlive, name))
		}
	}
	var done []Change
	for _, name := range names {
		changes, err := c.removeNode(ctx, name, leases[name], o.Progress)
		done = append(done, changes...)
		if err != nil {
			return fail(done, err)
		}
	}
	return done, nil
}

// dead returns the leases of the named nodes, or ErrAlive with those that live.
func (c *Client) dead(ctx context.Context, names []string, since Since, seen map[string]string) (map[string]Lease, error) {
	leases, err := c.watchLeases(ctx, since, seen)
	if err != nil {
		return nil, err
	}
	out := map[string]Lease{}
	var alive []string
	for _, name := range names {
		l, ok := leases[name]
		if !ok {
			continue
		}
		out[name] = l
		if l.Fresh {
			alive = append(alive, fmt.Sprintf("%s (%s)", name, l.How))
		}
	}
	if len(alive) > 0 {
		return nil, fmt.Errorf("%w: %s; nothing was removed: stop the kubelet there for good, or keep the node", ErrAlive, strings.Join(alive, ", "))
	}
	return out, nil
}

func (c *Client) removeNode(ctx context.Context, name string, lease Lease, p Progress) (done []Change, err error) {
	if lease.Node != "" {
		gone, err := c.delete(ctx, leasesPath+"/"+url.PathEscape(name), precondition{UID: lease.uid, ResourceVersion: lease.version}, nil)
		if errors.Is(err, ErrConflict) {
			return nil, fmt.Errorf("%w: %s has renewed its lease just now; keep the node", ErrAlive, name)
		}
		if err != nil {
			return nil, fmt.Errorf("delete the lease of %s: %w", name, err)
		}
		if gone {
			done = append(done, Change{"lease kube-node-lease/" + name, "deleted; last renewed " + stamp(lease.Renewed)})
		}
	}
	var node nodeObject
	_, err = c.get(ctx, nodesPath+"/"+url.PathEscape(name), &node)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return done, fmt.Errorf("look at node %s: %w", name, err)
	default:
		gone, err := c.delete(ctx, nodesPath+"/"+url.PathEscape(name), precondition{UID: node.Metadata.UID}, nil)
		if errors.Is(err, ErrConflict) {
			return done, fmt.Errorf("%w: %s has registered itself again just now; keep the node", ErrAlive, name)
		}
		if err != nil {
			return done, fmt.Errorf("delete node %s: %w", name, err)
		}
		if gone {
			done = append(done, Change{"node " + name, "deleted"})
			p.tell("deleted node %s", name)
		}
	}
	pods, err := c.removeMirrors(ctx, name)
	return append(done, pods...), err
}

// mirrorAnnotation marks the object that a kubelet makes of a static pod
// (pkg/apis/core/annotation_key_constants.go). Without its kubelet nobody removes it.
const mirrorAnnotation = "kubernetes.io/config.mirror"

func (c *Client) removeMirrors(ctx context.Context, node string) (done []Change, err error) {
	type podObject struct {
		Metadata metadata `json:"metadata"`
		Spec     struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
	}
	pods, _, err := list[podObject](ctx, c, "/api/v1/pods", url.Values{"fieldSelector": {"spec.nodeName=" + node}}.Encode())
	if err != nil {
		return nil, fmt.Errorf("list the pods of %s: %w", node, err)
	}
	for _, pod := range pods {
		m := pod.Metadata
		if _, mirror := m.Annotations[mirrorAnnotation]; !mirror || pod.Spec.NodeName != node {
			continue
		}
		at := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s", url.PathEscape(m.Namespace), url.PathEscape(m.Name))
		now := int64(0)
		gone, err := c.delete(ctx, at, precondition{UID: m.UID}, &now)
		if errors.Is(err, ErrConflict) {
			return done, fmt.Errorf("%w: the kubelet of %s has made its pod %s/%s again just now", ErrAlive, node, m.Namespace, m.Name)
		}
		if err != nil {
			return done, fmt.Errorf("delete the mirror pod %s/%s of %s: %w", m.Namespace, m.Name, node, err)
		}
		if gone {
			done = append(done, Change{fmt.Sprintf("pod %s/%s", m.Namespace, m.Name), "deleted: it mirrored a static pod of " + node})
		}
	}
	return done, nil
}

// precondition is what an object must still be.
type precondition struct {
	UID             string `json:"uid,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
}

// delete deletes an object that is as the precondition says. It says false where
// the object was gone already. ErrConflict: it is not as it was, which is not
// tried again.
func (c *Client) delete(ctx context.Context, path string, is precondition, grace *int64) (deleted bool, err error) {
	body, err := json.Marshal(map[string]any{"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": is, "gracePeriodSeconds": grace})
	if err != nil {
		return false, err
	}
	asked := 0
	err = c.try(ctx, func() error {
		asked++
		_, err := c.do(ctx, http.MethodDelete, path, "application/json", body, nil)
		switch {
		case err == nil:
			deleted = true
		case errors.Is(err, ErrNotFound):
			deleted = asked > 1 // gone since this began: most likely the lost answer was a yes
			return nil
		case errors.Is(err, ErrConflict):
			return &final{err}
		}
		return err
	})
	return deleted, err
}
