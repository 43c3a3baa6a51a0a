// Package reset tells how a server of k3s, rke2 or k0s is given a backup: by their own
// reset commands, in order, with the node's values in place. It runs nothing and
// changes nothing.
//
// These distributions run etcd themselves: they name its member, make its certificates
// and, k3s and rke2, decrypt their authorities in it with the server token. A data
// directory put in place from outside would be none that they know. What they take is a
// snapshot, and what they leave to others is the node's files and the revision bump.
//
// New makes the Plan; rancher.go is of k3s and rke2, k0s.go of k0s. Sources:
// docs.k3s.io/cli/etcd-snapshot, docs.rke2.io/datastore/backup_restore and
// docs.k0sproject.io/stable/backup, and their code where these say nothing.
package reset

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/distro"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
)

// Inputs say what is to be given back, and where. All but Distribution may be
// unknown; then the plan says what a person must fill in.
type Inputs struct {
	Distribution *hostfacts.Distribution // as it is set up here or was in the backup
	Node         string                  // whose files, by its name in the backup
	Facts        *hostfacts.Facts        // of these files; nil: there are none
	Etcd         *manifest.Etcd          // of the backup that is restored

	Hostname  string   // of this machine
	Addresses []string // its own, the one by which others reach it first

	Point    string // flags of lifeboat export for the point, such as "--backup 01J..."
	Files    string // flags of lifeboat restore files for the backup of the files
	Reading  string // flags that every reading command needs, such as "--store URL"
	Identity string // the file; default FILE
	Bump     uint64 // of the revision
	Folder   string // where the snapshot goes; default /var/lib/lifeboat
	Now      time.Time
}

// Plan is what to do, in order.
type Plan struct {
	Kind     string   `json:"kind"`
	For      string   `json:"for"` // the releases whose commands these are
	This     string   `json:"this"`
	Others   []Server `json:"others"`
	Steps    []Step   `json:"steps"`
	Warnings []string `json:"warnings"`
}

// Server is another server of the cluster.
type Server struct {
	Name    string `json:"name"`
	Address string `json:"address,omitempty"`
	named   bool   // by its node
}

// Step is done before the next one begins.
type Step struct {
	On       []string `json:"on"` // servers by name, all at once; or one after the other if Each
	Each     bool     `json:"each"`
	Title    string   `json:"title"`
	Commands []string `json:"commands"` // of a shell, as root
	Note     string   `json:"note,omitempty"`
}

// ErrDatastore says that a reset is no way to give the cluster back, since its
// objects are not in the distribution's own etcd.
var ErrDatastore = errors.New("this cluster is not kept in an etcd of its distribution")

// New makes the plan. It refuses with ErrDatastore.
func New(in Inputs) (*Plan, error) {
	d := in.Distribution
	switch {
	case d == nil || !distro.Is(d.Kind):
		return nil, errors.New("plan a reset: nothing tells how k3s, rke2 or k0s is set up")
	case d.Datastore == distro.ExternalEtcd:
		return nil, fmt.Errorf("%w: %s uses an etcd elsewhere. Restore that with \"lifeboat restore etcd\" where it runs, put this node's files back with \"lifeboat restore files\", then start %s", ErrDatastore, d.Kind, d.Unit)
	case d.Datastore != distro.Etcd:
		return nil, fmt.Errorf("%w: %s keeps it in a database of another kind (%s), of which lifeboat has no backup. \"lifeboat restore files\" puts this node's files back", ErrDatastore, d.Kind, d.Datastore)
	}
	m := &maker{Inputs: in, d: d, plan: &Plan{Kind: d.Kind, Others: []Server{}, Steps: []Step{}, Warnings: []string{}}}
	m.Identity, m.Folder = cmp.Or(in.Identity, "FILE"), cmp.Or(in.Folder, "/var/lib/lifeboat")
	m.Node = cmp.Or(in.Node, in.Hostname, "NODE")
	m.plan.This = cmp.Or(in.Hostname, m.Node)
	m.servers()
	m.look()
	if d.Kind == distro.K0s {
		m.k0s()
	} else {
		m.rancher()
	}
	return m.plan, nil
}

// maker makes one plan.
type maker struct {
	Inputs
	d       *hostfacts.Distribution
	plan    *Plan
	address string // by which others reach this server
}

