package topology

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Pod is a static pod whose manifest is on disk.
type Pod struct {
	File   string   `json:"file"` // as the host sees it
	Name   string   `json:"name"`
	Images []string `json:"images"`
}

// pod is a parsed one.
type pod struct {
	Pod
	containers []container
}

// container is one of a pod's, with what it may be asked.
type container struct {
	image  string
	words  []string // command and arguments, split at spaces
	mounts []mount
}

// mount says that what is at inside is the host's at host.
type mount struct{ inside, host string }

// manifestFolders are kubelet's usual ones.
var manifestFolders = []string{"/etc/kubernetes/manifests", "/var/lib/rancher/rke2/agent/pod-manifests"}

var staticPodPath = regexp.MustCompile(`(?m)^\s*["']?staticPodPath["']?\s*:\s*["']?([^"'\s#]+)`)

// staticPods reads the manifests in the usual folders and in the kubelet's.
func (h *Host) staticPods(t *tree) []pod {
	folders := slices.Clone(manifestFolders)
	for _, config := range []string{"/var/lib/kubelet/config.yaml", "/var/lib/kubelet/instance-config.yaml"} {
		if m := staticPodPath.FindStringSubmatch(t.read(config)); m != nil && !slices.Contains(folders, path.Clean(m[1])) {
			folders = append(folders, path.Clean(m[1]))
		}
	}
	h.Pods = []Pod{}
	var out []pod
	for _, folder := range folders {
		for _, name := range t.list(folder) {
			if strings.HasPrefix(name, ".") {
				continue // kubelet leaves these out
			}
			if p, ok := parsePod(path.Join(folder, name), t.read(path.Join(folder, name))); ok {
				out = append(out, p)
				h.Pods = append(h.Pods, p.Pod)
			}
		}
	}
	h.PodsHow = "read " + strings.Join(folders, ", ")
	return out
}

func parsePod(file, text string) (pod, bool) {
	var object struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Spec struct {
			Containers []struct {
				Image        string   `json:"image"`
				Command      []string `json:"command"`
				Args         []string `json:"args"`
				VolumeMounts []struct {
					MountPath string `json:"mountPath"`
					SubPath   string `json:"subPath"`
					Name      string `json:"name"`
				} `json:"volumeMounts"`
			} `json:"containers"`
			Volumes []struct {
				Name     string `json:"name"`
				HostPath struct {
					Path string `json:"path"`
				} `json:"hostPath"`
			} `json:"volumes"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal([]byte(text), &object); err != nil || object.Kind != "Pod" || object.Metadata.Name == "" {
		return pod{}, false
	}
	p := pod{Pod: Pod{File: file, Name: object.Metadata.Name, Images: []string{}}}
	volumes := map[string]string{}
	for _, v := range object.Spec.Volumes {
		volumes[v.Name] = v.HostPath.Path
	}
	for _, c := range object.Spec.Containers {
		made := container{image: c.Image, words: strings.Fields(strings.Join(append(slices.Clone(c.Command), c.Args...), " "))}
		for _, m := range c.VolumeMounts {
			if host := volumes[m.Name]; host != "" {
				made.mounts = append(made.mounts, mount{path.Clean(m.MountPath), path.Join(host, m.SubPath)})
			}
		}
		p.containers = append(p.containers, made)
		if c.Image != "" && !slices.Contains(p.Images, c.Image) {
			p.Images = append(p.Images, c.Image)
		}
	}
	return p, true
}

// runs says whether the program is among what the container is told to run.
func (c *container) runs(program string) bool {
	return slices.ContainsFunc(c.words, func(w string) bool {
		return !strings.HasPrefix(w, "-") && path.Base(w) == program && !strings.Contains(w, "=")
	})
}

// flag returns the last value of an option.
func (c *container) flag(name string) (value string) {
	for i, w := range c.words {
		w = strings.Trim(w, `"'`)
		if v, ok := strings.CutPrefix(w, "--"+name+"="); ok {
			value = strings.Trim(v, `"'`)
		} else if w == "--"+name && i+1 < len(c.words) {
			value = strings.Trim(c.words[i+1], `"'`)
		}
	}
	return value
}

// host returns where a path in the container lies on the host; empty: only in the
// container.
func (c *container) host(inside string) string {
	inside = path.Clean(inside)
	best := mount{}
	for _, m := range c.mounts {
		if (inside == m.inside || strings.HasPrefix(inside, strings.TrimSuffix(m.inside, "/")+"/")) && len(m.inside) >= len(best.inside) {
			best = m
		}
	}
	if best.host == "" {
		return ""
	}
	return path.Join(best.host, strings.TrimPrefix(inside, best.inside))
}

// find returns the first container that runs a program.
func find(pods []pod, program string) *container {
	for i := range pods {
		for j := range pods[i].containers {
			if c := &pods[i].containers[j]; c.runs(program) {
				return c
			}
		}
	}
	return nil
}
