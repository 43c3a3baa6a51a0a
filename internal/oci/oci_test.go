package oci

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

var amd64 = Platform{OS: "linux", Architecture: "amd64"}

// source is a map of blobs.
type source map[Digest][]byte

func (s source) Has(_ context.Context, d Digest) (bool, error) { _, ok := s[d]; return ok, nil }

func (s source) Document(_ context.Context, d Descriptor) ([]byte, error) { return s[d.Digest], nil }

func (s source) add(mediaType string, data []byte) Descriptor {
	d := Descriptor{MediaType: mediaType, Digest: DigestOf(sha256.Sum256(data)), Size: int64(len(data))}
	s[d.Digest] = data
	return d
}

func (s source) json(t testing.TB, mediaType string, v any) Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return s.add(mediaType, data)
}

const layerType = "application/vnd.oci.image.layer.v1.tar+gzip"

func (s source) manifest(t testing.TB, layers ...Descriptor) Descriptor {
	t.Helper()
	config := s.add("application/vnd.oci.image.config.v1+json", fmt.Appendf(nil, "{%d}", len(s)))
	return s.json(t, TypeManifest, map[string]any{"schemaVersion": 2, "mediaType": TypeManifest, "config": config, "layers": layers})
}

func (s source) index(t testing.TB, manifests ...Descriptor) Descriptor {
	t.Helper()
	return s.json(t, TypeIndex, map[string]any{"schemaVersion": 2, "manifests": manifests})
}

func on(d Descriptor, p Platform) Descriptor { d.Platform = &p; return d }

func digests(blobs []Blob) []Digest {
	var list []Digest
	for _, b := range blobs {
		list = append(list, b.Digest)
	}
	return list
}

func TestNeededIsWhatThePlatformNeeds(t *testing.T) {
	s := source{}
	base, own := s.add(layerType, []byte("base")), s.add(layerType, []byte("own"))
	here := s.manifest(t, base, own, base) // a layer may come twice
	gone := Descriptor{MediaType: TypeManifest, Digest: DigestOf([32]byte{1}), Size: 7}
	attestation := on(Descriptor{MediaType: TypeManifest, Digest: DigestOf([32]byte{2}), Size: 7}, Platform{"unknown", "unknown"})
	halfway := s.manifest(t, Descriptor{MediaType: layerType, Digest: DigestOf([32]byte{3}), Size: 7}) // of another variant, not pulled
	index := s.index(t, on(gone, Platform{"linux", "arm64"}), on(halfway, amd64), on(here, amd64), attestation)

	blobs, err := Needed(t.Context(), index, amd64, s)
	if err != nil {
		t.Fatal(err)
	}
	got := digests(blobs)
	if len(got) != 5 || got[0] != index.Digest || got[1] != here.Digest || !slices.Contains(got, base.Digest) || !slices.Contains(got, own.Digest) {
		t.Errorf("needs %v", got)
	}
	if labels := blobs[0].Labels; len(labels) != 1 || labels["containerd.io/gc.ref.content.m.2"] != string(here.Digest) {
		t.Errorf("the index's labels are %v", labels)
	}
	if labels := blobs[1].Labels; len(labels) != 4 || labels["containerd.io/gc.ref.content.l.0"] != string(base.Digest) ||
		labels["containerd.io/gc.ref.content.l.1"] != string(own.Digest) || labels["containerd.io/gc.ref.content.config"] != string(got[2]) {
		t.Errorf("the manifest's labels are %v", labels)
	}
	alone, err := Needed(t.Context(), here, amd64, s)
	if err != nil || len(alone) != 4 {
		t.Errorf("an image without an index: %v, %v", digests(alone), err)
	}
}

