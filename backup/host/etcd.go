package host

import (
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"lifeboat/internal/etcdhost"
	"lifeboat/internal/hostfacts"
)

// EtcdServer is an etcd that the host runs outside of Kubernetes.
type EtcdServer = hostfacts.EtcdServer

// Text and Names make a tree what etcdhost reads.
func (t *tree) Text(name string) string { return t.text(name) }

// Names implements etcdhost.Host.
func (t *tree) Names(folder string) []string {
	place, err := t.resolve(folder)
	if err != nil || place.Missing || excluded(place.Name) {
		return nil
	}
	names, err := t.folder(place.Name, defaultFiles)
	if err != nil {
		return nil
	}
	return names
}

// etcdServers finds them: those that units and files set up, and those that run
// without any.
func etcdServers(t *tree) []EtcdServer {
	out := etcdhost.Find(t)
	for _, s := range etcdProcesses(t) {
		// One that a unit runs has the settings of its files, which a restore brings back.
		same := func(have EtcdServer) bool { return have.DataDir == s.DataDir }
		if i := slices.IndexFunc(out, same); i < 0 {
			out = append(out, s)
		} else if out[i].Unit == "" {
			s.Files = append(s.Files, out[i].Files...)
			out[i] = s
		}
	}
	for i := range out {
		out[i].Owner = t.ownerOf(out[i].DataDir)
	}
	return out
}

func (t *tree) ownerOf(name string) *hostfacts.Owner {
	place, err := t.resolve(name)
	if name == "" || err != nil || place.Missing {
		return nil
	}
	info, err := t.root.Lstat(place.Name)
	if err != nil || !info.IsDir() {
		return nil
	}
	uid, gid := owner(info)
	return &hostfacts.Owner{UID: uid, GID: gid}
}

// containerID is in the names of control groups, whichever runtime and driver.
var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// etcdProcesses looks at the processes that the host shows, other than those in
// containers. What can't be read of one is left out.
func etcdProcesses(t *tree) (out []EtcdServer) {
	names, err := t.folder("proc", maxItems)
	if err != nil {
		return nil
	}
	mounts, _ := t.root.Readlink("proc/1/ns/mnt")
	container := containerID.FindString(t.procText("proc/1/cgroup"))
	for _, name := range names {
		if _, err := strconv.Atoi(name); err != nil {
			continue
		}
		dir := path.Join("proc", name)
		args := strings.Split(strings.TrimSuffix(t.procText(path.Join(dir, "cmdline")), "\x00"), "\x00")
		if path.Base(args[0]) != "etcd" {
			continue
		}
		own, err := t.root.Readlink(path.Join(dir, "ns/mnt"))
		if mounts != "" && err == nil && own != mounts || containerID.FindString(t.procText(path.Join(dir, "cgroup"))) != container {
			continue // its files are not the host's
		}
		environment := strings.Split(strings.TrimSuffix(t.procText(path.Join(dir, "environ")), "\x00"), "\x00")
		workingDir, _ := t.root.Readlink(path.Join(dir, "cwd"))
		if s, ok := etcdhost.Process(t, args, environment, workingDir); ok {
			out = append(out, s)
		}
	}
	return out
}

// procText reads a file of the kernel's, which has no size.
func (t *tree) procText(name string) string {
	f, err := t.open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, parseLimit))
	if err != nil {
		return ""
	}
	return string(text)
}

// pkiFolders are what folders are called that hold certificates and little else:
// beside those that etcd names lie those of its authority and of its clients.
var pkiFolders = []string{"pki", "ssl", "tls", "cert", "certs", "certificates", "etcd"}

// etcdServer follows all that sets up one etcd.
func (c *closure) etcdServer(s EtcdServer) {
	for _, dir := range []string{s.DataDir, s.WALDir} {
		if dir != "" {
			c.dataDir(dir)
		}
	}
	for _, file := range s.Files {
		c.add(item{path: file, why: s.String(), fileOnly: true, explicit: true, required: true})
	}
	for _, file := range s.PKI() {
		c.add(item{path: file, why: s.String(), fileOnly: true, explicit: true, required: true})
		dir := path.Dir(file)
		if place, err := c.t.resolve(dir); err == nil && slices.Contains(pkiFolders, path.Base(dir)) && !broad[place.Name] && !trusted(place.Name) {
			c.add(item{path: dir, why: s.String()})
		}
	}
	for _, p := range []pair{{s.CertFile, s.KeyFile}, {s.PeerCertFile, s.PeerKeyFile}} {
		if p.cert != "" && p.key != "" {
			c.pair(p.cert, p.key)
		}
	}
	if s.Unit == "" {
		return
	}
	for _, folder := range c.t.Names("/etc/systemd/system") { // that it is enabled
		if strings.HasSuffix(folder, ".wants") || strings.HasSuffix(folder, ".requires") {
			c.add(item{path: path.Join("/etc/systemd/system", folder, s.Unit+".service"), why: s.String()})
		}
	}
}
