package realplane

import (
	"encoding/json"
	"slices"
	"testing"
)

func objectsOf(t *testing.T, resource string, items ...string) Objects {
	t.Helper()
	out := Objects{}
	for _, i := range items {
		var item map[string]any
		if err := json.Unmarshal([]byte(i), &item); err != nil {
			t.Fatal(err)
		}
		name, object := reduce(resource, item)
		out[name] = object
	}
	return out
}

func TestDiffTellsChangesButNotWhatChangesByItself(t *testing.T) {
	for _, c := range []struct {
		name, resource string
		before, after  []string
		want           []string
	}{
		{
			"equal", "configmaps",
			[]string{`{"metadata":{"name":"a","uid":"1","resourceVersion":"7","managedFields":[{"manager":"x","time":"1"}]},"data":{"k":"v"}}`},
			[]string{`{"metadata":{"name":"a","uid":"1","resourceVersion":"9","managedFields":[{"manager":"x","time":"2"},{"subresource":"status"}]},"data":{"k":"v"},"status":{}}`},
			nil,
		},
		{
			"gone, new, made anew and changed", "configmaps",
			[]string{`{"metadata":{"name":"a","uid":"1"}}`, `{"metadata":{"name":"b","uid":"2"}}`, `{"metadata":{"name":"c","uid":"3"},"data":{"k":"v"}}`},
			[]string{`{"metadata":{"name":"b","uid":"4"}}`, `{"metadata":{"name":"c","uid":"3"},"data":{"k":"w"}}`, `{"metadata":{"name":"d","uid":"5"}}`},
			[]string{"configmaps a: is gone", "configmaps b: was made anew, uid 4, before 2", "configmaps c: .data.k: w, before v", "configmaps d: is new"},
		},
		{
			"a secret's value stays secret", "secrets",
			[]string{`{"metadata":{"name":"a","namespace":"n","uid":"1"},"data":{"k":"v"}}`},
			[]string{`{"metadata":{"name":"a","namespace":"n","uid":"1"},"data":{"k":"w"}}`},
			[]string{"secrets n/a: .data.k differs"},
		},
		{
			"a mirror pod may be made anew", "pods",
			[]string{`{"metadata":{"name":"a","uid":"1","annotations":{"kubernetes.io/config.mirror":"h","kubernetes.io/config.seen":"1"}},"spec":{"nodeName":"n"}}`},
			[]string{`{"metadata":{"name":"a","uid":"2","annotations":{"kubernetes.io/config.mirror":"h","kubernetes.io/config.seen":"2"}},"spec":{"nodeName":"n"}}`},
			nil,
		},
		{
			"a node's condition is no change, its label is", "nodes",
			[]string{`{"metadata":{"name":"a","uid":"1","labels":{"l":"1"}},"spec":{"taints":[{"key":"own"}]}}`},
			[]string{`{"metadata":{"name":"a","uid":"1","labels":{"l":"2"}},"spec":{"taints":[{"key":"own"},{"key":"node.kubernetes.io/unreachable"}]}}`},
			[]string{"nodes a: .metadata.labels.l: 2, before 1"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Diff(objectsOf(t, c.resource, c.before...), objectsOf(t, c.resource, c.after...)); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestAWatcherTellsAVersionThatGoesBack(t *testing.T) {
	w := &Watcher{seen: Watched{Objects: map[string]string{}}}
	for _, version := range []string{"5", "5", "9", "7"} {
		i := item{}
		i.Metadata.Name, i.Metadata.ResourceVersion = "a", version
		if err := w.take("MODIFIED", i); err != nil {
			t.Fatal(err)
		}
	}
	want := "MODIFIED a has resourceVersion 7, seen before was 9"
	if seen := w.Seen(); len(seen.Backward) != 1 || seen.Backward[0] != want || seen.Events != 4 {
		t.Errorf("seen %+v, want one step back: %s", seen, want)
	}
	if err := w.take("ERROR", item{Code: 410}); err != errExpired {
		t.Errorf("410 is %v", err)
	}
}