func TestABlobComesBeforeThoseThatItNames(t *testing.T) {
	s := source{}
	base := s.add(layerType, []byte("base"))
	first, second := s.manifest(t, base), s.manifest(t, base, s.add(layerType, []byte("own")))
	blobs, err := Needed(t.Context(), s.index(t, first, s.index(t, second, first)), amd64, s)
	if err != nil {
		t.Fatal(err)
	}
	order := digests(blobs)
	if len(order) != 8 {
		t.Errorf("%d blobs", len(order))
	}
	for i, b := range blobs {
		for _, child := range b.Children {
			if slices.Index(order, child.Digest) < i {
				t.Errorf("%s %s comes behind %s, which it names", b.MediaType, b.Digest, child.Digest)
			}
		}
	}
}

func TestAnImageThatIsNotWhole(t *testing.T) {
	s := source{}
	layer := s.add(layerType, []byte("layer"))
	here := s.manifest(t, layer)
	index := s.index(t, on(here, amd64))
	for _, c := range []struct {
		name string
		root Descriptor
		lose Digest
		what string
	}{
		{"no layer", here, layer.Digest, "layer"}, {"no layer behind an index", index, layer.Digest, "layer"},
		{"no manifest", index, here.Digest, "manifest for linux/amd64"}, {"nothing at all", index, index.Digest, "index"},
	} {
		kept := s[c.lose]
		delete(s, c.lose)
		_, err := Needed(t.Context(), c.root, amd64, s)
		var missing *MissingError
		if !errors.As(err, &missing) || missing.Digest != c.lose || !strings.Contains(err.Error(), c.what) {
			t.Errorf("%s: %v", c.name, err)
		}
		s[c.lose] = kept
	}
	if _, err := Needed(t.Context(), index, Platform{"linux", "s390x"}, s); !errors.Is(err, ErrPlatform) {
		t.Errorf("another platform: %v", err)
	}
	foreign := Descriptor{MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest: DigestOf([32]byte{4}), Size: 9}
	if blobs, err := Needed(t.Context(), s.manifest(t, foreign, layer), amd64, s); err != nil || len(blobs) != 3 {
		t.Errorf("a layer that no registry hands out: %v, %v", digests(blobs), err)
	}
}

func TestHostileImages(t *testing.T) {
	s := source{}
	good := s.manifest(t, s.add(layerType, []byte("layer")))
	config := `{"mediaType":"c","digest":"` + string(good.Digest) + `","size":3}`
	deep := s.index(t, good)
	for range maxDepth + 1 {
		deep = s.index(t, deep)
	}
	many := make([]Descriptor, maxChildren+1)
	for i := range many {
		many[i] = good
	}
	self := on(good, amd64) // an index can't hold itself; it can hold another many times over, in indexes
	wide := s.index(t, slices.Repeat([]Descriptor{self}, 200)...)
	wide = s.index(t, slices.Repeat([]Descriptor{wide}, 200)...)
	raw := func(mediaType, text string) Descriptor { return s.add(mediaType, []byte(text)) }
	for name, root := range map[string]Descriptor{
		"no JSON":                        raw(TypeManifest, "{"),
		"schema 1":                       raw(TypeManifest, `{"schemaVersion":1,"config":`+config+`}`),
		"with schema 1's layers":         raw(TypeManifest, `{"schemaVersion":2,"fsLayers":[{}],"config":`+config+`}`),
		"a manifest without config":      raw(TypeManifest, `{"schemaVersion":2}`),
		"a manifest that is an index":    raw(TypeManifest, `{"schemaVersion":2,"config":`+config+`,"manifests":[`+config+`]}`),
		"an index that is a manifest":    raw(TypeIndex, `{"schemaVersion":2,"config":`+config+`}`),
		"another type than it is called": raw(TypeManifest, `{"schemaVersion":2,"mediaType":"`+TypeIndex+`","config":`+config+`}`),
		"neither":                        raw("text/plain", `{"schemaVersion":2}`),
		"a digest that is a path":        raw(TypeManifest, `{"schemaVersion":2,"config":{"mediaType":"c","digest":"sha256:../../etc/passwd","size":3}}`),
		"a digest in capitals":           raw(TypeManifest, strings.Replace(`{"schemaVersion":2,"config":`+config+`}`, string(good.Digest), "sha256:"+strings.ToUpper(string(good.Digest[7:])), 1)),
		"another algorithm":              raw(TypeManifest, `{"schemaVersion":2,"config":{"mediaType":"c","digest":"sha512:ab","size":3}}`),
		"an empty config":                raw(TypeManifest, `{"schemaVersion":2,"config":{}}`),
		"no digest":                      raw(TypeManifest, `{"schemaVersion":2,"config":{"mediaType":"c","size":3}}`),
		"a negative size":                raw(TypeManifest, `{"schemaVersion":2,"config":{"mediaType":"c","digest":"`+string(good.Digest)+`","size":-1}}`),
		"a size beyond everything":       raw(TypeManifest, `{"schemaVersion":2,"config":{"mediaType":"c","digest":"`+string(good.Digest)+`","size":9007199254740993}}`),
		"a media type of two lines":      raw(TypeManifest, `{"schemaVersion":2,"config":{"mediaType":"a\nb","digest":"`+string(good.Digest)+`","size":1}}`),
		"a config that is a manifest":    raw(TypeManifest, `{"schemaVersion":2,"config":{"mediaType":"`+TypeManifest+`","digest":"`+string(good.Digest)+`","size":1}}`),
		"indexes in indexes":             deep,
		"more children than there are":   s.index(t, many...),
		"more blobs than there are":      wide,
		"longer than any":                raw(TypeManifest, `{"schemaVersion":2,"x":"`+strings.Repeat("x", MaxDocument)+`"}`),
		"a root that is no digest":       {MediaType: TypeManifest, Digest: "latest", Size: 1},
	} {
		if _, err := Needed(t.Context(), root, amd64, s); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		} else if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 1000 {
			t.Errorf("%s: an error that says %q", name, err)
		}
	}
}

