package host

import (
	"bytes"
	"io"
	"path"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/chroot"
)

// parse follows the names in one captured file, and leaves alone what it
// doesn't know. A static pod that can't be parsed makes the backup degraded.
func (c *closure) parse(name string, data []byte, v *view) {
	base := path.Base(name)
	switch dir := path.Dir(name); {
	case c.manifests[dir]:
		// The kubelet runs every file in the folder except those with a dot.
		if strings.HasPrefix(base, ".") {
			return
		}
		pod, ok := parsePod(name, data)
		if !ok {
			c.degraded.addf("%s: not a static pod that can be parsed", name)
			return
		}
		if v == nil && !c.parsed[parsedKey{name, &podsOnce}] {
			c.parsed[parsedKey{name, &podsOnce}] = true
			c.pod(pod)
		}
	case isUnit(name):
		c.tokens(name, data)
	case strings.HasSuffix(base, ".toml"):
		c.toml(name, data)
	case looksLikeText(data):
		c.document(name, data, v)
	}
}

// podsOnce marks manifests whose pod has been followed, whoever led there.
var podsOnce view

// isUnit says whether a file is one of systemd's or of an environment.
func isUnit(name string) bool {
	dir := path.Dir(name)
	return strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".env") || strings.HasSuffix(dir, ".service.d") ||
		chroot.Within(name, "etc/default") || chroot.Within(name, "etc/sysconfig")
}

// looksLikeText leaves out certificates, databases and everything that is no
// mapping in YAML or JSON.
func looksLikeText(data []byte) bool {
	return len(data) > 0 && bytes.IndexByte(data, 0) < 0 && !bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) && bytes.IndexByte(data, ':') > 0
}

// optionFolders are options of services whose folder is part of the node.
var optionFolders = map[string]bool{"config-dir": true, "cert-dir": true, "pod-manifest-path": true, "config_path": true}

// assignment finds option=value, option value and option = 'value'.
var assignment = regexp.MustCompile(`(?:--?|\b)([A-Za-z][A-Za-z0-9_.-]*)[=\s]\s*["']?(/[^\s"'\\]+)`)

// quoted finds paths in quotation marks, as TOML has them.
var quoted = regexp.MustCompile(`["'](/[^"'\s]+)["']`)

// tokens follows the paths in a unit, a drop-in or an environment file.
func (c *closure) tokens(name string, data []byte) {
	for _, m := range assignment.FindAllSubmatch(data, -1) {
		option, value := string(m[1]), string(m[2])
		plain := strings.ToLower(strings.ReplaceAll(option, "_", "-"))
		switch plain = strings.TrimPrefix(plain, "etcd-"); {
		case plain == "data-dir" && !strings.Contains(name, "k3s") && !strings.Contains(name, "rke2") && !strings.Contains(name, "k0s"), plain == "wal-dir":
			c.dataDir(value)
			continue
		case plain == "pod-manifest-path":
			c.manifestFolder(value, name)
			continue
		}
		for _, p := range filesOf(value) {
			if program(p) || strings.HasPrefix(plain, "exec") && c.t.isProgram(p) {
				continue
			}
			c.add(item{path: p, why: name, fileOnly: !optionFolders[plain], explicit: true})
		}
	}
	// EnvironmentFile=-/path: the dash says that the file may be missing.
	for line := range bytes.Lines(data) {
		if p, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("EnvironmentFile=-")); ok && bytes.HasPrefix(p, []byte("/")) {
			c.add(item{path: string(p), why: name, fileOnly: true, explicit: true})
		}
	}
}

// isProgram says whether a file is one for the kernel to run, wherever it lies:
// backups hold none. Scripts are small, and somebody's own.
func (t *tree) isProgram(p string) bool {
	place, err := t.resolve(p)
	if err != nil || place.Missing {
		return false
	}
	f, err := t.open(place.Name)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 4)
	n, _ := io.ReadFull(f, magic)
	return string(magic[:n]) == "\x7fELF"
}

