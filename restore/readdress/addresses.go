package readdress

import (
	"net/netip"
	"strings"
)

// addressEdits finds the mapped addresses that stand as whole words outside the
// reserved spans, and those that stay inside one that tells why.
func (m *Mapping) addressEdits(text string, reserved []span) (edits []edit, kept []span) {
	for at := 0; at < len(text); {
		if !wordByte(text[at]) {
			at++
			continue
		}
		start, end := at, at
		for end < len(text) && wordByte(text[end]) {
			end++
		}
		at = end
		// The n of \n in a double-quoted string is no part of the word after it.
		if start > 0 && text[start-1] == '\\' && strings.IndexByte("nrt", text[start]) >= 0 {
			start++
		}
		address, length := leadingAddress(text[start:end])
		if length == 0 {
			continue
		}
		end = start + length
		new, mapped := m.addresses[address.Unmap()]
		if !mapped || new == address {
			continue
		}
		if s, ok := within(reserved, start); ok {
			if s.why != "" {
				kept = append(kept, span{start, end, s.why})
			}
			continue
		}
		if why := notHost(text, start, end, address); why != "" {
			kept = append(kept, span{start, end, why})
			continue
		}
		edits = append(edits, edit{start, end, spell(address, new)})
	}
	return edits, kept
}

// wordByte says whether a byte can be part of an address, or of a name or number
// that only looks like one.
func wordByte(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || strings.IndexByte(".:%_-", b) >= 0 || b >= 0x80
}

// leadingAddress reads a word as an address, an IPv4 address with a port, or
// either with a colon or full stop behind it. length is 0 if it is none of these,
// else that of the address alone.
func leadingAddress(word string) (a netip.Addr, length int) {
	forms := []string{word}
	if last := len(word) - 1; last > 0 && (word[last] == ':' || word[last] == '.') {
		forms = append(forms, word[:last])
	}
	for _, w := range forms {
		if a, err := netip.ParseAddr(w); err == nil && a.Zone() == "" {
			return a, len(w)
		}
		host, port, _ := strings.Cut(w, ":")
		if port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "" {
			continue
		}
		if a, err := netip.ParseAddr(host); err == nil {
			return a, len(host)
		}
	}
	return a, 0
}

// notHost says why an address with a slash beside it is no host's: it is part of
// a path, of an image or of a range.
func notHost(text string, start, end int, a netip.Addr) string {
	before := strings.TrimSuffix(text[:start], "[")
	inURL := strings.HasSuffix(before, "//") || strings.HasSuffix(before, "@")
	switch {
	case inURL:
		return ""
	case strings.HasSuffix(before, "/"):
		return "it is part of a path"
	}
	rest := text[end:]
	if strings.HasPrefix(rest, ":") {
		rest = strings.TrimLeft(rest[1:], "0123456789")
	}
	if !strings.HasPrefix(rest, "/") {
		return ""
	}
	digits := rest[1:]
	digits = digits[:len(digits)-len(strings.TrimLeft(digits, "0123456789"))]
	full := "32"
	if !a.Unmap().Is4() {
		full = "128"
	}
	if digits == full && !strings.HasPrefix(rest[1+len(digits):], "/") {
		return "" // a range of this one address
	}
	return "a slash follows: it is a range, a path or an image"
}

// spell writes a new address in the form of the old one.
func spell(old, new netip.Addr) string {
	if old.Is4In6() {
		return netip.AddrFrom16(new.As16()).String()
	}
	return new.String()
}