// asked fails the test if a document is fetched.
type asked struct {
	source
	t *testing.T
}

func (a asked) Document(_ context.Context, d Descriptor) ([]byte, error) {
	a.t.Errorf("a document of %d bytes was fetched", d.Size)
	return nil, nil
}

func TestNoDocumentIsFetchedThatClaimsToBeTooLong(t *testing.T) {
	s := source{}
	for _, mediaType := range []string{TypeIndex, TypeManifest} {
		d := s.add(mediaType, []byte("{}"))
		d.Size = MaxDocument + 1
		if _, err := Needed(t.Context(), d, amd64, asked{s, t}); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "limit") {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
}

func TestPlatforms(t *testing.T) {
	if p, err := ParsePlatform(amd64.String()); err != nil || p != amd64 {
		t.Error(p, err)
	}
	for _, bad := range []string{"", "linux", "/amd64", "linux/", "linux/arm/v7"} {
		if _, err := ParsePlatform(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	s := source{}
	good := s.manifest(f, s.add(layerType, []byte("layer")))
	for _, d := range []Descriptor{good, s.index(f, on(good, amd64))} {
		f.Add(d.MediaType, s[d.Digest])
	}
	f.Add(TypeDockerManifest, []byte(`{"schemaVersion":2,"config":{"digest":"sha256:`+strings.Repeat("0", 64)+`","mediaType":"x"},"layers":[null]}`))
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		root := Descriptor{MediaType: mediaType, Digest: DigestOf(sha256.Sum256(data)), Size: int64(len(data))}
		doc, err := Parse(root, data)
		if (doc == nil) != (err != nil) || err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("%+v, %v", doc, err)
		}
		if err != nil {
			return
		}
		for _, child := range doc.children() {
			if child.Check() != nil {
				t.Fatalf("it names %+v", child)
			}
		}
		blobs, err := Needed(t.Context(), root, amd64, source{root.Digest: data})
		var missing *MissingError
		if err == nil && len(blobs) == 0 || err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrPlatform) && !errors.As(err, &missing) {
			t.Fatalf("%v, %v", blobs, err)
		}
	})
}
