package realplane

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Objects are a cluster's objects by resource and name, such as
// "deployments.apps team-a/web", without what changes by itself.
type Objects map[string]Object

// Object is an object as Diff compares it.
type Object struct {
	UID     string // empty where the object may be made anew, as mirror pods are
	Content map[string]any
}

// Resources that are not compared: they change all the time, or are no objects.
var uncompared = []string{
	"events", "events.events.k8s.io", "leases.coordination.k8s.io", "componentstatuses",
}

// Objects reads all objects of every resource that discovery names and that can
// be listed, but events and leases.
func (m *Machine) Objects() Objects {
	m.plane.t.Helper()
	o, err := m.API().Objects()
	if err != nil {
		m.plane.t.Fatalf("%s: read all objects: %v", m.Name, err)
	}
	return o
}

// Objects is Machine.Objects.
func (a *API) Objects() (Objects, error) {
	versions := []string{"/api/v1"}
	var groups struct {
		Groups []struct {
			PreferredVersion struct{ GroupVersion string }
		}
	}
	if err := a.Get("/apis", &groups); err != nil {
		return nil, err
	}
	for _, g := range groups.Groups {
		versions = append(versions, "/apis/"+g.PreferredVersion.GroupVersion)
	}
	out := Objects{}
	for _, version := range versions {
		var list struct {
			Resources []struct {
				Name  string
				Verbs []string
			}
		}
		if err := a.Get(version, &list); err != nil {
			return nil, err
		}
		group := ""
		if parts := strings.Split(version, "/"); len(parts) == 4 { // /apis/GROUP/VERSION
			group = "." + parts[2]
		}
		for _, r := range list.Resources {
			resource := r.Name + group
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") || slices.Contains(uncompared, resource) {
				continue
			}
			var items struct{ Items []map[string]any }
			if err := a.Get(version+"/"+r.Name, &items); err != nil {
				return nil, err
			}
			for _, item := range items.Items {
				name, object := reduce(resource, item)
				out[name] = object
			}
		}
	}
	return out, nil
}

// reduce takes from an object what changes without anybody having changed it.
func reduce(resource string, item map[string]any) (string, Object) {
	metadata := child(item, "metadata")
	name := text(metadata["name"])
	if namespace := text(metadata["namespace"]); namespace != "" {
		name = namespace + "/" + name
	}
	o := Object{UID: text(metadata["uid"]), Content: item}
	delete(item, "status")
	delete(metadata, "resourceVersion")
	delete(metadata, "uid")
	fields, _ := metadata["managedFields"].([]any)
	fields = slices.DeleteFunc(fields, func(f any) bool { return text(field(f, "subresource")) == "status" })
	for _, f := range fields {
		if f, ok := f.(map[string]any); ok {
			delete(f, "time")
		}
	}
	metadata["managedFields"] = fields
	annotations := child(metadata, "annotations")

	switch resource {
	case "nodes":
		// Taints of the node's condition come and go with its kubelet.
		delete(metadata, "managedFields")
		spec := child(item, "spec")
		taints, _ := spec["taints"].([]any)
		spec["taints"] = slices.DeleteFunc(taints, func(t any) bool { return strings.HasPrefix(text(field(t, "key")), "node.kubernetes.io/") })
	case "endpoints", "endpointslices.discovery.k8s.io":
		// What is ready right now.
		for _, key := range []string{"subsets", "endpoints"} {
			delete(item, key)
		}
		for _, key := range []string{"managedFields", "generation"} {
			delete(metadata, key)
		}
		delete(annotations, "endpoints.kubernetes.io/last-change-trigger-time")
	case "pods":
		// Kubelet makes a static pod's mirror anew as it likes.
		if annotations["kubernetes.io/config.mirror"] != nil {
			o.UID = ""
			delete(annotations, "kubernetes.io/config.seen")
			for _, key := range []string{"creationTimestamp", "managedFields", "generation"} {
				delete(metadata, key)
			}
		}
	}
	return resource + " " + name, o
}

// child is an object within another; without it, an empty one that is not kept.
func child(of map[string]any, name string) map[string]any {
	inner, _ := of[name].(map[string]any)
	if inner == nil {
		return map[string]any{}
	}
	return inner
}

func field(of any, name string) any {
	inner, _ := of.(map[string]any)
	return inner[name]
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// Diff says in words what is not in both or not alike, in order; nothing: they
// are equal. Secrets' values are not shown.
func Diff(before, after Objects) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		b, a := before[name], after[name]
		switch {
		case a.Content == nil:
			out = append(out, name+": is gone")
			continue
		case a.UID != b.UID:
			out = append(out, fmt.Sprintf("%s: was made anew, uid %s, before %s", name, a.UID, b.UID))
		}
		compare(name+": ", b.Content, a.Content, strings.HasPrefix(name, "secrets "), &out)
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if _, known := before[name]; !known {
			out = append(out, name+": is new")
		}
	}
	return out
}

// compare adds a line for each leaf that differs.
func compare(path string, before, after any, secret bool, out *[]string) {
	b, bIsMap := before.(map[string]any)
	a, aIsMap := after.(map[string]any)
	if bIsMap && aIsMap {
		for _, key := range slices.Sorted(maps.Keys(b)) {
			compare(path+"."+key, b[key], a[key], secret, out)
		}
		for _, key := range slices.Sorted(maps.Keys(a)) {
			if _, known := b[key]; !known {
				compare(path+"."+key, nil, a[key], secret, out)
			}
		}
		return
	}
	bs, bIsList := before.([]any)
	as, aIsList := after.([]any)
	if bIsList && aIsList && len(bs) == len(as) {
		for i := range bs {
			compare(fmt.Sprintf("%s[%d]", path, i), bs[i], as[i], secret, out)
		}
		return
	}
	if fmt.Sprint(before) == fmt.Sprint(after) {
		return
	}
	if secret {
		*out = append(*out, path+" differs")
		return
	}
	*out = append(*out, fmt.Sprintf("%s: %.120v, before %.120v", path, after, before))
}
