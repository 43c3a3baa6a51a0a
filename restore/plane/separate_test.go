package plane

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/manifest"
	"lifeboat/internal/snapdb"
	"lifeboat/restore"
	"lifeboat/restore/topology"
)

const eventsPod = `apiVersion: v1
kind: Pod
metadata: {name: etcd-events, namespace: kube-system}
spec:
  hostNetwork: true
  containers:
  - name: etcd
    image: registry.k8s.io/etcd:3.6.8-0
    command: [etcd, --name=cp1-events, --data-dir=/var/lib/etcd-events, "--listen-client-urls=https://127.0.0.1:2381", "--advertise-client-urls=https://10.0.0.11:2381",
      "--initial-advertise-peer-urls=https://10.0.0.11:2382", "--initial-cluster=cp1-events=https://10.0.0.11:2382,cp2-events=https://10.0.0.12:2382", --initial-cluster-state=existing]
    volumeMounts: [{name: data, mountPath: /var/lib/etcd-events}]
  volumes: [{name: data, hostPath: {path: /var/lib/etcd-events}}]
`

// eventsWorld has a node whose API server keeps some resources in a second static
// pod.
func eventsWorld(t *testing.T, resources ...string) *world {
	t.Helper()
	w := emptyWorld(t)
	root := w.node()
	check(t, os.WriteFile(filepath.Join(root, "etc/kubernetes/manifests/etcd-events.yaml"), []byte(eventsPod), 0o600))
	api := filepath.Join(root, "etc/kubernetes/manifests/kube-apiserver.yaml")
	text, err := os.ReadFile(api)
	check(t, err)
	var overrides []string
	for _, r := range resources {
		overrides = append(overrides, r+"#https://127.0.0.1:2381")
	}
	check(t, os.WriteFile(api, []byte(strings.Replace(string(text), "    - --etcd-servers=", "    - --etcd-servers-overrides="+strings.Join(overrides, ",")+"\n    - --etcd-servers=", 1)), 0o600))
	w.backUp(root)
	return w
}

const eventsDB = "var/lib/etcd-events/member/snap/db"

// oldEvents leaves data of an events' etcd on the machine.
func (w *world) oldEvents() map[string]string {
	w.old()
	file := filepath.Join(w.root, eventsDB)
	check(w.t, os.MkdirAll(filepath.Dir(file), 0o700))
	check(w.t, os.WriteFile(file, []byte("old events"), 0o600))
	return w.tree()
}

// eventsFacts reads the restored database of events.
func (w *world) eventsFacts() *snapdb.Facts {
	w.t.Helper()
	facts, err := snapdb.Inspect(w.t.Context(), filepath.Join(w.root, eventsDB), snapdb.Options{})
	check(w.t, err)
	return facts
}

