package kubeapi_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/restore/kubeapi"
)

// restored is when the restore of these tests ended, by this machine's clock.
var restored = time.Now().Add(-time.Minute)

func TestWhichLeasesAreNew(t *testing.T) {
	for _, c := range []struct {
		name    string
		renewed time.Duration // after the restore, by the node's clock
		ahead   time.Duration // the server's clock before ours
		since   kubeapi.Since
		want    bool
		how     string
	}{
		{name: "renewed after the restore", renewed: 30 * time.Second, want: true},
		{name: "of the snapshot", renewed: -time.Hour, how: "renewed"},
		{name: "of the second of the restore is not sure", renewed: 500 * time.Millisecond},
		{name: "the server's clock goes ahead: its time counts", renewed: 30 * time.Second, ahead: time.Hour},
		{name: "and a renewal by that clock is new", renewed: time.Hour + 30*time.Second, ahead: time.Hour, want: true},
		{name: "the server's clock is behind", renewed: -time.Hour + 30*time.Second, ahead: -time.Hour, want: true},
		{name: "a node's clock that goes ahead makes nothing new", renewed: 20 * time.Minute, how: "ahead of the server's clock"},
		{name: "without a restore nothing is new", renewed: 30 * time.Second, how: "nothing says when"},
		{name: "a revision above the restore's is new whatever the clocks", renewed: -time.Hour, since: kubeapi.Since{Revision: 1000}, want: true, how: "revision 1001"},
		{name: "a revision of the snapshot is old whatever the clocks", renewed: 30 * time.Second, since: kubeapi.Since{Revision: 2000}, how: "restore ended at 2000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore()
			s.now = func() time.Time { return time.Now().Add(c.ahead) }
			s.put(leases+"cp1", lease(restored.Add(c.renewed)))
			client := serve(t, s)
			if c.since.Time = restored; c.how == "nothing says when" {
				c.since = kubeapi.Since{}
			}
			got, err := client.Leases(t.Context(), c.since)
			if err != nil || len(got) != 1 {
				t.Fatal(got, err)
			}
			if got[0].Fresh != c.want || !strings.Contains(got[0].How, c.how) {
				t.Errorf("%+v", got[0])
			}
		})
	}
}

