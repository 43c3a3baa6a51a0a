package host

import (
	"encoding/base64"
	"path"
	"strings"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/seal"
)

// isKubeconfig: kubectl and the kubelet read files without a kind too.
func isKubeconfig(doc map[string]any) bool {
	_, clusters := doc["clusters"].([]any)
	_, users := doc["users"].([]any)
	return clusters && users
}

// usualConfigs are kubeadm's kubeconfigs. Other files named .conf beside them
// need not be any.
var usualConfigs = []string{"admin", "super-admin", "controller-manager", "scheduler", "kubelet", "bootstrap-kubelet"}

// checkDocuments tells of files without which a node does not start and that
// can't be parsed.
func (c *closure) checkDocuments() {
	for _, name := range usualConfigs {
		c.configs["etc/kubernetes/"+name+".conf"] = true
	}
	for name := range c.configs {
		if doc, stored := c.parsedDocument(name); stored && !isKubeconfig(doc) {
			c.degraded.addf("%s: not a kubeconfig that can be parsed", name)
		}
	}
	const kubelet = "var/lib/kubelet/config.yaml"
	if doc, stored := c.parsedDocument(kubelet); stored && doc["kind"] != "KubeletConfiguration" {
		c.degraded.addf("%s: not a kubelet's configuration that can be parsed", kubelet)
	}
}

// parsedDocument returns a stored file's YAML or JSON mapping, nil if it is none.
func (c *closure) parsedDocument(name string) (doc map[string]any, stored bool) {
	e, ok := c.entries[name]
	if !ok || e.header.Type != seal.TypeFile || len(e.data) > parseLimit {
		return nil, false
	}
	if yaml.Unmarshal(e.data, &doc) != nil {
		return nil, true
	}
	return doc, true
}

// kubeconfig follows a kubeconfig's files and checks the pairs inside it.
func (c *closure) kubeconfig(name string, doc map[string]any, v *view) {
	for _, cluster := range named(doc, "clusters", "cluster") {
		if server, ok := cluster["server"].(string); ok && v == nil {
			c.servers[server] = true
		}
		c.reference(name, cluster, "certificate-authority", v)
		c.inline(name, cluster, "certificate-authority-data")
	}
	for _, user := range named(doc, "users", "user") {
		cert := c.reference(name, user, "client-certificate", v)
		key := c.reference(name, user, "client-key", v)
		c.reference(name, user, "tokenFile", v)
		if cert != "" && key != "" {
			c.pair(cert, key)
		}
		certPEM := c.inline(name, user, "client-certificate-data")
		keyPEM := c.inline(name, user, "client-key-data")
		if certPEM != nil && keyPEM != nil && !pairMatches(certPEM, keyPEM) {
			c.degraded.addf("%s: the client certificate and its key don't match or can't be parsed", name)
		}
	}
}

// named returns the inner mappings of a kubeconfig's list of named ones.
func named(doc map[string]any, list, field string) []map[string]any {
	var out []map[string]any
	items, _ := doc[list].([]any)
	for _, i := range items {
		if m, ok := i.(map[string]any); ok {
			if inner, ok := m[field].(map[string]any); ok {
				out = append(out, inner)
			}
		}
	}
	return out
}

// reference follows a file that a field names, relative to the kubeconfig, and
// returns it as a path on the host.
func (c *closure) reference(name string, fields map[string]any, field string, v *view) string {
	p, _ := fields[field].(string)
	if p == "" {
		return ""
	}
	c.relative(name, p, v, field+" in "+name)
	if !strings.HasPrefix(p, "/") {
		return path.Join("/", path.Dir(name), p)
	}
	host, _ := v.host(path.Clean(p))
	return host
}

// inline decodes a field of base64; one that isn't makes the backup degraded.
func (c *closure) inline(name string, fields map[string]any, field string) []byte {
	text, _ := fields[field].(string)
	if text == "" {
		return nil
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		c.degraded.addf("%s: %s is not base64", name, field)
		return nil
	}
	return data
}
