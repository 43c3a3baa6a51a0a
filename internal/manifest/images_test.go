package manifest

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func images() *Manifest {
	m := small()
	m.Chain, m.Kind, m.Proof = ImagesChain, KindImages, nil
	m.Images = &Images{
		Node: "cp1", Platform: "linux/amd64", Blobs: []Hash{{1}, {2}, {3}},
		Images: []Image{
			{Names: []string{"registry.k8s.io/etcd:3.6.4-0", "sha256:01"}, SHA256: Hash{2}, MediaType: "application/vnd.oci.image.index.v1+json", Size: 7},
			{Names: []string{"registry.k8s.io/pause:3.10"}, SHA256: Hash{1}, MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 5, Pinned: true},
		},
	}
	return m
}

func blob() *Manifest {
	m := small()
	m.Chain, m.Kind, m.Proof, m.Blob = ImagesChain, KindBlob, nil, &Blob{SHA256: Hash{1}}
	m.Recipients = []string{"age1example"}
	m.Objects = []Object{{Name: "images/data/" + string(m.ID) + "/blob.zst.age", Role: RoleBlob, Size: 9, SHA256: Hash{8}, PlainSize: 5}}
	return m
}

func TestImagesAndBlobsAreWellFormed(t *testing.T) {
	rekeyOfBlob := blob()
	rekeyOfBlob.Kind, rekeyOfBlob.Blob, rekeyOfBlob.Rekey = KindRekey, nil, &Rekey{Of: id(6)}
	prune := small()
	prune.Chain, prune.Kind, prune.Proof = ImagesChain, KindPrune, nil
	prune.Prune = &Prune{Base: 1, Objects: []string{"images/data/" + string(id(4)) + "/blob.zst.age"}}
	s := signer(t, "cp1", 1)
	for name, m := range map[string]*Manifest{"images": images(), "a blob": blob(), "a rekey of a blob": rekeyOfBlob, "a prune": prune} {
		if err := m.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := Open(sign(t, m, s), trusting(s))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got.Images != nil && (!got.Images.Needs(Hash{3}) || got.Images.Needs(Hash{4}) || !slices.Equal(got.Images.Blobs, m.Images.Blobs)) {
			t.Errorf("%s: %+v", name, got.Images)
		}
	}
}

func TestImagesThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		base func() *Manifest
		edit func(*Manifest)
	}{
		{"images in another chain", images, func(m *Manifest) { m.Chain = "hosts/cp1" }},
		{"files in the chain of images", images, func(m *Manifest) { m.Kind, m.Images, m.Host = KindFiles, nil, &Host{Node: "cp1"} }},
		{"a chain below that of images", images, func(m *Manifest) { m.Chain = "images/cp1" }},
		{"images without their body", images, func(m *Manifest) { m.Images = nil }},
		{"images of no node", images, func(m *Manifest) { m.Images.Node = "" }},
		{"images of a node that is a path", images, func(m *Manifest) { m.Images.Node = "../x" }},
		{"images of no platform", images, func(m *Manifest) { m.Images.Platform = "" }},
		{"no images", images, func(m *Manifest) { m.Images.Images = nil }},
		{"an image without a name", images, func(m *Manifest) { m.Images.Images[0].Names = nil }},
		{"an image with an empty name", images, func(m *Manifest) { m.Images.Images[1].Names[0] = "" }},
		{"an image named twice", images, func(m *Manifest) { m.Images.Images[0].Names[1] = m.Images.Images[0].Names[0] }},
		{"an image whose name moves the cursor", images, func(m *Manifest) { m.Images.Images[1].Names[0] = "a\x1b[2J" }},
		{"an image without SHA-256", images, func(m *Manifest) { m.Images.Images[0].SHA256 = Hash{} }},
		{"an image without a media type", images, func(m *Manifest) { m.Images.Images[0].MediaType = "" }},
		{"an image of no bytes", images, func(m *Manifest) { m.Images.Images[0].Size = 0 }},
		{"an image that is not among the blobs", images, func(m *Manifest) { m.Images.Images[0].SHA256 = Hash{9} }},
		{"blobs out of order", images, func(m *Manifest) { slices.Reverse(m.Images.Blobs) }},
		{"a blob twice", images, func(m *Manifest) { m.Images.Blobs[1] = Hash{1} }},
		{"a blob without SHA-256 among them", images, func(m *Manifest) { m.Images.Blobs[0] = Hash{} }},
		{"images with an object", images, func(m *Manifest) { m.Objects = blob().Objects }},
		{"a blob without its body", blob, func(m *Manifest) { m.Blob = nil }},
		{"a blob without SHA-256", blob, func(m *Manifest) { m.Blob.SHA256 = Hash{} }},
		{"a blob for nobody", blob, func(m *Manifest) { m.Recipients = nil }},
		{"a blob without an object", blob, func(m *Manifest) { m.Objects = nil }},
		{"a blob with two objects", blob, func(m *Manifest) { m.Objects = append(m.Objects, m.Objects[0]) }},
		{"a blob of another role", blob, func(m *Manifest) { m.Objects[0].Role = RoleFiles }},
		{"a blob that lies with another", blob, func(m *Manifest) {
			m.Objects[0].Name = strings.Replace(m.Objects[0].Name, string(m.ID), string(id(9)), 1)
		}},
		{"a blob that climbs", blob, func(m *Manifest) { m.Objects[0].Name = m.Chain.DataFolder(m.ID) + ".." }},
	} {
		m := c.base()
		if err := m.Check(); err != nil {
			t.Fatalf("%s: before: %v", c.name, err)
		}
		c.edit(m)
		if err := m.Check(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
