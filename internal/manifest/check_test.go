package manifest

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func files() *Manifest {
	m := full()
	m.Chain, m.Kind, m.Etcd, m.Unproved = "hosts/cp1", KindFiles, nil, nil
	m.Host = &Host{Node: "cp1", Files: 3, Bytes: 100}
	m.Objects = []Object{{Name: "hosts/cp1/data/" + string(m.ID) + "/files.tar.zst.age", Role: RoleFiles, Size: 1, SHA256: Hash{1}}}
	m.Index = nil
	return m
}

func segment() *Manifest {
	m := full()
	m.Kind, m.Etcd = KindSegment, nil
	m.Span = &Span{First: 5, Last: 9, FirstTime: noon, LastTime: noon, Events: 5, Compactions: []Revision{6}}
	m.Objects[0].Name = "etcd/main/data/" + string(m.ID) + "/events.zst.age"
	m.Objects[0].Role = RoleEvents
	m.Index = nil
	return m
}

// listing is a segment that lists those before it, with every field filled in.
func listing() *Manifest {
	m := segment()
	m.Epoch = 2
	m.Span = &Span{
		ClusterID: 1, MemberID: 2, First: 5, Last: 9, FirstTime: noon, LastTime: noon.Add(time.Minute), Events: 7, RollUp: true,
		Compactions: []Revision{3, 6}, Hashes: []HashKV{{Revision: 6, CompactRevision: 3, HashKV: 7, Members: []EtcdID{1, 2}}},
		Mark: "01234567:0123456789abcdef0123456789abcdef",
	}
	m.Span.SetMoments([]Moment{{noon.Add(time.Second), 4, 5}, {noon.Add(2 * time.Second), 6, 9}, {noon.Add(time.Hour), 9, 12}})
	m.Recent = []Entry{
		{Sequence: 3, Hash: Hash{1}, Kind: KindSegment, ID: id(3), Reach: &Reach{Epoch: 1, First: 2, Last: 3, LastTime: noon}},
		{Sequence: 5, Hash: Hash{2}, Kind: KindSegment, ID: id(5), Reach: &Reach{Epoch: 2, First: 4, Last: 3, LastTime: noon, RollUp: true}},
	}
	return m
}

// indexing is a full whose index lists a segment.
func indexing() *Manifest {
	m := full()
	m.Etcd.Mark = "01234567:0123456789abcdef0123456789abcdef"
	m.Index = append(m.Index, Entry{
		Sequence: m.Sequence - 1, Hash: Hash{7}, Kind: KindSegment, ID: id(9), Reach: &Reach{Epoch: 1, First: 2, Last: 3, LastTime: noon},
	})
	return m
}

func prune() *Manifest {
	m := full()
	m.Kind, m.Etcd, m.Objects = KindPrune, nil, nil
	m.Prune = &Prune{
		Base: 30, Manifests: []Entry{{Sequence: 3, Hash: Hash{1}, Kind: KindFull, ID: id(3)}},
		Objects: []string{"etcd/main/data/" + string(id(3)) + "/snapshot.db.zst.age"}, Drop: []ID{id(4)},
	}
	return m
}

func drill() *Manifest {
	m := small()
	m.Chain, m.Kind, m.Proof = "drills", KindDrill, nil
	return m
}

func rekey() *Manifest {
	m := full()
	m.Kind, m.Etcd, m.Index, m.NextExpectedBy, m.Degraded = KindRekey, nil, nil, nil, nil
	m.Rekey = &Rekey{Of: id(6)}
	return m
}

func rekeyOfFiles() *Manifest {
	m := files()
	m.Kind, m.Host, m.NextExpectedBy, m.Degraded = KindRekey, nil, nil, nil
	m.Rekey = &Rekey{Of: id(6)}
	return m
}

func copied() *Manifest {
	m := full()
	m.Copied = &Head{Store: "s3://bucket/a", Chain: "etcd/main", Sequence: 99, Hash: Hash{9}}
	return m
}

