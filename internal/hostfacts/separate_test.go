package hostfacts_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
)

func TestOverridesAreToldByTheirServers(t *testing.T) {
	got := hostfacts.Overrides([]string{
		"/events#https://10.0.0.31:2379;https://10.0.0.32:2379", "events.k8s.io/events#https://10.0.0.32:2379;https://10.0.0.31:2379", "/events#https://10.0.0.31:2379;https://10.0.0.32:2379",
		"coordination.k8s.io/leases#http://127.0.0.1:2381", "nothing", "/x#", "events#http://x",
	})
	want := []hostfacts.Separate{
		{Resources: []string{"/events", "events.k8s.io/events"}, Servers: []string{"https://10.0.0.31:2379", "https://10.0.0.32:2379"}},
		{Resources: []string{"coordination.k8s.io/leases"}, Servers: []string{"http://127.0.0.1:2381"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !got[0].EventsOnly() || got[1].EventsOnly() || got[0].Here() {
		t.Errorf("%+v", got)
	}
	mixed := hostfacts.Overrides([]string{"/events#http://a", "/secrets#http://a"})
	if len(mixed) != 1 || mixed[0].EventsOnly() {
		t.Errorf("an etcd that holds Secrets too may begin empty: %+v", mixed)
	}
}

func FuzzOverrides(f *testing.F) {
	f.Add("/events#https://a:1;https://b:2,apps/deployments#http://c")
	f.Add("#,;,/#;")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range hostfacts.Overrides(strings.Split(text, ",")) {
			if len(s.Servers) == 0 || len(s.Resources) == 0 {
				t.Errorf("%q gives %+v", text, s)
			}
		}
	})
}

func TestAHostOfEtcdAloneNeedsNoEncryptionKeys(t *testing.T) {
	uses := []manifest.KeyUse{{Provider: "secretbox", Key: "key1", Objects: 3}}
	f := hostfacts.Facts{EtcdServers: []hostfacts.EtcdServer{{Unit: "etcd"}}}
	if missing := f.Covers(uses); len(missing) > 0 {
		t.Errorf("%q", missing)
	}
	f.Etcd = &hostfacts.Discovery{Kind: "external"} // a master too
	if missing := f.Covers(uses); len(missing) != 1 {
		t.Errorf("%q", missing)
	}
}
