package readdress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// ErrMapping says that a mapping can't be meant as it is.
var ErrMapping = errors.New("bad mapping")

// Options is a mapping in words, each "old=new".
type Options struct {
	Names     []string // nodes' names: cp1=cp4
	Addresses []string // nodes' addresses: 10.0.0.11=10.0.0.44
	Endpoints []string // the control plane's: old.example:6443=new.example:6443
}

// Mapping says what is called otherwise. The zero value maps nothing.
type Mapping struct {
	names     map[string]string
	addresses map[netip.Addr]netip.Addr // without zones, IPv4 never as IPv6
	endpoints map[endpoint]endpoint
	words     Options
}

// Pair is one "old=new" of a mapping.
type Pair struct {
	What string // "rename", "address" or "endpoint"
	Word string // as it was given
	Only *Mapping
}

func (p Pair) String() string { return p.What + " " + p.Word }

// Pairs takes a mapping apart, to tell what each pair does by itself.
func (m *Mapping) Pairs() (pairs []Pair) {
	for _, list := range []struct {
		what  string
		words []string
		one   func(word []string) Options
	}{
		{"rename", m.words.Names, func(w []string) Options { return Options{Names: w} }},
		{"address", m.words.Addresses, func(w []string) Options { return Options{Addresses: w} }},
		{"endpoint", m.words.Endpoints, func(w []string) Options { return Options{Endpoints: w} }},
	} {
		for _, word := range list.words {
			only, err := New(list.one([]string{word}))
			if err == nil { // it was good among others
				pairs = append(pairs, Pair{list.what, word, only})
			}
		}
	}
	return pairs
}

// endpoint is a host, an address or a DNS name in lower case, and a port.
type endpoint struct {
	address netip.Addr // invalid: the host is a name
	name    string
	port    uint16
}

// New checks a mapping. Errors wrap ErrMapping: a word that is not old=new, the
// same source or the same target twice, names that are no DNS-1123 subdomains,
// addresses that can't be a node's (unspecified, loopback, multicast, with a zone)
// or change from IPv4 to IPv6 or back, endpoints without a port.
func New(o Options) (*Mapping, error) {
	m := &Mapping{names: map[string]string{}, addresses: map[netip.Addr]netip.Addr{}, endpoints: map[endpoint]endpoint{}, words: o}
	if err := pairs("rename", o.Names, parseName, m.names, true); err != nil {
		return nil, err
	}
	if err := pairs("address", o.Addresses, parseAddress, m.addresses, true); err != nil {
		return nil, err
	}
	for from, to := range m.addresses {
		if from.Is4() != to.Is4() {
			return nil, fmt.Errorf("address %s=%s: %w: one is IPv4 and the other IPv6; a cluster's ranges are of one family, so give an address of the same", from, to, ErrMapping)
		}
	}
	// Two old endpoints may well become one.
	if err := pairs("endpoint", o.Endpoints, parseEndpoint, m.endpoints, false); err != nil {
		return nil, err
	}
	return m, nil
}

// pairs reads words of the form old=new into a map.
func pairs[T comparable](what string, words []string, parse func(string) (T, error), into map[T]T, oneToOne bool) error {
	targets := map[T]string{}
	for _, word := range words {
		old, new, ok := strings.Cut(word, "=")
		if !ok || strings.Contains(new, "=") {
			return fmt.Errorf("%s %q: %w: give it as old=new", what, word, ErrMapping)
		}
		from, err := parse(old)
		if err != nil {
			return fmt.Errorf("%s %q: %w: the old one: %w", what, word, ErrMapping, err)
		}
		to, err := parse(new)
		if err != nil {
			return fmt.Errorf("%s %q: %w: the new one: %w", what, word, ErrMapping, err)
		}
		if _, twice := into[from]; twice {
			return fmt.Errorf("%s %q: %w: %s has got a new one already; give it once", what, word, ErrMapping, old)
		}
		if other, twice := targets[to]; twice && oneToOne {
			return fmt.Errorf("%s %q: %w: %s is the new one of %q too; two nodes can't share it", what, word, ErrMapping, new, other)
		}
		into[from], targets[to] = to, word
	}
	return nil
}

// subdomain is DNS-1123's, which the names of nodes must be
// (k8s.io/apimachinery/pkg/util/validation, IsDNS1123Subdomain).
var subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func parseName(text string) (string, error) {
	if len(text) > 253 || !subdomain.MatchString(text) {
		return "", fmt.Errorf("%q is no node's name: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit, at most 253", text)
	}
	return text, nil
}

func parseAddress(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		return a, fmt.Errorf("%q is no IP address", text)
	}
	a = a.Unmap()
	switch {
	case a.IsUnspecified():
		return a, fmt.Errorf("%s stands for every address", text)
	case a.IsLoopback():
		return a, fmt.Errorf("%s is every machine's own", text)
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, fmt.Errorf("%s is a group's address", text)
	case a.Zone() != "":
		return a, fmt.Errorf("%s has a zone, which no other machine knows", text)
	}
	return a, nil
}

func parseEndpoint(text string) (endpoint, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return endpoint{}, fmt.Errorf("%q is not host:port", text)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return endpoint{}, fmt.Errorf("%q has no port from 1 to 65535", text)
	}
	out := endpoint{port: uint16(number)}
	if a, err := netip.ParseAddr(host); err == nil {
		if a = a.Unmap(); a.IsUnspecified() || a.IsMulticast() {
			return endpoint{}, fmt.Errorf("nobody can dial %s", text)
		}
		out.address = a
		return out, nil
	}
	out.name, err = parseName(strings.ToLower(host))
	if err != nil {
		return endpoint{}, fmt.Errorf("%q has no host: %w", text, err)
	}
	return out, nil
}

func (e endpoint) String() string {
	host := e.name
	if e.address.IsValid() {
		host = e.address.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(e.port)))
}

// Empty reports whether the mapping maps nothing.
func (m *Mapping) Empty() bool { return len(m.names)+len(m.addresses)+len(m.endpoints) == 0 }

// Name returns a node's new name, or the old one if it is not mapped.
func (m *Mapping) Name(old string) string {
	if new, ok := m.names[old]; ok {
		return new
	}
	return old
}

// Address returns a node's new address, or the old one if it is not mapped.
func (m *Mapping) Address(old netip.Addr) netip.Addr {
	if new, ok := m.addresses[old.Unmap()]; ok {
		return new
	}
	return old
}

// Endpoint returns what a control plane's endpoint, host:port, becomes: what the
// endpoints say of it, else what its host becomes if that is an address.
func (m *Mapping) Endpoint(old string) string {
	e, err := parseEndpoint(old)
	if err != nil {
		return old
	}
	if new, ok := m.endpoints[e]; ok {
		return new.String()
	}
	if new, ok := m.addresses[e.address]; ok {
		e.address = new
		return e.String()
	}
	return old
}