func TestEveryKindIsWellFormed(t *testing.T) {
	first := full()
	first.Sequence, first.Previous, first.Skipped, first.Index = 1, Hash{}, nil, nil
	afterJunk := full()
	afterJunk.Sequence, afterJunk.Previous, afterJunk.Index = 3, Hash{}, nil
	afterJunk.Skipped = []Skipped{{1, Hash{1}}, {2, Hash{2}}}
	s := signer(t, "cp1", 1)
	for name, m := range map[string]*Manifest{
		"full": full(), "files": files(), "segment": segment(), "prune": prune(), "proof": small(), "drill": drill(),
		"rekey": rekey(), "rekey of files": rekeyOfFiles(), "copy": copied(),
		"segment with a list": listing(), "index of segments": indexing(),
		"a chain's first": first, "a chain's first after junk": afterJunk,
	} {
		if _, err := Open(sign(t, m, s), trusting(s)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		base func() *Manifest
		edit func(*Manifest)
	}{
		{"a proof with an index", small, func(m *Manifest) { m.Index = full().Index }},
		{"a segment with an index", segment, func(m *Manifest) { m.Index = full().Index }},
		{"no format", full, func(m *Manifest) { m.Format = 0 }},
		{"a cluster without its id", full, func(m *Manifest) { m.Cluster = "prod" }},
		{"a cluster that leaves its folder", full, func(m *Manifest) { m.Cluster = "../x-aaaaaaaa" }},
		{"a hidden cluster", full, func(m *Manifest) { m.Cluster = ".x-aaaaaaaa" }},
		{"no chain", full, func(m *Manifest) { m.Chain = "" }},
		{"a chain of no family", full, func(m *Manifest) { m.Chain = "other/main" }},
		{"a chain's family alone", full, func(m *Manifest) { m.Chain = "etcd" }},
		{"a chain that is too deep", full, func(m *Manifest) { m.Chain = "etcd/a/b" }},
		{"a chain that climbs", full, func(m *Manifest) { m.Chain = "etcd/.." }},
		{"a chain of a reserved name", full, func(m *Manifest) { m.Chain = "etcd/manifests" }},
		{"a kind in another family's chain", files, func(m *Manifest) { m.Chain = "etcd/main" }},
		{"no id", full, func(m *Manifest) { m.ID = "" }},
		{"an id of other letters", full, func(m *Manifest) { m.ID = ID(strings.Repeat("A", 26)) }},
		{"no epoch", full, func(m *Manifest) { m.Epoch = 0 }},
		{"sequence 0", full, func(m *Manifest) { m.Sequence = 0; m.Skipped = nil }},
		{"a sequence that no JSON reader keeps", full, func(m *Manifest) { m.Sequence = 1 << 53; m.Skipped = nil }},
		{"no previous", full, func(m *Manifest) { m.Previous = Hash{} }},
		{"a previous of the first", full, func(m *Manifest) { m.Sequence = 1; m.Skipped, m.Index = nil, nil }},
		{"a skipped sequence apart", full, func(m *Manifest) { m.Skipped[0].Sequence = 40 }},
		{"a skipped sequence twice", full, func(m *Manifest) { m.Skipped = append(m.Skipped, m.Skipped[0]) }},
		{"a skipped object without hash", full, func(m *Manifest) { m.Skipped[0].SHA256 = Hash{} }},
		{"more skipped than there can be", full, func(m *Manifest) { m.Skipped = make([]Skipped, 50) }},
		{"no time", full, func(m *Manifest) { m.Created = time.Time{} }},
		{"a time of a zone", full, func(m *Manifest) { m.Created = m.Created.In(time.FixedZone("", 3600)) }},
		{"a time of microseconds", full, func(m *Manifest) { m.Created = m.Created.Add(time.Microsecond) }},
		{"a time beyond four digits", full, func(m *Manifest) { m.Created = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }},
		{"a retention of microseconds", full, func(m *Manifest) { u := m.Created.Add(time.Microsecond); m.RetainUntil = &u }},
		{"expected before it was created", full, func(m *Manifest) { u := m.Created.Add(-time.Hour); m.NextExpectedBy = &u }},
		{"no writer", full, func(m *Manifest) { m.Writer = Writer{} }},
		{"a head without its hash", full, func(m *Manifest) { m.Heads[0].Hash = Hash{} }},
		{"a head of no chain", full, func(m *Manifest) { m.Heads[0].Chain = "x" }},
		{"a full without etcd", full, func(m *Manifest) { m.Etcd = nil }},
		{"a full with a span", full, func(m *Manifest) { m.Span = &Span{First: 1, Last: 1, FirstTime: noon, LastTime: noon} }},
		{"a full without a revision", full, func(m *Manifest) { m.Etcd.Revision = 0 }},
		{"a negative size", full, func(m *Manifest) { m.Etcd.DBBytes = -1 }},
		{"a rate that is no number", full, func(m *Manifest) { m.Etcd.Rate = math.NaN() }},
		{"a rate without end", full, func(m *Manifest) { m.Etcd.Rate = math.Inf(1) }},
		{"a rate of minus zero", full, func(m *Manifest) { m.Etcd.Rate = math.Copysign(0, -1) }},
		{"files of another node", files, func(m *Manifest) { m.Host.Node = "cp2" }},
		{"unproved files", files, func(m *Manifest) { m.Unproved = []string{"x"} }},
		{"an imported prune", prune, func(m *Manifest) { m.Imported = "x" }},
		{"a span backwards", segment, func(m *Manifest) { m.Span.Last = 4 }},
		{"a span of revision 0", segment, func(m *Manifest) { m.Span.First = 0 }},
		{"a span without end", segment, func(m *Manifest) { m.Span.Last, m.Span.Events = math.MaxInt64, math.MaxInt64 }},
		{"a span that ends before it begins", segment, func(m *Manifest) { m.Span.LastTime = m.Span.FirstTime.Add(-time.Millisecond) }},
		{"a span of microseconds", segment, func(m *Manifest) { m.Span.LastTime = m.Span.LastTime.Add(time.Microsecond) }},
		{"a span of another zone", segment, func(m *Manifest) { m.Span.FirstTime = m.Span.FirstTime.In(time.FixedZone("", 60)) }},
		{"a span with a revision without events", segment, func(m *Manifest) { m.Span.Events = 4 }},
		{"an empty span with events", segment, func(m *Manifest) { m.Span.Last = 4; m.Span.Events = 1 }},
		{"moments backwards", listing, func(m *Manifest) { m.Span.Times[1][0] = -1 }},
		{"moments whose revision falls", listing, func(m *Manifest) { m.Span.Times[1][1] = -1 }},
		{"moments whose limit falls", listing, func(m *Manifest) { m.Span.Times[1][2] = -1 }},
		{"a moment beyond its range", listing, func(m *Manifest) { m.Span.Times[1][2] = maxDelta + 1 }},
		{"moments beyond the last year", listing, func(m *Manifest) {
			m.Span.Times = nil
			for range 300 {
				m.Span.Times = append(m.Span.Times, TimeDelta{maxDelta, 0, 0})
			}
		}},
		{"compactions backwards", listing, func(m *Manifest) { m.Span.Compactions = []Revision{6, 3} }},
		{"a compaction twice", listing, func(m *Manifest) { m.Span.Compactions = []Revision{6, 6} }},
		{"a compaction at 0", listing, func(m *Manifest) { m.Span.Compactions = []Revision{0} }},
		{"a hash of no revision", listing, func(m *Manifest) { m.Span.Hashes[0].Revision = 0 }},
		{"a hash below its compaction", listing, func(m *Manifest) { m.Span.Hashes[0].CompactRevision = 7 }},
		{"a hash of nobody", listing, func(m *Manifest) { m.Span.Hashes[0].Members = nil }},
		{"a mark of two lines", listing, func(m *Manifest) { m.Span.Mark = "a\nb" }},
		{"a list in a full", full, func(m *Manifest) { m.Recent = listing().Recent }},
		{"a list in a prune", prune, func(m *Manifest) { m.Recent = listing().Recent }},
		{"a list of a full", listing, func(m *Manifest) { m.Recent[0].Kind, m.Recent[0].Reach = KindFull, nil }},
		{"a list of a full as a segment", listing, func(m *Manifest) { m.Recent[0].Kind = KindFull }},
		{"a list that does not say what it lists", listing, func(m *Manifest) { m.Recent[1].Reach = nil }},
		{"a list out of order", listing, func(m *Manifest) { m.Recent[1].Sequence = 3 }},
		{"a list of what comes later", listing, func(m *Manifest) { m.Recent[1].Sequence = m.Sequence }},
		{"a list without a hash", listing, func(m *Manifest) { m.Recent[1].Hash = Hash{} }},
		{"a list of an epoch to come", listing, func(m *Manifest) { m.Recent[1].Reach.Epoch = 3 }},
		{"a list of no epoch", listing, func(m *Manifest) { m.Recent[1].Reach.Epoch = 0 }},
		{"a list of a span backwards", listing, func(m *Manifest) { m.Recent[1].Reach.First = 5 }},
		{"a list of a span without end", listing, func(m *Manifest) { m.Recent[0].Reach.Last = math.MaxInt64 }},
		{"a list with microseconds", listing, func(m *Manifest) { m.Recent[0].Reach.LastTime = noon.Add(time.Microsecond) }},
		{"an index that gives a full a reach", indexing, func(m *Manifest) { m.Index[0].Reach = m.Index[len(m.Index)-1].Reach }},
		{"an index with a bad reach", indexing, func(m *Manifest) { m.Index[len(m.Index)-1].Reach.First = 0 }},
		{"a prune that gives a full a reach", prune, func(m *Manifest) { m.Prune.Manifests[0].Reach = &Reach{Epoch: 1, First: 1, Last: 1, LastTime: noon} }},
		{"a prune above itself", prune, func(m *Manifest) { m.Prune.Base = 43 }},
		{"a prune of itself", prune, func(m *Manifest) { m.Prune.Manifests[0].Sequence = 42 }},
		{"a prune with an object", prune, func(m *Manifest) { m.Objects = full().Objects }},
		{"a prune of another chain's object", prune, func(m *Manifest) { m.Prune.Objects[0] = "etcd/events/data/" + string(id(3)) + "/x" }},
		{"a prune of a manifest as an object", prune, func(m *Manifest) { m.Prune.Objects[0] = "etcd/main/manifests/00000000000000000001" }},
		{"a prune of one object twice", prune, func(m *Manifest) { m.Prune.Objects = append(m.Prune.Objects, m.Prune.Objects[0]) }},
		{"a drop of no id", prune, func(m *Manifest) { m.Prune.Drop[0] = "x" }},
		{"a proof of nothing", small, func(m *Manifest) { m.Proof.Of = "" }},
		{"a rekey of nothing", rekey, func(m *Manifest) { m.Rekey.Of = "" }},
		{"a rekey of itself", rekey, func(m *Manifest) { m.Rekey.Of = m.ID }},
		{"a rekey without its body", rekey, func(m *Manifest) { m.Rekey = nil }},
		{"a full with a rekey's body", full, func(m *Manifest) { m.Rekey = &Rekey{Of: id(6)} }},
		{"a rekey for nobody", rekey, func(m *Manifest) { m.Recipients = nil }},
		{"a rekey without an object", rekey, func(m *Manifest) { m.Objects = nil }},
		{"a rekey of events", rekey, func(m *Manifest) { m.Objects[0].Role = RoleEvents }},
		{"a rekey of files in a chain of etcd", rekey, func(m *Manifest) { m.Objects[0].Role = RoleFiles }},
		{"a rekey that lies where the backup does", rekey, func(m *Manifest) { m.Objects[0].Name = "etcd/main/data/" + string(id(6)) + "/snapshot.db.zst.age" }},
		{"a rekey with an index", rekey, func(m *Manifest) { m.Index = full().Index }},
		{"a rekey of a drill", drill, func(m *Manifest) { m.Kind, m.Rekey = KindRekey, &Rekey{Of: id(6)} }},
		{"a rekey that is waited for", rekey, func(m *Manifest) { u := m.Created; m.NextExpectedBy = &u }},
		{"a degraded rekey", rekey, func(m *Manifest) { m.Degraded = []string{"x"} }},
		{"an imported rekey", rekey, func(m *Manifest) { m.Imported = "x" }},
		{"a copy of no store", copied, func(m *Manifest) { m.Copied.Store = "" }},
		{"a copy of no place", copied, func(m *Manifest) { m.Copied.Sequence = 0 }},
		{"a copy without the hash of what it copies", copied, func(m *Manifest) { m.Copied.Hash = Hash{} }},
		{"a copy of another chain", copied, func(m *Manifest) { m.Copied.Chain = "etcd/events" }},
		{"a copied prune", prune, func(m *Manifest) { m.Copied = copied().Copied }},
		{"a copied rekey", rekey, func(m *Manifest) { m.Copied = copied().Copied }},
		{"a copied drill", drill, func(m *Manifest) { m.Copied = copied().Copied; m.Copied.Chain = "drills" }},
		{"a full without an object", full, func(m *Manifest) { m.Objects = nil }},
		{"a full of files", full, func(m *Manifest) { m.Objects[0].Role = RoleFiles }},
		{"an object of another backup", full, func(m *Manifest) { m.Objects[0].Name = "etcd/main/data/" + string(id(8)) + "/snapshot.db.zst.age" }},
		{"an object of another chain", full, func(m *Manifest) { m.Objects[0].Name = strings.Replace(m.Objects[0].Name, "main", "events", 1) }},
		{"an object that climbs", full, func(m *Manifest) { m.Objects[0].Name = m.Chain.DataFolder(m.ID) + ".." }},
		{"an object that is the folder", full, func(m *Manifest) { m.Objects[0].Name = m.Chain.DataFolder(m.ID) }},
		{"an object deeper down", full, func(m *Manifest) { m.Objects[0].Name = m.Chain.DataFolder(m.ID) + "a/b" }},
		{"an object without hash", full, func(m *Manifest) { m.Objects[0].SHA256 = Hash{} }},
		{"an object of no bytes", full, func(m *Manifest) { m.Objects[0].Size = 0 }},
		{"an index of what comes later", full, func(m *Manifest) { m.Index[0].Sequence = 42 }},
		{"an index out of order", full, func(m *Manifest) { m.Index = append(m.Index, m.Index[0]) }},
		{"an index of another family's kind", full, func(m *Manifest) { m.Index[0].Kind = KindFiles }},
		{"two lines in a reason", full, func(m *Manifest) { m.Degraded = []string{"a\nb"} }},
		{"an empty reason", full, func(m *Manifest) { m.Unproved = []string{""} }},
		{"a string that is not UTF-8", full, func(m *Manifest) { m.Etcd.Members[0].Name = "\xff" }},
		{"a string that moves the cursor", full, func(m *Manifest) { m.Writer.Node = "a\x1b[2J" }},
		{"a string that turns the line around", full, func(m *Manifest) { m.Writer.Node = "a\u202eb" }},
		{"a string without end", full, func(m *Manifest) { m.Imported = strings.Repeat("x", maxString+1) }},
	} {
		m := c.base()
		if err := m.Check(); err != nil {
			t.Fatalf("%s: before: %v", c.name, err)
		}
		c.edit(m)
		if err := m.Check(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := Sign(m, signer(t, "cp1", 1)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: signed: %v", c.name, err)
		}
	}
}

func TestLineMakesAnythingFit(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                        "plain",
		" a\nb\tc\x00 ":                "a b c",
		"\xff":                         "\uFFFD",
		"größe":                        "größe",
		"a\u2028b\u202ec":              "a b c",
		"":                             "",
		strings.Repeat("ä", 1000):      strings.Repeat("ä", 510) + "…",
		"x" + strings.Repeat("ä", 600): "x" + strings.Repeat("ä", 510) + "…",
	} {
		got := Line(in)
		if got != want || len(got) > maxReasons || checkString(got) != nil {
			t.Errorf("Line(%.20q) = %q (%d bytes)", in, got, len(got))
		}
	}
}

func TestIDsAreRandom(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{})
	seen := make(map[ID]bool)
	for range 1000 {
		id, err := NewID(rng)
		if err != nil || id.Check() != nil || seen[id] {
			t.Fatalf("%q, %v", id, err)
		}
		seen[id] = true
	}
	if got := id(0); got != "aaaaaaaaaaaaaaaaaaaaaaaaaa" {
		t.Errorf("sixteen zeros are %q", got)
	}
	if _, err := NewID(iotest.ErrReader(io.ErrClosedPipe)); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	cluster, err := NewCluster(rng, "prod-eu1")
	if name, id, ok := ClusterName(cluster); err != nil || !ok || name != "prod-eu1" || len(id) != 8 {
		t.Errorf("%q, %v", cluster, err)
	}
	if _, err := NewCluster(bytes.NewReader(make([]byte, 5)), "a b"); err == nil {
		t.Error("a cluster's name with a space")
	}
}
