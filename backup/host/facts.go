package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/seal"
)

// lookupLimit is how long DNS may take for one name: a node whose resolver is
// dead is worth a backup more than others.
const lookupLimit = 2 * time.Second

func (c *closure) facts(ctx context.Context, opts Options, created time.Time) Facts {
	c.markUnread()
	f := Facts{
		Format: FactsFormat, Node: opts.Node, Created: created,
		Hostname:   strings.TrimSpace(c.t.text("/etc/hostname")),
		Kernel:     kernel(c.t),
		OS:         osName(c.t.text("/etc/os-release")),
		Addresses:  []Address{},
		Routes:     routes(c.t),
		ResolvConf: c.t.text("/etc/resolv.conf"),
		Hosts:      c.t.text("/etc/hosts"),
		Servers:    sortedKeys(c.servers),
		DNS:        []Answer{}, Images: c.images(ctx, opts),
		DataDirs:   sortedKeys(c.dataDirs),
		Encryption: append([]providerKeys{}, c.keys...),
		Folders:    sortedKeys(c.folders),
		Noted:      []NotedFolder{}, Skipped: []SkippedFile{}, Files: []FileFact{},
	}
	if a, err := opts.Addresses(); err == nil {
		f.Addresses = append(f.Addresses, a...)
	} else {
		c.warnings.addf("the machine's addresses can't be read")
	}
	f.DNS = append(f.DNS, c.answers(ctx, opts.Resolver)...)
	f.Etcd, f.EtcdServers = discover(c.t, c.pods, c.etcds, c.own), c.etcds
	f.Distribution = c.own
	for _, name := range sortedKeys(c.noted) {
		n := c.noted[name]
		f.Noted = append(f.Noted, NotedFolder{Path: name, Files: n.files, SHA256: hex.EncodeToString(n.sum[:])})
	}
	for _, name := range sortedKeys(c.skipped) {
		f.Skipped = append(f.Skipped, SkippedFile{Path: name, Why: c.skipped[name]})
	}
	for _, name := range c.names() {
		if e := c.entries[name]; e.header.Type == seal.TypeFile {
			f.Files = append(f.Files, FileFact{Name: name, Size: e.header.Size, SHA256: hex.EncodeToString(e.sum[:])})
		}
	}
	f.Certificates = append([]CertificateFact{}, c.certificates()...)
	slices.SortFunc(f.Encryption, func(a, b providerKeys) int { return strings.Compare(a.File, b.File) })
	f.Degraded, f.Warnings = c.degraded.sorted(), c.warnings.sorted()
	return f
}

// answers asks DNS for the names of the API servers.
func (c *closure) answers(ctx context.Context, resolver Resolver) []Answer {
	names := make(map[string]bool)
	for server := range c.servers {
		u, err := url.Parse(server)
		if err != nil || u.Hostname() == "" {
			continue
		}
		if _, err := netip.ParseAddr(u.Hostname()); err != nil && u.Hostname() != "localhost" {
			names[u.Hostname()] = true
		}
	}
	var out []Answer
	for _, name := range sortedKeys(names) {
		lookup, cancel := context.WithTimeout(ctx, lookupLimit)
		addresses, err := resolver.LookupHost(lookup, name)
		cancel()
		a := Answer{Name: name, Addresses: append([]string{}, addresses...)}
		if err != nil {
			a.Failed = "no answer"
			c.warnings.addf("the API server's name %s does not resolve", show(name))
		}
		out = append(out, a)
	}
	return out
}

// write archives the facts as the first entry.
func writeFacts(f *Facts, w *seal.ArchiveWriter) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(f); err != nil {
		return fmt.Errorf("write host facts: %w", err)
	}
	h := seal.Header{Name: FactsName, Type: seal.TypeFile, Mode: 0o600, ModTime: f.Created, Size: int64(out.Len())}
	if err := w.AddFile(h, &out); err != nil {
		return fmt.Errorf("write host facts: %w", err)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// osName reads os-release(5).
func osName(text string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// kernel reads the host's /proc: containers share the kernel.
func kernel(t *tree) string {
	c, err := t.read("proc/sys/kernel/osrelease", parseLimit, parseLimit)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(c.data))
}

// routes reads the table of the host's first process, since a pod's own may
// be another network's.
func routes(t *tree) []Route {
	out := []Route{}
	for _, name := range []string{"proc/1/net/route", "proc/net/route"} {
		// A file in /proc has no size; it is read to its end.
		f, err := t.open(name)
		if err != nil {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(f, parseLimit))
		f.Close()
		if err == nil {
			return append(out, parseRoutes(string(data))...)
		}
	}
	return out
}

// parseRoutes reads the table of proc_pid_net_route: hexadecimal words in
// the byte order of a little-endian machine.
func parseRoutes(text string) []Route {
	var out []Route
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 8 || fields[0] == "Iface" {
			continue
		}
		destination, ok1 := hexAddress(fields[1])
		gateway, ok2 := hexAddress(fields[2])
		mask, ok3 := hexAddress(fields[7])
		var metric uint32
		if _, err := fmt.Sscan(fields[6], &metric); err != nil || !ok1 || !ok2 || !ok3 {
			continue
		}
		ones, _ := net.IPMask(mask.AsSlice()).Size()
		r := Route{Interface: fields[0], Destination: fmt.Sprintf("%v/%d", destination, ones), Metric: metric}
		if !gateway.IsUnspecified() {
			r.Gateway = gateway.String()
		}
		out = append(out, r)
	}
	return out
}

func hexAddress(text string) (netip.Addr, bool) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}), true
}

// localAddresses are those of this process's network, without loopback's.
func localAddresses() ([]Address, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var out []Address
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			out = append(out, Address{Interface: i.Name, Address: a.String(), Hardware: i.HardwareAddr.String()})
		}
	}
	return out, nil
}

// hasher is a SHA-256 that makes itself.
type hasher struct{ h hash.Hash }

func (h *hasher) Write(p []byte) {
	if h.h == nil {
		h.h = sha256.New()
	}
	h.h.Write(p)
}

func newExactly(f io.Reader, size int64) *exactly { return &exactly{f: f, left: size} }

func (x *exactly) sum() (sum [sha256.Size]byte) {
	x.h.Write(nil)
	x.h.h.Sum(sum[:0])
	return sum
}
