package nodefiles

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
	"lifeboat/restore/readdress"
)

// mapped gives what is known of the API server's etcds the new names and
// addresses.
func mapped(d *hostfacts.Discovery, m *readdress.Mapping) *hostfacts.Discovery {
	e := *d
	e.Separate = slices.Clone(d.Separate)
	if m == nil {
		return &e
	}
	e.Name, e.PeerURLs, e.EtcdEndpoints = m.Name(d.Name), m.Value(d.PeerURLs), values(d.EtcdEndpoints, m)
	for i := range e.Separate {
		s := &e.Separate[i]
		s.Name, s.Servers, s.PeerURLs, s.InitialCluster = m.Name(s.Name), values(s.Servers, m), values(s.PeerURLs, m), cluster(s.InitialCluster, m)
	}
	return &e
}

// mappedServer does the same for an etcd outside of Kubernetes.
func mappedServer(s hostfacts.EtcdServer, m *readdress.Mapping) hostfacts.EtcdServer {
	if m == nil {
		return s
	}
	s.Name, s.InitialCluster = m.Name(s.Name), cluster(s.InitialCluster, m)
	for _, list := range []*[]string{&s.ListenClientURLs, &s.ListenPeerURLs, &s.ClientURLs, &s.PeerURLs} {
		*list = values(*list, m)
	}
	s.Args = rewritten(s.Args, m)
	s.Environment = rewritten(s.Environment, m)
	return s
}

// rewritten gives words new names and addresses, as the same in a unit would get
// them.
func rewritten(words []string, m *readdress.Mapping) []string {
	if slices.ContainsFunc(words, func(w string) bool { return strings.ContainsAny(w, " \t\r\n") }) {
		return values(words, m) // they could not be told apart again
	}
	text := m.Rewrite(readdress.EtcdUnit, strings.Join(words, " ")).Text
	out := strings.Fields(text)
	if out == nil {
		out = []string{}
	}
	return out
}

func values(list []string, m *readdress.Mapping) []string {
	out := slices.Clone(list)
	for i := range out {
		out[i] = m.Value(out[i])
	}
	return out
}

// cluster maps an --initial-cluster.
func cluster(text string, m *readdress.Mapping) string {
	members := strings.Split(text, ",")
	for i, member := range members {
		if name, url, ok := strings.Cut(member, "="); ok {
			members[i] = m.Name(name) + "=" + m.Value(url)
		}
	}
	return strings.Join(members, ",")
}

// kindOf tells the kind of a file by its usual name, or else by what the facts
// say that it is.
func (s *Staged) kindOf(name string) (readdress.Kind, bool) {
	if kind, known := readdress.KindOf(name); known {
		return kind, true
	}
	for _, server := range s.Facts.EtcdServers {
		if !slices.Contains(server.Files, "/"+name) {
			continue
		}
		if ext := path.Ext(name); ext == ".yml" || ext == ".yaml" || ext == ".json" {
			return readdress.EtcdConfig, true
		}
		return readdress.EtcdUnit, true
	}
	return 0, false
}

// pkiFolders are where the etcds outside of Kubernetes have their certificates.
func (s *Staged) pkiFolders() (folders []string) {
	for i := range s.Facts.EtcdServers {
		for _, file := range s.Facts.EtcdServers[i].PKI() {
			if dir := path.Dir(file); !slices.Contains(folders, dir) && dir != "/" && s.has(dir) {
				folders = append(folders, dir)
			}
		}
	}
	return folders
}

// has says whether a folder is among what is staged.
func (s *Staged) has(folder string) bool {
	info, err := os.Stat(filepath.Join(s.Tree(), folder))
	return err == nil && info.IsDir()
}