func (m *maker) warn(format string, args ...any) {
	m.plan.Warnings = append(m.plan.Warnings, fmt.Sprintf(format, args...))
}

// here adds a step of this server, everywhere one of all servers, elsewhere one of
// each of the others in turn.
func (m *maker) here(title, note string, commands ...string) {
	m.step(Step{On: []string{m.plan.This}, Title: title, Note: note, Commands: commands})
}

func (m *maker) everywhere(title, note string, commands ...string) {
	m.step(Step{On: append([]string{m.plan.This}, m.names()...), Title: title, Note: note, Commands: commands})
}

func (m *maker) elsewhere(title, note string, commands ...string) {
	if len(m.plan.Others) > 0 {
		m.step(Step{On: m.names(), Each: true, Title: title, Note: note, Commands: commands})
	}
}

func (m *maker) step(s Step) {
	s.Commands = slices.DeleteFunc(s.Commands, func(c string) bool { return c == "" })
	m.plan.Steps = append(m.plan.Steps, s)
}

func (m *maker) names() (out []string) {
	for _, s := range m.plan.Others {
		out = append(out, s.Name)
	}
	return out
}

// servers finds out which of etcd's members was this server and which the others
// were, and by which address this one is reached now.
func (m *maker) servers() {
	var was []string
	if m.Facts != nil {
		for _, a := range m.Facts.Addresses {
			if p, err := netip.ParsePrefix(a.Address); err == nil {
				was = append(was, p.Addr().Unmap().String())
			}
		}
	}
	var own string
	if m.Etcd != nil {
		for _, member := range m.Etcd.Members {
			name, at := m.nodeOf(member.Name), addressOf(member)
			switch {
			case name != "" && (name == m.Node || m.Facts != nil && (name == m.Facts.Hostname || m.Facts.Etcd != nil && member.Name == m.Facts.Etcd.Name)), name == "" && slices.Contains(was, at):
				own = at
			case name == "":
				m.plan.Others = append(m.plan.Others, Server{Name: cmp.Or(at, "another server"), Address: at})
			default:
				m.plan.Others = append(m.plan.Others, Server{Name: name, Address: at, named: true})
			}
		}
	} else {
		m.warn("nothing tells which servers the cluster had: do on each of the others what the steps say for \"the other servers\"")
		m.plan.Others = append(m.plan.Others, Server{Name: "the other servers"})
	}
	if a, err := netip.ParseAddr(own); err == nil && a.IsLoopback() {
		own = ""
	}
	switch {
	case own != "" && (len(m.Addresses) == 0 || slices.Contains(m.Addresses, own)):
		m.address = own
	case len(m.Addresses) == 0:
		m.address = "ADDRESS-OF-" + strings.ToUpper(m.plan.This)
	default:
		m.address = m.Addresses[0]
		if own != "" {
			m.warn("this server was at %s, which is not this machine's: others will find it at %s", own, m.address)
		}
	}
}

// nodeOf is the node of an etcd member: k3s and rke2 add eight digits to its name.
func (m *maker) nodeOf(member string) string {
	if i := strings.LastIndexByte(member, '-'); m.d.Kind != distro.K0s && i > 0 && len(member)-i == 9 {
		return member[:i]
	}
	return member
}

// addressOf is where a member's peers reach it: for clients k0s's is at the loopback
// address.
func addressOf(member manifest.Member) string {
	for _, text := range slices.Concat(member.PeerURLs, member.ClientURLs) {
		if u, err := url.Parse(text); err == nil && u.Hostname() != "" {
			return u.Hostname()
		}
	}
	return ""
}

// look warns of what a person must see to before the first command.
func (m *maker) look() {
	if m.Facts == nil {
		m.warn("no files of %s are in the backup: its configuration and, for k3s and rke2, its token must come from elsewhere", m.Node)
	}
	named := []string{"node-ip", "node-external-ip", "advertise-address", "bind-address", "spec.api.address", "spec.storage.etcd.peerAddress"}
	for _, name := range named {
		value, from := m.d.Setting(name)
		for _, text := range strings.Split(value, ",") {
			a, err := netip.ParseAddr(strings.TrimSpace(text))
			if err != nil || a.IsUnspecified() || a.IsLoopback() || len(m.Addresses) == 0 || slices.Contains(m.Addresses, a.Unmap().String()) {
				continue
			}
			if name == "node-external-ip" && !m.had(a) { // one that is translated is nobody's
				continue
			}
			m.warn("%s sets %s to %s, which is not this machine's: once the files are back, change it before the reset", from, name, a)
		}
	}
	if was := m.formerName(); m.Hostname != "" && was != "" && !strings.EqualFold(m.Hostname, was) {
		m.warn("this machine is called %s, the server in the backup %s: it becomes another node, and the old one's object stays until it is deleted", m.Hostname, was)
	}
}

