package host

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// staticPod is one parsed manifest.
type staticPod struct {
	file       string // its name below the root
	name       string
	containers []container
	hostPaths  []string // of all volumes
}

// container is a static pod's container, as far as files and etcd go.
type container struct {
	pod, name, image string
	words            []string // command and arguments, shell strings taken apart
	env              map[string]string
	view             *view
}

// view maps a container's paths to the host's.
type view struct {
	mounts []mount // longest mount path first
}

type mount struct{ inside, host string }

// host returns where a path inside the container lies on the host, and false
// for what is in the image. A nil view is the host's own.
func (v *view) host(p string) (string, bool) {
	if v == nil {
		return p, true
	}
	for _, m := range v.mounts {
		if p == m.inside || strings.HasPrefix(p, strings.TrimSuffix(m.inside, "/")+"/") {
			return path.Join(m.host, strings.TrimPrefix(p, m.inside)), true
		}
	}
	return "", false
}

// parsePod reads a static pod's manifest, YAML or JSON. It says nothing about
// what is wrong with one: a parser's text could hold the file's content.
func parsePod(file string, data []byte) (staticPod, bool) {
	var pod corev1.Pod
	if err := yaml.Unmarshal(data, &pod); err != nil || pod.Kind != "Pod" {
		return staticPod{}, false
	}
	volumes := make(map[string]string)
	out := staticPod{file: file, name: pod.Name}
	for _, v := range pod.Spec.Volumes {
		if v.HostPath != nil && strings.HasPrefix(v.HostPath.Path, "/") {
			volumes[v.Name] = v.HostPath.Path
			out.hostPaths = append(out.hostPaths, v.HostPath.Path)
		}
	}
	for _, kc := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		c := container{pod: pod.Name, name: kc.Name, image: kc.Image, env: make(map[string]string), view: &view{}}
		for _, e := range kc.Env {
			c.env[e.Name] = e.Value
		}
		for _, word := range slices.Concat(kc.Command, kc.Args) {
			if strings.ContainsAny(word, " \t\n") {
				c.words = append(c.words, strings.Fields(word)...)
			} else {
				c.words = append(c.words, word)
			}
		}
		for _, m := range kc.VolumeMounts {
			if on, ok := volumes[m.Name]; ok {
				c.view.mounts = append(c.view.mounts, mount{inside: path.Clean("/" + m.MountPath), host: path.Join(on, m.SubPath)})
			}
		}
		slices.SortFunc(c.view.mounts, func(a, b mount) int { return len(b.inside) - len(a.inside) })
		out.containers = append(out.containers, c)
	}
	return out, true
}

// flag is one option of a command line, without its dashes.
type flag struct{ name, value string }

// flags returns a command line's options in both forms, -name=value and -name value.
func flags(words []string) []flag {
	var out []flag
	for i, w := range words {
		name := strings.TrimLeft(w, "-")
		if name == w || name == "" {
			continue
		}
		name, value, ok := strings.Cut(name, "=")
		if !ok && i+1 < len(words) && !strings.HasPrefix(words[i+1], "-") {
			value = words[i+1]
		}
		out = append(out, flag{name, strings.Trim(value, `"'`)})
	}
	return out
}

// option returns the last value of a flag, or of etcd's environment variable for it.
func (c *container) option(name string) string {
	value := c.env["ETCD_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))]
	for _, f := range flags(c.words) {
		if f.name == name {
			value = f.value
		}
	}
	return value
}

// runs says whether the container's command is the program.
func (c *container) runs(program string) bool {
	for _, w := range c.words {
		if !strings.HasPrefix(w, "-") && path.Base(w) == program {
			return true
		}
	}
	return len(c.words) == 0 && strings.Contains(path.Base(c.image), program) || c.name == program
}

// filesOf returns the absolute paths in an option's value, which may be a list
// or have a name before or after the path.
func filesOf(value string) []string {
	var out []string
	for _, part := range strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(",;:=# \t\"'", r) }) {
		if strings.HasPrefix(part, "/") && !strings.HasPrefix(part, "//") && part != "/" {
			out = append(out, part)
		}
	}
	return out
}

// mustExist says whether an option names a file without which its program
// does not start. Others name what the program writes, or may be absent.
func mustExist(name string) bool {
	if strings.HasPrefix(name, "bootstrap-") || strings.Contains(name, "log") || strings.Contains(name, "pid") {
		return false
	}
	for _, suffix := range []string{"file", "cafile", "kubeconfig", "-config", "-cert", "-key", "-certificate", "-ca"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// pair is a certificate file and the file of its key.
type pair struct{ cert, key string }

// pairFlags are options that name the two halves of a pair.
var pairFlags = []pair{
	{"tls-cert-file", "tls-private-key-file"}, {"etcd-certfile", "etcd-keyfile"}, {"cert-file", "key-file"},
	{"peer-cert-file", "peer-key-file"}, {"proxy-client-cert-file", "proxy-client-key-file"},
	{"kubelet-client-certificate", "kubelet-client-key"}, {"cluster-signing-cert-file", "cluster-signing-key-file"},
}

// pod follows everything that a static pod names.
func (c *closure) pod(p staticPod) {
	c.pods = append(c.pods, p)
	mounted := make(map[string]bool)
	for i := range p.containers {
		ct := &p.containers[i]
		who := p.name + " (" + p.file + ")"
		if ct.runs("etcd") {
			for _, option := range []string{"data-dir", "wal-dir"} {
				if host, ok := ct.view.host(ct.option(option)); ok && strings.HasPrefix(host, "/") {
					c.dataDir(host)
				}
			}
		}
		named := make(map[string]string)
		for _, f := range flags(ct.words) {
			named[f.name] = f.value
			if f.name == "data-dir" || f.name == "wal-dir" {
				continue
			}
			for _, inside := range filesOf(f.value) {
				if host, ok := ct.view.host(inside); ok {
					c.add(item{path: host, why: "--" + f.name + " of " + who, view: ct.view, fileOnly: true, explicit: true,
						required: mustExist(f.name), config: strings.HasSuffix(f.name, "kubeconfig")})
				}
			}
		}
		for _, value := range ct.env {
			for _, inside := range filesOf(value) {
				if host, ok := ct.view.host(inside); ok {
					c.add(item{path: host, why: "the environment of " + who, view: ct.view, fileOnly: true, explicit: true})
				}
			}
		}
		for _, f := range pairFlags {
			cert, ok1 := ct.view.host(named[f.cert])
			key, ok2 := ct.view.host(named[f.key])
			if ok1 && ok2 && strings.HasPrefix(cert, "/") && strings.HasPrefix(key, "/") {
				c.pair(cert, key)
			}
		}
		for _, m := range ct.view.mounts {
			mounted[m.host] = true
			c.add(item{path: m.host, why: "hostPath of " + who, view: ct.view})
		}
	}
	for _, host := range p.hostPaths {
		if !mounted[host] {
			c.add(item{path: host, why: "hostPath of " + p.name + " (" + p.file + ")", view: &view{}})
		}
	}
}

// pair notes two files that must belong together, by their real names.
func (c *closure) pair(cert, key string) {
	a, err := c.t.resolve(cert)
	if err != nil || a.Missing {
		return
	}
	b, err := c.t.resolve(key)
	if err != nil || b.Missing {
		return
	}
	c.pairs[pair{a.Name, b.Name}] = true
}