func TestWaitLease(t *testing.T) {
	s := newStore()
	s.put(leases+"cp1", lease(restored.Add(-time.Hour)))
	s.put(leases+"w1", lease(restored.Add(30*time.Second)))
	client := serve(t, s)
	since := kubeapi.Since{Time: restored}

	if l, err := client.WaitLease(t.Context(), "", since, nil); err != nil || l.Node != "w1" {
		t.Errorf("any node: %+v, %v", l, err)
	}
	var told []string
	l, err := client.WaitLease(t.Context(), "cp1", since, func(text string) {
		told = append(told, text)
		s.put(leases+"cp1", lease(restored.Add(20*time.Second)))
	})
	if err != nil || !l.Fresh || len(told) != 1 || !strings.Contains(told[0], "it is old") {
		t.Errorf("%+v, %v, told %q", l, err, told)
	}
	// A kubelet whose clock is far behind.
	s.put(leases+"cp1", lease(restored.Add(-48*time.Hour)))
	l, err = client.WaitLease(t.Context(), "cp1", since, func(string) { s.put(leases+"cp1", lease(restored.Add(-47*time.Hour))) })
	if err != nil || !strings.Contains(l.How, "while it was watched") {
		t.Errorf("%+v, %v", l, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := client.WaitLease(ctx, "cp9", since, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "is its kubelet running") {
		t.Error(err)
	}
}

// dying fills a store with the machine cp3, which is gone, and others.
func dying() *store {
	s := newStore()
	for _, name := range []string{"cp1", "cp3"} {
		s.put(nodes+name, node("True"))
	}
	s.put(leases+"cp1", lease(time.Now()))
	s.put(leases+"cp3", lease(restored.Add(-time.Hour)))
	pod := func(name, on string, annotations map[string]any) {
		s.put("/api/v1/namespaces/kube-system/pods/"+name, map[string]any{"metadata": map[string]any{"annotations": annotations}, "spec": map[string]any{"nodeName": on}})
	}
	mirror := map[string]any{"kubernetes.io/config.mirror": "abc"}
	pod("etcd-cp1", "cp1", mirror)
	pod("etcd-cp3", "cp3", mirror)
	pod("kube-apiserver-cp3", "cp3", mirror)
	pod("coredns-x", "cp3", nil)
	return s
}

const pods = "/api/v1/namespaces/kube-system/pods/"

func TestRemoveNodes(t *testing.T) {
	s := dying()
	client := serve(t, s)
	o := kubeapi.Removal{Since: kubeapi.Since{Time: restored}}
	got, err := client.RemoveNodes(t.Context(), []string{"cp3"}, o)
	if err != nil {
		t.Fatal(err)
	}
	var objects []string
	for _, c := range got {
		objects = append(objects, c.Object)
	}
	if want := []string{"lease kube-node-lease/cp3", "node cp3", "pod kube-system/etcd-cp3", "pod kube-system/kube-apiserver-cp3"}; !slices.Equal(objects, want) {
		t.Errorf("%q, want %q", objects, want)
	}
	for _, stays := range []string{nodes + "cp1", leases + "cp1", pods + "etcd-cp1", pods + "coredns-x"} {
		if s.get(stays) == nil {
			t.Errorf("%s is gone", stays)
		}
	}
	if got, err := client.RemoveNodes(t.Context(), []string{"cp3"}, o); err != nil || len(got) != 0 {
		t.Errorf("again: %v, %v", got, err)
	}
}

func TestRemoveNodesRemovesNobodyWhoLives(t *testing.T) {
	for name, change := range map[string]func(s *store, watched *func()){
		"it has renewed its lease before": func(s *store, _ *func()) { s.put(leases+"cp3", lease(time.Now())) },
		"it renews while it is watched":   func(s *store, w *func()) { *w = func() { s.put(leases+"cp3", lease(restored.Add(-59*time.Minute))) } },
		"it makes its lease while watched": func(s *store, w *func()) {
			delete(s.objects, leases+"cp3")
			*w = func() { s.put(leases+"cp3", lease(restored.Add(-59*time.Minute))) }
		},
		"another one of those to go is live": func(s *store, _ *func()) { s.put(leases+"cp2", lease(time.Now())) },
	} {
		t.Run(name, func(t *testing.T) {
			s, watched := dying(), func() {}
			change(s, &watched)
			client := serve(t, s, func(o *kubeapi.Options) {
				o.Sleep = func(ctx context.Context, d time.Duration) error {
					if d >= 40*time.Second {
						watched()
					}
					return atOnce(ctx, d)
				}
			})
			got, err := client.RemoveNodes(t.Context(), []string{"cp2", "cp3"}, kubeapi.Removal{Since: kubeapi.Since{Time: restored}})
			if !errors.Is(err, kubeapi.ErrAlive) || len(got) != 0 || len(s.changes()) != 0 {
				t.Errorf("%v, %v, requests %v", got, err, s.changes())
			}
		})
	}
}

func TestARenewalAtTheLastMomentWins(t *testing.T) {
	s := dying()
	s.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodDelete && r.URL.Path == leases+"cp3" {
			s.put(leases+"cp3", lease(time.Now()))
		}
		return false
	}
	got, err := serve(t, s).RemoveNodes(t.Context(), []string{"cp3"}, kubeapi.Removal{Since: kubeapi.Since{Time: restored}})
	if !errors.Is(err, kubeapi.ErrAlive) || len(got) != 0 || s.get(nodes+"cp3") == nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestNoLeaseIsJudgedByAnAPIServerThatWasAway(t *testing.T) {
	s := dying()
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/readyz" {
			w.WriteHeader(500)
			return true
		}
		return false
	}
	_, err := serve(t, s).RemoveNodes(t.Context(), []string{"cp3"}, kubeapi.Removal{Since: kubeapi.Since{Time: restored}})
	var not *kubeapi.NotReadyError
	if !errors.As(err, &not) || len(s.changes()) != 0 {
		t.Errorf("%v, requests %v", err, s.changes())
	}
}

func TestRemoveNodesGoesOnAfterLostAnswers(t *testing.T) {
	s := dying()
	lost := map[string]bool{}
	s.after = func(r *http.Request) int {
		if r.Method == http.MethodDelete && !lost[r.URL.Path] {
			lost[r.URL.Path] = true
			return http.StatusGatewayTimeout // but it was done
		}
		return 0
	}
	got, err := serve(t, s).RemoveNodes(t.Context(), []string{"cp3"}, kubeapi.Removal{Since: kubeapi.Since{Time: restored}})
	if err != nil || len(got) != 4 || len(lost) != 4 {
		t.Errorf("%v, %v", got, err)
	}
}