func TestEventsBeginEmptyBeyondAllThatWasSeen(t *testing.T) {
	w := eventsWorld(t, "/events")
	w.oldEvents()
	check(t, w.run(""))
	w.wantRestored()
	facts := w.eventsFacts()
	if want := now.Unix()*eventsRate + 2*3600*eventsRate; facts.Revision != want || facts.Keys != 0 || len(facts.Members) != 1 || facts.Members[0].Name != "cp1-events" {
		t.Errorf("revision %d, %d keys, members %+v; want revision %d", facts.Revision, facts.Keys, facts.Members, want)
	}
	aside, err := filepath.Glob(filepath.Join(w.state, "aside", "*.events", "member", "snap", "db"))
	check(t, err)
	if len(aside) != 1 {
		t.Fatalf("the old events are kept in %v", aside)
	}
	if text, err := os.ReadFile(aside[0]); err != nil || string(text) != "old events" {
		t.Errorf("kept aside: %q, %v", text, err)
	}
	// The API server is not ready before both serve.
	want := []string{"stop kubelet", "start kubelet", "events with etcd-events", "etcd with etcd-events etcd", "API with etcd-events etcd kube-apiserver"}
	if diff := cmp.Diff(want, w.machine.story[:5]); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

func TestARestoreWithEventsThatIsKilledGoesOnOrBack(t *testing.T) {
	for _, point := range []string{"begun " + stepStop, "begun " + stepEvents, "did " + stepEvents, "begun " + stepPods} {
		t.Run(point, func(t *testing.T) {
			w := eventsWorld(t, "/events", "events.k8s.io/events")
			before := w.oldEvents()
			if err := w.run(point); !errors.Is(err, errKilled) {
				t.Fatalf("not killed: %v", err)
			}
			check(t, w.abort())
			after := w.tree()
			for name := range after {
				if strings.Contains(name, "etcd-events/.lifeboat-restore/") {
					t.Errorf("a new member is left at %s", name)
				}
				if strings.Contains(name, ".lifeboat") {
					delete(after, name)
				}
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("after the abort (-before +after):\n%.2000s", diff)
			}
			if err := w.run(point); !errors.Is(err, errKilled) {
				t.Fatalf("not killed again: %v", err)
			}
			check(t, w.run(""))
			w.wantRestored()
			if facts := w.eventsFacts(); facts.Keys != 0 || facts.Revision < 1_000_000_000_000 {
				t.Errorf("%d keys at revision %d", facts.Keys, facts.Revision)
			}
		})
	}
}

func TestEventsCanComeFromTheirOwnChain(t *testing.T) {
	w := eventsWorld(t, "/events")
	w.oldEvents()
	w.order.Events = "etcd/events"
	if err := w.run(""); err == nil || !strings.Contains(err.Error(), "the etcd for events") {
		t.Errorf("without such a chain: %v", err)
	}
	w.backUpEtcd("etcd/events", manifest.Member{ID: 7, Name: "cp1-events", PeerURLs: []string{"https://10.0.0.11:2382"}}, manifest.Member{ID: 8, Name: "cp3-events", PeerURLs: []string{"https://10.0.0.13:2382"}})
	w.order.Members = All
	if err := w.run("did " + stepEvents); !errors.Is(err, errKilled) {
		t.Fatalf("not killed: %v", err)
	}
	check(t, w.run(""))
	w.wantRestored()
	facts := w.eventsFacts()
	if facts.Keys == 0 || facts.Revision < 1_000_000_000 || facts.Revision > 1_000_000_000_000 || len(facts.Members) != 2 {
		t.Errorf("revision %d, %d keys, members %+v", facts.Revision, facts.Keys, facts.Members)
	}
}

func TestAllNodesGiveEventsTheSameBeginning(t *testing.T) {
	w := eventsWorld(t, "/events")
	w.order.Members = All
	text := w.share()
	shared, err := ParseShared(text)
	check(t, err)
	w.state = folder(t)
	p, err := w.take(text)
	check(t, err)
	defer p.Close()
	if p.Order.EventsBump == 0 || p.Order.EventsBump != shared.Order.EventsBump || p.events == nil || !strings.Contains(p.events.options.InitialCluster, "cp2-events=") || p.events.options.Token != shared.Order.Token+"-events" {
		t.Errorf("%+v, %+v", p.Order, p.events)
	}
}

func TestEventsThatLiveElsewhereOrHoldMoreAreLeftAlone(t *testing.T) {
	for name, c := range map[string]struct {
		resources []string
		living    []topology.Separate
		say       string
	}{
		"a quorum of others": {[]string{"/events"}, []topology.Separate{{Resources: []string{"/events"}, Living: topology.Living{Quorum: true, Voters: 3, Answering: 2}}}, "lives on other hosts (2 of 3 voters answer)"},
		"more than events":   {[]string{"/events", "/secrets"}, nil, "holds more than events"},
		"no events at all":   {[]string{"/secrets"}, nil, "is left as it is"},
	} {
		t.Run(name, func(t *testing.T) {
			w := eventsWorld(t, c.resources...)
			w.oldEvents()
			o := w.options()
			inspect := o.Inspect
			o.Inspect = func(ctx context.Context, in topology.Inputs) (*topology.Host, error) {
				h, err := inspect(ctx, in)
				h.Separate = c.living
				return h, err
			}
			p, err := Prepare(t.Context(), o)
			check(t, err)
			defer p.Close()
			if !slices.ContainsFunc(p.Warnings, func(s string) bool { return strings.Contains(s, c.say) }) {
				t.Errorf("%q", p.Warnings)
			}
			check(t, p.Execute(t.Context(), nil))
			if text := w.tree()[eventsDB]; !strings.HasSuffix(text, "\nold events") {
				t.Errorf("its data was touched: %.60q", text)
			}
		})
	}
	other := eventsWorld(t, "/events")
	other.backUpEtcd("etcd/events", manifest.Member{ID: 7, Name: "cp1-events", PeerURLs: []string{"https://10.0.0.11:2382"}})
	o := other.options()
	o.Chain = "etcd/events"
	if p, err := Prepare(t.Context(), o); !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "--events-from") {
		t.Errorf("events for the main member: %v, %v", p, err)
	}
	w := newWorld(t) // whose API server keeps events in the main etcd
	w.order.Events = "etcd/events"
	if err := w.run(""); !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "keeps events in its main etcd") {
		t.Errorf("%v", err)
	}
}
