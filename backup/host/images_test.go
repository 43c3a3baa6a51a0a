package host

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/kubefixture"
)

func TestFactsNameImagesByDigest(t *testing.T) {
	root := node(t, kubefixture.Stacked)
	static, err := StaticImages(root)
	if err != nil || len(static) < 4 || !slices.ContainsFunc(static, func(i Image) bool { return i.Container == "etcd" && i.Image != "" }) {
		t.Fatalf("%+v, %v", static, err)
	}
	o := options(root)
	o.Images = func(ctx context.Context, given []Image) ([]Image, error) {
		if _, limited := ctx.Deadline(); !limited {
			t.Error("a runtime that hangs would hold the capture up")
		}
		if !slices.Equal(given, static) {
			t.Errorf("asked with %+v", given)
		}
		list := slices.Clone(given)
		for i := range list[1:] {
			list[i].Digest = "sha256:of " + list[i].Image
		}
		list[len(list)-1].Digest = ""
		return append(list, Image{Pod: "etcd-cp1", Image: "registry.k8s.io/pause:3.10", Digest: "sha256:pause", Why: "sandbox"}), nil
	}
	r, _, bodies := captured(t, o)
	var facts Facts
	if err := json.Unmarshal(bodies[FactsName], &facts); err != nil {
		t.Fatal(err)
	}
	if n := len(facts.Images); n != len(static)+1 || facts.Images[0].Digest != "sha256:of "+static[0].Image || facts.Images[n-1].Why != "sandbox" || facts.Images[n-1].Digest != "sha256:pause" {
		t.Errorf("%+v", facts.Images)
	}
	last := static[len(static)-1].Image
	if !has(r.Warnings, "no image "+last) || len(r.Degraded) > 0 {
		t.Errorf("an image that the runtime does not have: %q, degraded %q", r.Warnings, r.Degraded)
	}
}

func TestARuntimeThatIsSilentTakesNothingFromABackup(t *testing.T) {
	root := node(t, kubefixture.Stacked)
	static, err := StaticImages(root)
	if err != nil {
		t.Fatal(err)
	}
	o := options(root)
	o.Images = func(context.Context, []Image) ([]Image, error) { return nil, errors.New("containerd is dead") }
	r, _, _ := captured(t, o)
	if !slices.Equal(r.Facts.Images, static) || !has(r.Warnings, "containerd is dead") || len(r.Degraded) > 0 {
		t.Errorf("%+v, %q", r.Facts.Images, r.Warnings)
	}
	// Nobody to ask: nothing is known, and nothing is said.
	o.Images = func(_ context.Context, static []Image) ([]Image, error) { return static, nil }
	if r, _, _ := captured(t, o); !slices.Equal(r.Facts.Images, static) || slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, "image") }) {
		t.Errorf("%+v, %q", r.Facts.Images, r.Warnings)
	}
}
