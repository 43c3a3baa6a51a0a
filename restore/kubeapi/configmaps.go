package kubeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"lifeboat/restore/readdress"
)

// place is a text in a ConfigMap that names nodes' addresses.
type place struct {
	namespace, name, key string
	kind                 readdress.Kind
	drop                 string // prefix of the keys that are wrong once the text changed
	then                 string // what is left to do after a change
}

// places are kubeadm's (cmd/kubeadm/app/constants). jws-kubeconfig-* are
// signatures of cluster-info's text by bootstrap tokens; the controller manager's
// bootstrap signer makes new ones for the tokens that there are.
var places = []place{
	{namespace: "kube-system", name: "kubeadm-config", key: "ClusterConfiguration", kind: readdress.ClusterConfiguration},
	{namespace: "kube-public", name: "cluster-info", key: "kubeconfig", kind: readdress.Kubeconfig, drop: "jws-kubeconfig-", then: "the controller manager signs it anew for the bootstrap tokens that there are"},
	{namespace: "kube-system", name: "kube-proxy", key: "kubeconfig.conf", kind: readdress.Kubeconfig, then: "kube-proxy reads it when it starts: kubectl -n kube-system rollout restart daemonset kube-proxy"},
}

// doneAnnotation says in a ConfigMap which restore gave it its addresses. A
// mapping in which nodes change places must not be applied twice.
const doneAnnotation = "lifeboat-readdressed"

// maxID bounds a restore's id.
const maxID = 200

// Readdress gives the ConfigMaps of kubeadm that name addresses their new ones:
// kube-system/kubeadm-config, kube-public/cluster-info, whose signatures it
// removes, and kube-system/kube-proxy. id names the restore: it is noted in each
// ConfigMap with the change, and what was changed under the same id is left
// alone. ConfigMaps that are missing are left out, as are those that name no
// mapped address.
func (c *Client) Readdress(ctx context.Context, mapping *readdress.Mapping, id string) ([]Change, error) {
	if id == "" || len(id) > maxID {
		return nil, fmt.Errorf("readdress ConfigMaps: the restore needs an id of 1 to %d bytes", maxID)
	}
	if mapping == nil || mapping.Empty() {
		return nil, nil
	}
	var done []Change
	for _, p := range places {
		var change *Change
		err := c.try(ctx, func() (err error) {
			made, err := c.readdress(ctx, p, mapping, id)
			if made != nil {
				change = made
			}
			return err
		})
		if err != nil {
			return done, fmt.Errorf("readdress configmap %s/%s: %w; run this again, what is done stays as it is", p.namespace, p.name, err)
		}
		if change != nil {
			done = append(done, *change)
		}
	}
	return done, nil
}

// readdress changes one ConfigMap as it is now. It returns the change also with
// an error, when it can't know whether it was made.
func (c *Client) readdress(ctx context.Context, p place, mapping *readdress.Mapping, id string) (*Change, error) {
	at := fmt.Sprintf("/api/v1/namespaces/%s/configmaps/%s", p.namespace, p.name)
	var object struct {
		Metadata metadata          `json:"metadata"`
		Data     map[string]string `json:"data"`
	}
	if _, err := c.get(ctx, at, &object); errors.Is(err, ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if object.Metadata.Annotations[doneAnnotation] == id || object.Data[p.key] == "" {
		return nil, nil
	}
	result := mapping.Rewrite(p.kind, object.Data[p.key])
	if len(result.Changes) == 0 {
		return nil, nil
	}
	data := map[string]any{p.key: result.Text}
	var dropped []string
	for _, key := range slices.Sorted(maps.Keys(object.Data)) {
		if p.drop != "" && strings.HasPrefix(key, p.drop) {
			data[key] = nil
			dropped = append(dropped, key)
		}
	}
	// A merge patch with a resource version is refused where that is not the
	// object's any more.
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": object.Metadata.ResourceVersion, "annotations": map[string]string{doneAnnotation: id}},
		"data":     data,
	})
	if err != nil {
		return nil, err
	}
	change := &Change{Object: fmt.Sprintf("configmap %s/%s", p.namespace, p.name), What: p.describe(result, dropped)}
	_, err = c.do(ctx, http.MethodPatch, at, "application/merge-patch+json", body, nil)
	var status *StatusError
	if errors.As(err, &status) && status.Code < 500 {
		return nil, err // it was not made
	}
	return change, err
}

// describe tells a change line by line. The texts hold no secrets: cluster-info
// is public, and kube-proxy's kubeconfig names a token's file.
func (p place) describe(r readdress.Result, dropped []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d lines changed", p.key, len(r.Changes))
	for _, line := range r.Changes {
		fmt.Fprintf(&b, "\nline %d: %s -> %s", line.Line, strings.TrimSpace(line.Before), strings.TrimSpace(line.After))
	}
	for _, kept := range r.Kept {
		fmt.Fprintf(&b, "\nline %d: %s stays, since %s", kept.Line, kept.What, kept.Why)
	}
	if len(dropped) > 0 {
		fmt.Fprintf(&b, "\nremoved %s", strings.Join(dropped, ", "))
	}
	if p.then != "" {
		b.WriteString("\n" + p.then)
	}
	return b.String()
}
