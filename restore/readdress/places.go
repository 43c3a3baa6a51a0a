package readdress

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// comments returns the parts of a text that no program reads. In YAML a comment
// begins with # after white space, outside of quotes; in systemd's files with #
// or ; at the beginning of a line.
func comments(kind Kind, text string) (out []span) {
	at := 0
	for line := range strings.Lines(text) {
		from := -1
		trimmed := strings.TrimLeft(line, " \t")
		switch {
		case strings.HasPrefix(trimmed, "#"), !kind.yaml() && strings.HasPrefix(trimmed, ";"):
			from = 0
		case kind.yaml():
			from = yamlComment(line)
		}
		if from >= 0 {
			out = append(out, span{start: at + from, end: at + len(line)})
		}
		at += len(line)
	}
	return out
}

// yamlComment returns where a comment begins in a line, or -1.
func yamlComment(line string) int {
	quote := byte(0)
	for i := 0; i < len(line); i++ {
		c := line[i]
		boundary := i == 0 || strings.IndexByte(" \t[{,:", line[i-1]) >= 0
		switch {
		case quote == '"' && c == '\\':
			i++
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\'') && boundary:
			quote = c
		case quote == 0 && c == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t'):
			return i
		}
	}
	return -1
}

const (
	// quotes may stand around a value, escaped if the text is in a JSON string.
	quotes = `(?:\\?["'])?`
	// gap is what stands between an option and a value of its own: a space, the
	// next item of a list in either style, or a continued line.
	gap = quotes + `(?:[ \t]+|[ \t]*,\s*|[ \t]*\r?\n[ \t]*-[ \t]+|[ \t]*\\\r?\n[ \t]*)` + quotes
	// host and member are values that are a name, and lists of name=URL.
	host   = `([A-Za-z0-9._:-]+)`
	member = `([^\s"'\\]+)`
)

// place is where names stand. Its first group is a name, or with members a list
// of name=URL.
type place struct {
	pattern *regexp.Regexp
	members bool
	etcd    bool   // only if the text is of an etcd
	kinds   []Kind // nil: any
}

var (
	namePlaces = []place{
		{pattern: option(`name`, host), etcd: true, kinds: []Kind{StaticPod, EtcdUnit}},
		{pattern: option(`initial-cluster`, member), members: true},
		{pattern: option(`hostname-override`, host)},
		{pattern: variable(`ETCD_NAME`, host)},
		{pattern: variable(`ETCD_INITIAL_CLUSTER`, member), members: true},
		{pattern: item(`ETCD_NAME|hostname-override`, host)},
		{pattern: item(`ETCD_INITIAL_CLUSTER|initial-cluster`, member), members: true},
		{pattern: key(`[ \t]*`, `initial-cluster`, member), members: true},
		{pattern: key(`[ \t]*`, `hostname-override`, host), kinds: []Kind{ClusterConfiguration}},
		{pattern: key(``, `name`, host), kinds: []Kind{EtcdConfig}},
	}
	// ofEtcd is what only etcd's command lines have.
	ofEtcd = regexp.MustCompile(`(?:^|[\s"'\[,])--?(?:initial-cluster|listen-peer-urls|initial-advertise-peer-urls|listen-client-urls|advertise-client-urls)\b`)
)

// option matches --name=value and --name value.
func option(name, value string) *regexp.Regexp {
	return regexp.MustCompile(`(?:^|[\s"'\[,])--?(?:` + name + `)(?:=` + quotes + `|` + gap + `)` + value)
}

// variable matches NAME=value, also behind Environment=.
func variable(name, value string) *regexp.Regexp {
	return regexp.MustCompile(`(?:^|[\s"'=])(?:` + name + `)=` + quotes + value)
}

// item matches the pair of name and value that environments of containers and
// kubeadm's extraArgs are made of.
func item(name, value string) *regexp.Regexp {
	return regexp.MustCompile(`["']?\bname["']?[ \t]*:[ \t]*["']?(?:` + name + `)["']?[ \t]*,?\s*["']?\bvalue["']?[ \t]*:[ \t]*` + quotes + value)
}