// toml follows the paths in a runtime's configuration.
func (c *closure) toml(name string, data []byte) {
	for line := range bytes.Lines(data) {
		key, _, _ := strings.Cut(string(bytes.TrimSpace(line)), "=")
		folder := strings.TrimSpace(key) == "config_path"
		if strings.TrimSpace(key) == "bin_dir" || strings.TrimSpace(key) == "bin_dirs" {
			continue
		}
		for _, m := range quoted.FindAllSubmatch(line, -1) {
			for p := range strings.SplitSeq(string(m[1]), ":") {
				if strings.HasPrefix(p, "/") && !program(p) {
					c.add(item{path: p, why: name, fileOnly: !folder, explicit: true})
				}
			}
		}
	}
}

// document follows the names in a YAML or JSON file: a kubeconfig, a
// component's configuration, an encryption configuration and whatever else
// names files by absolute paths.
func (c *closure) document(name string, data []byte, v *view) {
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil || len(doc) == 0 {
		return // check tells of those that must be readable
	}
	kind, _ := doc["kind"].(string)
	switch {
	case kind == "EncryptionConfiguration" || kind == "EncryptionConfig":
		c.encryption(name, data)
		return // its strings are key material and sockets
	case isKubeconfig(doc):
		c.kubeconfig(name, doc, v)
		return
	case kind == "KubeletConfiguration" && v == nil:
		if p, ok := doc["staticPodPath"].(string); ok && strings.HasPrefix(p, "/") {
			c.manifestFolder(p, name)
		}
	case kind == "AdmissionConfiguration":
		c.admission(name, doc, v)
	}
	if p, ok := doc["data-dir"].(string); ok && doc["listen-client-urls"] != nil { // etcd's own configuration file
		if host, ok := v.host(p); ok {
			c.dataDir(host)
		}
	}
	c.strings(name, doc, v, 0)
}

// strings follows every absolute path among a document's values that is a
// file. New kinds of configuration need no code here.
func (c *closure) strings(name string, value any, v *view, depth int) {
	if depth > maxDepth {
		return
	}
	switch x := value.(type) {
	case map[string]any:
		for _, inner := range x {
			c.strings(name, inner, v, depth+1)
		}
	case []any:
		for _, inner := range x {
			c.strings(name, inner, v, depth+1)
		}
	case string:
		if strings.HasPrefix(x, "/") && len(x) < 4096 && !strings.ContainsAny(x, "*?[\x00\n") && !program(x) {
			if host, ok := v.host(path.Clean(x)); ok {
				c.add(item{path: host, why: name, view: v, fileOnly: true, explicit: true})
			}
		}
	}
}

// admission follows the plugins' files, which may be relative to the file
// that names them.
func (c *closure) admission(name string, doc map[string]any, v *view) {
	plugins, _ := doc["plugins"].([]any)
	for _, p := range plugins {
		plugin, _ := p.(map[string]any)
		if file, _ := plugin["path"].(string); file != "" {
			c.relative(name, file, v, "an admission plugin in "+name)
		}
	}
}

// relative follows a path that a file may give relative to itself.
func (c *closure) relative(name, p string, v *view, who string) {
	host := path.Join("/", path.Dir(name), p)
	if strings.HasPrefix(p, "/") {
		var ok bool
		if host, ok = v.host(path.Clean(p)); !ok {
			return
		}
	}
	c.add(item{path: host, why: who, view: v, fileOnly: true, explicit: true, required: true})
}

// staticPodPath is the folder of static pods in the kubelet's configuration.
func staticPodPath(t *tree) string {
	var config struct {
		StaticPodPath string `json:"staticPodPath"`
	}
	if yaml.Unmarshal([]byte(t.text("/var/lib/kubelet/config.yaml")), &config) != nil {
		return ""
	}
	return strings.TrimPrefix(path.Clean(config.StaticPodPath), "/")
}
