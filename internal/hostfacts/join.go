package hostfacts

import (
	"path"
	"slices"
	"strings"
)

// Unjoined are the stored files, by their names on the host, that the node's
// control plane needs and that "kubeadm join" does not bring to another machine:
// those of /etc/kubernetes that kubeadm does not make itself, such as an audit
// policy, and encryption configurations wherever they are.
func (f *Facts) Unjoined() (names []string) {
	for _, file := range f.Files {
		name := path.Join("/", file.Name)
		beside, within := strings.CutPrefix(name, "/etc/kubernetes/")
		folder, _, deeper := strings.Cut(beside, "/")
		switch {
		case !within:
		case !deeper && path.Ext(beside) == ".conf": // kubeconfigs
		case deeper && slices.Contains([]string{"pki", "manifests", "tmp"}, folder):
		default:
			names = append(names, name)
		}
	}
	for _, keys := range f.Encryption {
		names = append(names, path.Join("/", keys.File))
	}
	slices.Sort(names)
	return slices.Compact(names)
}
