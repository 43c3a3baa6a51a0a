package chroot_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/chroot"
)

// tree is a small file system: a name's link target, "" for what is no link.
type tree map[string]string

func (t tree) readlink(name string) (string, error) {
	target, ok := t[name]
	if !ok {
		return "", fs.ErrNotExist
	}
	return target, nil
}

func TestResolve(t *testing.T) {
	host := tree{
		"etc": "", "etc/pki": "", "etc/pki/ca.crt": "",
		"etc/current": "/etc/pki/ca.crt",
		"etc/up":      "../etc/pki",
		"etc/out":     "../../../etc/pki",
		"lib":         "usr/lib", "usr": "", "usr/lib": "", "usr/lib/x": "",
		"loop": "loop",
		"self": ".",
	}
	for _, c := range []struct {
		name, path string
		want       chroot.Place
		err        error
	}{
		{name: "a plain file", path: "/etc/pki/ca.crt", want: chroot.Place{Name: "etc/pki/ca.crt"}},
		{name: "the root", path: "/", want: chroot.Place{Name: "."}},
		{name: "doubled slashes and dots", path: "//etc/./pki//", want: chroot.Place{Name: "etc/pki"}},
		{name: "an absolute link leads to the tree's root", path: "etc/current", want: chroot.Place{Name: "etc/pki/ca.crt", Links: []string{"etc/current"}}},
		{name: "a relative link through a parent", path: "etc/up/ca.crt", want: chroot.Place{Name: "etc/pki/ca.crt", Links: []string{"etc/up"}}},
		{name: "a link that climbs past the root stays and is told", path: "etc/out/ca.crt", want: chroot.Place{Name: "etc/pki/ca.crt", Links: []string{"etc/out"}, Clamped: true}},
		{name: "dots after a link start from where the link leads", path: "lib/../lib/x", want: chroot.Place{Name: "usr/lib/x", Links: []string{"lib"}}},
		{name: "a missing file", path: "etc/none/deeper", want: chroot.Place{Name: "etc/none/deeper", Missing: true}},
		{name: "dots below a missing folder climb too", path: "none/../..", want: chroot.Place{Name: ".", Missing: true, Clamped: true}},
		{name: "a link to its own folder", path: "self/self/etc", want: chroot.Place{Name: "etc", Links: []string{"self", "self"}}},
		{name: "a loop ends", path: "loop", err: chroot.ErrLoop},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := chroot.Resolve(c.path, host.readlink)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzResolveStaysInside(f *testing.F) {
	f.Add("a/b", "../..", "/b/c")
	f.Add("../x", "a", "../../b")
	f.Fuzz(func(t *testing.T, p, a, b string) {
		links := tree{"a": a, "b": b, "a/b": ""}
		got, err := chroot.Resolve(p, links.readlink)
		if err == nil && utf8.ValidString(got.Name) && !fs.ValidPath(got.Name) {
			t.Errorf("Resolve(%q) leads to %q", p, got.Name)
		}
	})
}

func ExampleResolve() {
	links := map[string]string{"var/lib/kubelet/pki/current.pem": "/var/lib/kubelet/pki/2026.pem"}
	place, _ := chroot.Resolve("/var/lib/kubelet/pki/current.pem", func(name string) (string, error) { return links[name], nil })
	fmt.Println(place.Name)
	// Output: var/lib/kubelet/pki/2026.pem
}
