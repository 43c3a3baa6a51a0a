package manifest

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
)

// maxSequence keeps sequences exact in every JSON reader (2^53-1) and leaves
// room for a next one for ever.
const maxSequence = 1<<53 - 1

// Check reports whether m is well formed by the rules of docs/format.md: what
// can be known from one manifest alone. Whether it fits its chain is the
// repository's question. The error wraps ErrMalformed.
func (m *Manifest) Check() error {
	for _, check := range []func() error{m.checkValues, m.checkIdentity, m.checkLinks, m.checkBody, m.checkObjects, m.checkLists} {
		if err := check(); err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
	return nil
}

// checkValues applies the rules that hold for every value of a type: strings
// are one printable line, numbers are not negative, times are UTC in whole
// milliseconds. Walking by reflection leaves no field out.
func (m *Manifest) checkValues() error { return checkValue(reflect.ValueOf(m).Elem()) }

// valueError says in which field a value breaks the rules. The path is put
// together on the way back: an index of 100,000 entries has a million values.
type valueError struct {
	path string
	err  error
}

func (e *valueError) Error() string { return e.path + ": " + e.err.Error() }
func (e *valueError) Unwrap() error { return e.err }

var timeType = reflect.TypeFor[time.Time]()

func checkValue(v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		return checkString(v.String())
	case reflect.Int, reflect.Int64:
		if v.Int() < 0 {
			return fmt.Errorf("negative: %d", v.Int())
		}
	case reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) || math.Signbit(f) {
			return fmt.Errorf("%v is not a finite number of 0 or more", f)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return checkValue(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			if err := checkValue(v.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Struct:
		if v.Type() == timeType {
			return checkTime(v.Interface().(time.Time))
		}
		for i := range v.NumField() {
			err := checkValue(v.Field(i))
			if err == nil {
				continue
			}
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			if inner, ok := err.(*valueError); ok {
				inner.path = name + "." + inner.path
				return inner
			}
			return &valueError{name, err}
		}
	}
	return nil
}

func checkTime(t time.Time) error {
	switch {
	case t.Location() != time.UTC:
		return fmt.Errorf("%s is not UTC", t)
	case t.Nanosecond()%int(time.Millisecond) != 0:
		return fmt.Errorf("%s is not in whole milliseconds", t.Format(time.RFC3339Nano))
	case t.Year() < 1970 || t.Year() > 9999:
		return fmt.Errorf("%s is outside the years 1970 to 9999", t.Format(time.RFC3339))
	}
	return nil
}

func (m *Manifest) checkIdentity() error {
	if m.Format != FormatVersion {
		return fmt.Errorf("format %d, want %d", m.Format, FormatVersion)
	}
	if err := CheckCluster(m.Cluster); err != nil {
		return err
	}
	if err := m.Chain.Check(); err != nil {
		return err
	}
	if !slices.Contains(kindsOf[m.Chain.family()], m.Kind) {
		return fmt.Errorf("chain %s holds no manifests of kind %q", m.Chain, m.Kind)
	}
	if err := m.ID.Check(); err != nil {
		return err
	}
	if m.Writer.Node == "" || m.Writer.Version == "" {
		return fmt.Errorf("writer without node or version")
	}
	if m.NextExpectedBy != nil && m.NextExpectedBy.Before(m.Created) {
		return fmt.Errorf("nextExpectedBy is before created")
	}
	return nil
}

// checkLinks: what precedes sequence n is either the manifest that previous
// hashes, at n-1, or skipped objects directly below n and then that manifest.
func (m *Manifest) checkLinks() error {
	if m.Epoch < 1 || m.Epoch > maxSequence {
		return fmt.Errorf("epoch %d, want 1 or more", m.Epoch)
	}
	if m.Sequence < 1 || m.Sequence > maxSequence {
		return fmt.Errorf("sequence %d is outside 1 to %d", uint64(m.Sequence), uint64(maxSequence))
	}
	first := m.Sequence - Sequence(len(m.Skipped)) // the lowest skipped, if any is
	if uint64(len(m.Skipped)) >= uint64(m.Sequence) {
		return fmt.Errorf("sequence %d skips %d objects", uint64(m.Sequence), len(m.Skipped))
	}
	for i, s := range m.Skipped {
		if s.Sequence != first+Sequence(i) {
			return fmt.Errorf("skipped sequences do not lead up to %d one by one", uint64(m.Sequence))
		}
		if s.SHA256 == (Hash{}) {
			return fmt.Errorf("skipped sequence %d without its hash", uint64(s.Sequence))
		}
	}
	if isFirst := first == 1; isFirst != (m.Previous == Hash{}) {
		return fmt.Errorf("sequence %d with %d skipped and previous %q: only a chain's first manifest has none",
			uint64(m.Sequence), len(m.Skipped), m.Previous)
	}
	return nil
}

func (m *Manifest) checkBody() error {
	bodies := []struct {
		kind  Kind
		name  string
		there bool
	}{
		{KindFull, "etcd", m.Etcd != nil},
		{KindFiles, "host", m.Host != nil},
		{KindSegment, "span", m.Span != nil},
		{KindPrune, "prune", m.Prune != nil},
		{KindProof, "proof", m.Proof != nil},
		{KindRekey, "rekey", m.Rekey != nil},
		{KindImages, "images", m.Images != nil},
		{KindBlob, "blob", m.Blob != nil},
	}
	for _, b := range bodies {
		if b.there != (b.kind == m.Kind) {
			return fmt.Errorf("kind %s: field %q is for kind %s, which needs it", m.Kind, b.name, b.kind)
		}
	}
	if m.Kind != KindFull && (m.Imported != "" || len(m.Unproved) > 0) {
		return fmt.Errorf("kind %s: imported and unproved are for kind full", m.Kind)
	}
	if m.Copied != nil {
		if err := m.checkCopied(); err != nil {
			return err
		}
	}
	switch m.Kind {
	case KindFull:
		if m.Etcd.Revision < 1 {
			return fmt.Errorf("etcd.revision 0: etcd begins at 1")
		}
	case KindFiles:
		if m.Host.Node != strings.TrimPrefix(string(m.Chain), "hosts/") {
			return fmt.Errorf("host.node %q in chain %s", m.Host.Node, m.Chain)
		}
	case KindSegment:
		return m.Span.check()
	case KindPrune:
		return m.checkPrune()
	case KindProof:
		if m.Proof.Revision < 1 || m.Proof.How == "" {
			return fmt.Errorf("proof without revision or how")
		}
		return m.Proof.Of.Check()
	case KindRekey:
		return m.checkRekey()
	case KindImages:
		return m.Images.check()
	case KindBlob:
		if m.Blob.SHA256 == (Hash{}) || len(m.Recipients) == 0 {
			return fmt.Errorf("blob without SHA-256 or recipients")
		}
	}
	return nil
}

// checkCopied: a copy keeps its chain's name, and only what a restore may need
// is copied. What a prune or a rekey says is of the places in its own chain.
func (m *Manifest) checkCopied() error {
	c := m.Copied
	switch {
	case m.Kind == KindPrune || m.Kind == KindRekey || m.Kind == KindDrill:
		return fmt.Errorf("kind %s is not copied", m.Kind)
	case c.Chain != m.Chain:
		return fmt.Errorf("copied: from chain %s to %s", c.Chain, m.Chain)
	case c.Store == "" || c.Sequence < 1 || c.Sequence > maxSequence || c.Hash == (Hash{}):
		return fmt.Errorf("copied: without store, sequence or hash")
	}
	return nil
}

// checkRekey: what is sealed anew names for whom, and is no rekey of itself.
func (m *Manifest) checkRekey() error {
	switch {
	case m.Rekey.Of == m.ID:
		return fmt.Errorf("rekey.of is this manifest itself")
	case len(m.Recipients) == 0:
		return fmt.Errorf("rekey without recipients")
	case m.NextExpectedBy != nil || len(m.Degraded) > 0:
		return fmt.Errorf("rekey: nextExpectedBy and degraded are the backup's")
	}
	return m.Rekey.Of.Check()
}

func (m *Manifest) checkPrune() error {
	p := m.Prune
	if p.Base < 1 || p.Base > m.Sequence {
		return fmt.Errorf("prune.base %d is not in 1 to %d", uint64(p.Base), uint64(m.Sequence))
	}
	if err := m.checkEntries("prune.manifests", p.Manifests); err != nil {
		return err
	}
	seen := make(map[string]bool, len(p.Objects))
	for _, name := range p.Objects {
		rest, ok := strings.CutPrefix(name, string(m.Chain)+"/data/")
		id, file, _ := strings.Cut(rest, "/")
		if !ok || ID(id).Check() != nil || checkElement("object", file) != nil {
			return fmt.Errorf("prune.objects: %q is not a data object of chain %s", name, m.Chain)
		}
		if seen[name] {
			return fmt.Errorf("prune.objects: %q twice", name)
		}
		seen[name] = true
	}
	for _, id := range p.Drop {
		if err := id.Check(); err != nil {
			return fmt.Errorf("prune.drop: %w", err)
		}
	}
	return nil
}

// mainRole is the role of the one object that a kind must have.
var mainRole = map[Kind]Role{KindFull: RoleSnapshot, KindSegment: RoleEvents, KindFiles: RoleFiles, KindBlob: RoleBlob}

// rekeyRole is the role of the one object of a rekey, by its chain's family.
// Only fulls, files and blobs can be sealed anew.
var rekeyRole = map[string]Role{"etcd": RoleSnapshot, "hosts": RoleFiles, "images": RoleBlob}

func (m *Manifest) checkObjects() error {
	role, sealed := mainRole[m.Kind]
	if m.Kind == KindRekey {
		role, sealed = rekeyRole[m.Chain.family()]
	}
	if !sealed && m.Kind != KindDrill && len(m.Objects) > 0 {
		return fmt.Errorf("kind %s has no objects", m.Kind)
	}
	if sealed && len(m.Objects) != 1 {
		return fmt.Errorf("kind %s with %d objects, want one of role %s", m.Kind, len(m.Objects), role)
	}
	seen := make(map[string]bool, len(m.Objects))
	for _, o := range m.Objects {
		file, ok := strings.CutPrefix(o.Name, m.Chain.DataFolder(m.ID))
		switch {
		case !ok || checkElement("object", file) != nil:
			return fmt.Errorf("object %q does not lie in %s", o.Name, m.Chain.DataFolder(m.ID))
		case seen[o.Name]:
			return fmt.Errorf("object %q twice", o.Name)
		case sealed && o.Role != role:
			return fmt.Errorf("object %q of role %q in kind %s", o.Name, o.Role, m.Kind)
		case o.Role == "":
			return fmt.Errorf("object %q without a role", o.Name)
		case o.Size < 1 || o.SHA256 == (Hash{}):
			return fmt.Errorf("object %q without size or hash", o.Name)
		}
		seen[o.Name] = true
	}
	return nil
}

func (m *Manifest) checkLists() error {
	for _, h := range m.Heads {
		if err := h.Chain.Check(); err != nil {
			return fmt.Errorf("heads: %w", err)
		}
		if h.Store == "" || h.Sequence < 1 || h.Sequence > maxSequence || h.Hash == (Hash{}) {
			return fmt.Errorf("heads: chain %s without store, sequence or hash", h.Chain)
		}
	}
	for name, list := range map[string][]string{"recipients": m.Recipients, "degraded": m.Degraded, "unproved": m.Unproved} {
		if slices.Contains(list, "") {
			return fmt.Errorf("%s: an empty line", name)
		}
	}
	if len(m.Index) > 0 && (m.Kind == KindProof || m.Kind == KindSegment || m.Kind == KindRekey) {
		return fmt.Errorf("index: kind %s has none", m.Kind) // the least of keys must not say what is live
	}
	if err := m.checkRecent(); err != nil {
		return err
	}
	return m.checkEntries("index", m.Index)
}

// checkEntries accepts earlier manifests of this chain in ascending order.
func (m *Manifest) checkEntries(what string, entries []Entry) error {
	last := Sequence(0)
	for _, e := range entries {
		switch {
		case e.Sequence <= last || e.Sequence >= m.Sequence:
			return fmt.Errorf("%s: sequence %d is not between %d and %d", what, uint64(e.Sequence), uint64(last), uint64(m.Sequence))
		case e.Hash == (Hash{}):
			return fmt.Errorf("%s: sequence %d without its hash", what, uint64(e.Sequence))
		case !slices.Contains(kindsOf[m.Chain.family()], e.Kind):
			return fmt.Errorf("%s: sequence %d of kind %q", what, uint64(e.Sequence), e.Kind)
		}
		if err := e.ID.Check(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if e.Reach != nil {
			if e.Kind != KindSegment {
				return fmt.Errorf("%s: sequence %d of kind %s with a segment's reach", what, uint64(e.Sequence), e.Kind)
			}
			if err := e.Reach.check(m.Epoch); err != nil {
				return fmt.Errorf("%s: sequence %d: %w", what, uint64(e.Sequence), err)
			}
		}
		last = e.Sequence
	}
	return nil
}