func (m *maker) formerName() string {
	if name, _ := m.d.Setting("node-name"); name != "" {
		return ""
	}
	if m.Facts != nil {
		return m.Facts.Hostname
	}
	return ""
}

// had says whether the machine in the backup had an address.
func (m *maker) had(a netip.Addr) bool {
	return m.Facts != nil && slices.ContainsFunc(m.Facts.Addresses, func(have hostfacts.Address) bool {
		p, err := netip.ParsePrefix(have.Address)
		return err == nil && p.Addr() == a
	})
}

// captured says whether the backup of the files holds one.
func (m *maker) captured(name string) bool {
	return m.Facts != nil && slices.ContainsFunc(m.Facts.Files, func(f hostfacts.File) bool { return path.Join("/", f.Name) == name && f.Size > 0 })
}

// program is the step that comes before any that needs the distribution's.
func (m *maker) program(version, install string) {
	note := "The program is not in the backup. If it is missing, install the release that ran before, or a later one of the same minor version, and don't start it. " + install
	if m.Etcd != nil && m.Etcd.Version != "" {
		note += " Its etcd must not be older than " + m.Etcd.Version + ", which made the snapshot."
	}
	m.here("Have the program", note, version)
}

// files is the step that puts the node's files back.
func (m *maker) files(note string, but ...string) {
	if m.Facts == nil {
		return
	}
	m.here("Put the files back", "What differs moves aside; the database is not among them. "+note, m.restoreFiles(m.Node, m.Files, but), "systemctl daemon-reload")
}

// otherFiles are the steps that put the files of the others back: a machine that has
// lost its disk has no configuration that says whom to join.
func (m *maker) otherFiles(note string, but ...string) {
	for _, s := range m.plan.Others {
		node := s.Name
		if !s.named {
			node = "NODE"
		}
		m.step(Step{On: []string{s.Name}, Title: "Put its files back", Commands: []string{m.restoreFiles(node, "", but), "systemctl daemon-reload"},
			Note: "On a machine that has its files still, and where the backup has none of it, leave this out. It takes the newest; --at TIME takes older ones. It needs lifeboat and the identity, which must not stay there. " + note})
	}
}

func (m *maker) restoreFiles(node, which string, but []string) string {
	command := "lifeboat restore files --node " + quote(node) + " --root / --identity " + quote(m.Identity)
	for _, name := range but {
		command += " --exclude " + quote(strings.TrimPrefix(name, "/"))
	}
	return command + spaced(which) + spaced(m.Reading)
}

// then is one command of several, of which each is run only after the one before it
// has done what it should.
func then(commands ...string) string { return strings.Join(commands, " && \\\n") }

// export is the command that makes the snapshot.
func (m *maker) export(out string) string {
	return fmt.Sprintf("lifeboat export --identity %s --out %s --force --bump %d%s%s", quote(m.Identity), quote(out), m.Bump, spaced(m.Point), spaced(m.Reading))
}

const exportNote = "The revision is raised, and what was before it marked compacted, since the reset does neither: without, controllers and kubelets that have seen newer revisions would take the past for the present. The file holds all Secrets; it has mode 0600 and goes in the last step."

// stamp names what moves aside.
func (m *maker) stamp() string { return ".before-" + m.Now.UTC().Format("20060102T150405Z") }

// aside moves a folder away, if it is there, and never into an older one.
func (m *maker) aside(folder string) string {
	return fmt.Sprintf("test ! -e %[1]s || mv -T %[1]s %[2]s", quote(folder), quote(folder+m.stamp()))
}

// at is a URL of this server.
func (m *maker) at(port string) string { return "https://" + net.JoinHostPort(m.address, port) }

func spaced(flags string) string {
	if flags = strings.TrimSpace(flags); flags == "" {
		return ""
	}
	return " " + flags
}

// quote makes a word of a shell's command line.
var quote = distro.Quote