// key matches a key of a mapping at the beginning of a line.
func key(indent, name, value string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^` + indent + `["']?(?:` + name + `)["']?[ \t]*:[ \t]+` + quotes + value)
}

// nameEdits returns the edits of names, and the spans of all names that were looked
// at: a node may be called by an address, which is no address there.
func (m *Mapping) nameEdits(kind Kind, text string, reserved []span) (edits []edit, taken []span) {
	rename := func(start, end int) {
		if _, comment := within(reserved, start); comment {
			return
		}
		if _, twice := within(taken, start); twice {
			return
		}
		taken = append(taken, span{start: start, end: end})
		if new, ok := m.names[text[start:end]]; ok && new != text[start:end] {
			edits = append(edits, edit{start, end, new})
		}
	}
	for _, p := range namePlaces {
		if p.kinds != nil && !slices.Contains(p.kinds, kind) || p.etcd && !isEtcd(text, reserved) {
			continue
		}
		for _, at := range p.pattern.FindAllStringSubmatchIndex(text, -1) {
			if !p.members {
				if at[3] == len(text) || strings.IndexByte(" \t\r\n\"'\\,;)]}", text[at[3]]) >= 0 {
					rename(at[2], at[3])
				}
				continue
			}
			start := at[2]
			for part := range strings.SplitSeq(text[at[2]:at[3]], ",") {
				if name, _, ok := strings.Cut(part, "="); ok && name != "" {
					rename(start, start+len(name))
				}
				start += len(part) + 1
			}
		}
	}
	if kind == ClusterConfiguration {
		for _, s := range certificateNames(text) {
			if _, ok := m.names[text[s.start:s.end]]; ok {
				rename(s.start, s.end)
			}
		}
	}
	return edits, taken
}

// isEtcd says whether a text outside the comments starts an etcd.
func isEtcd(text string, reserved []span) bool {
	for _, at := range ofEtcd.FindAllStringIndex(text, -1) {
		if _, comment := within(reserved, at[1]-1); !comment {
			return true
		}
	}
	return false
}

var (
	sansKey  = regexp.MustCompile(`^([ \t]*)(?:certSANs|serverCertSANs|peerCertSANs):[ \t]*(\[[^\]\n]*\])?`)
	sansItem = regexp.MustCompile(`^([ \t]*)-[ \t]+["']?([A-Za-z0-9._-]+)["']?[ \t]*(?:#.*)?\r?\n?$`)
	sansWord = regexp.MustCompile(`[A-Za-z0-9._-]+`)
)

// certificateNames returns the items of kubeadm's lists of extra names in
// certificates.
func certificateNames(text string) (out []span) {
	at, indent := 0, -1 // of the list that the line is in
	for line := range strings.Lines(text) {
		found := sansKey.FindStringSubmatchIndex(line)
		itemAt := sansItem.FindStringSubmatchIndex(line)
		switch {
		case found != nil:
			indent = found[3]
			if found[4] >= 0 {
				for _, w := range sansWord.FindAllStringIndex(line[found[4]:found[5]], -1) {
					out = append(out, span{start: at + found[4] + w[0], end: at + found[4] + w[1]})
				}
			}
		case indent >= 0 && itemAt != nil && itemAt[3] >= indent:
			out = append(out, span{start: at + itemAt[4], end: at + itemAt[5]})
		case strings.HasPrefix(strings.TrimLeft(line, " \t"), "#"):
		default:
			indent = -1
		}
		at += len(line)
	}
	return out
}

// server is a kubeconfig's URL of the API server.
var server = regexp.MustCompile(`["']?\bserver["']?[ \t]*:[ \t]*["']?https?://([^\s"'/]+)`)

var endpointPlaces = map[Kind]*regexp.Regexp{
	ClusterConfiguration: regexp.MustCompile(`["']?\bcontrolPlaneEndpoint["']?[ \t]*:[ \t]*["']?([^\s"',}]+)`),
	Kubeconfig:           server,
	LocalKubeconfig:      server,
}

// defaultPort is what kubeadm takes for an endpoint without a port.
const defaultPort = ":6443"

// endpointEdits returns the edits where the control plane's endpoint stands.
func (m *Mapping) endpointEdits(kind Kind, text string, reserved []span) (edits []edit, taken []span) {
	pattern := endpointPlaces[kind]
	if pattern == nil {
		return nil, nil
	}
	for _, at := range pattern.FindAllStringSubmatchIndex(text, -1) {
		start, end := at[2], at[3]
		if _, comment := within(reserved, start); comment {
			continue
		}
		e, err := parseEndpoint(text[start:end])
		if err != nil && kind == ClusterConfiguration {
			e, err = parseEndpoint(bracketed(text[start:end]) + defaultPort)
		}
		new, mapped := m.endpoints[e]
		_, ofNode := m.addresses[e.address]
		if err != nil || !mapped || ofNode && kind == LocalKubeconfig {
			continue
		}
		taken = append(taken, span{start: start, end: end})
		if new != e {
			edits = append(edits, edit{start, end, new.String()})
		}
	}
	return edits, taken
}

func bracketed(host string) string {
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return "[" + host + "]"
	}
	return host
}

var identityPlaces = []struct {
	pattern *regexp.Regexp
	why     string
}{
	{regexp.MustCompile(`["']?\bimage["']?[ \t]*:[ \t]*["']?([^\s"',}]+)`), "an image is called so where it is stored"},
	{option(`service-account-issuer|api-audiences|service-account-api-audiences`, member), "tokens of service accounts name it, and would be void"},
	{item(`service-account-issuer|api-audiences`, member), "tokens of service accounts name it, and would be void"},
	{key(`[ \t]*`, `service-account-issuer|api-audiences|imageRepository`, member), "it is a name, not where something is"},
}

// identities returns spans in which an address is part of a name.
func identities(text string) (out []span) {
	for _, p := range identityPlaces {
		for _, at := range p.pattern.FindAllStringSubmatchIndex(text, -1) {
			out = append(out, span{start: at[2], end: at[3], why: p.why})
		}
	}
	return out
}
