// Package etcdhost finds the etcd servers that a host runs outside of
// Kubernetes, and how they are set up: from systemd's units with their drop-ins
// and environment files, from etcd's own configuration file, from command lines.
// It reads what systemd and etcd read, in their order, and runs nothing.
//
// Find looks at a host's files, Process at one running process; the settings that
// come out are hostfacts.EtcdServer. What etcd makes of several sources is in
// settings.go, what systemd makes of a unit in unit.go.
package etcdhost

import (
	"path"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
)

// Host is where files are read. Names are the host's own, absolute. What can't
// be read is empty; the host keeps note of it.
type Host interface {
	Text(name string) string      // of a regular file; empty if there is none
	Names(folder string) []string // in a folder, in order
}

// UnitFolders are systemd's, the first wins (systemd.unit(5)). Those below /run
// are gone after a reboot, so they set nothing up.
var UnitFolders = []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// Configs and Environments are where packages and installers keep etcd's
// settings; looked at where no unit names others.
var (
	Configs      = []string{"/etc/etcd/etcd.conf.yml", "/etc/etcd/etcd.conf.yaml", "/etc/etcd/etcd.yaml", "/etc/etcd/config.yaml"}
	Environments = []string{"/etc/etcd.env", "/etc/etcd/etcd.env"}
)

// most bounds how many units are looked at: a folder of systemd's has hundreds.
const most = 5000

// Find returns the etcd servers that a host's files set up, those of units by
// name; without any unit at most one, by the usual configuration files.
func Find(h Host) []hostfacts.EtcdServer {
	var out []hostfacts.EtcdServer
	for _, name := range units(h) {
		u := readUnit(h, name)
		if s, ok := u.server(h); ok {
			out = append(out, s)
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, file := range Configs {
		if config := parseConfig([]byte(h.Text(file))); config != nil && config["data-dir"] != "" {
			return []hostfacts.EtcdServer{config.server(hostfacts.EtcdServer{Files: []string{file}})}
		}
	}
	for _, file := range Environments {
		if s := ofEnvironment(parseEnvironment(h.Text(file))); len(s) > 0 {
			return []hostfacts.EtcdServer{s.server(hostfacts.EtcdServer{Files: []string{file}})}
		}
	}
	return nil
}

// units names the units, without ".service", that may run an etcd: in the
// administrator's folder any that mentions it, in others those that are called so.
func units(h Host) (out []string) {
	for i, folder := range UnitFolders {
		for _, file := range h.Names(folder) {
			name, ok := strings.CutSuffix(file, ".service")
			if !ok || slices.Contains(out, name) || strings.HasSuffix(name, "@") || len(out) == most {
				continue
			}
			if strings.Contains(name, "etcd") || i == 0 && strings.Contains(h.Text(path.Join(folder, file)), "etcd") {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Process returns the settings of a running process; false if it is no etcd.
// Of the environment etcd's own variables count.
func Process(h Host, args, environment []string, workingDir string) (hostfacts.EtcdServer, bool) {
	if program(args) != 0 { // what starts one is another process
		return hostfacts.EtcdServer{}, false
	}
	env := map[string]string{}
	var own []string
	for _, entry := range environment {
		key, value, ok := strings.Cut(entry, "=")
		if ok && strings.HasPrefix(key, "ETCD_") {
			env[key] = value
			own = append(own, entry)
		}
	}
	slices.Sort(own)
	base := hostfacts.EtcdServer{Program: args[0], Args: slices.Clone(args), Environment: own, WorkingDir: workingDir}
	return resolve(h, args[1:], env, base), true
}

// program returns which of the words is etcd's program; -1: none. Behind other
// words it must have a path, or be what a shell or env goes on to run.
func program(words []string) int {
	for i, w := range words {
		if path.Base(w) != "etcd" || strings.HasPrefix(w, "-") || strings.Contains(w, "=") {
			continue
		}
		if i == 0 || path.IsAbs(w) || strings.Contains(words[i-1], "=") || slices.Contains([]string{"exec", "env"}, path.Base(words[i-1])) {
			return i
		}
	}
	return -1
}
