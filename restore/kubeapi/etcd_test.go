package kubeapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/restore/kubeapi"
)

func connect(t *testing.T, c *cluster.Cluster) *kubeapi.Etcd {
	t.Helper()
	e, err := kubeapi.NewEtcd(kubeapi.EtcdOptions{Endpoints: c.Endpoints(), TLS: c.TLS(), Limit: 3 * time.Second, Pause: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func put(t *testing.T, client *clientv3.Client, key, value string) {
	t.Helper()
	if _, err := client.Put(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

func TestMembersAndTheirHashes(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{Members: 3, TLS: true})
			client, e := c.Client(), connect(t, c)
			for i := range 50 {
				put(t, client, fmt.Sprintf("/registry/pods/%d", i%20), strings.Repeat("x", i))
			}
			members, err := e.Members(t.Context())
			if err != nil || len(members) != 3 {
				t.Fatal(members, err)
			}
			for i, m := range members {
				if m.Name != fmt.Sprintf("m%d", i) || !m.Healthy() || !strings.HasPrefix(m.Version, version) || m.Endpoint != c.Members[i].Endpoint {
					t.Errorf("%+v", m)
				}
			}
			check := func(what string) {
				t.Helper()
				a, err := e.Agree(t.Context(), nil)
				if err != nil || len(a.Members) != 3 || a.Members[0].Hash == 0 {
					t.Fatalf("%s: %+v, %v", what, a, err)
				}
			}
			check("never compacted")
			// All is compacted and nothing written since: members may have kept a hash.
			r, err := client.Get(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Compact(t.Context(), r.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
				t.Fatal(err)
			}
			check("just compacted")
			c.Restart(1)
			check("one was restarted and has forgotten its hashes")
			put(t, client, "a", "b")
			check("and something was written")

			c.Kill(2)
			if members, err = e.Members(t.Context()); err != nil || members[2].Failed == "" || members[2].Healthy() {
				t.Errorf("one is dead: %+v, %v", members, err)
			}
			if _, err := e.Agree(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "member m2") {
				t.Errorf("one is dead: %v", err)
			}
			c.Kill(1)
			if _, err := e.Members(t.Context()); err == nil {
				t.Error("members were listed without a quorum")
			}
		})
	}
}

func TestClearNoSpace(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			const quota = 16 << 20
			c := cluster.StartBinary(t, version, cluster.Options{Members: 2, Args: []string{"--quota-backend-bytes", fmt.Sprint(quota)}})
			client, e := c.Client(), connect(t, c)
			if got, err := e.ClearNoSpace(t.Context(), nil); err != nil || len(got.Changes) != 0 || len(got.Left) != 0 {
				t.Fatalf("without an alarm: %+v, %v", got, err)
			}
			value := strings.Repeat("v", 512<<10)
			for i := 0; ; i++ {
				if _, err := client.Put(t.Context(), "/registry/pods/one", value); err != nil {
					break
				}
				if i > 200 {
					t.Fatal("the quota is never reached")
				}
			}
			alarms, err := e.Alarms(t.Context())
			if err != nil || len(alarms) == 0 || alarms[0].Kind != "NOSPACE" {
				t.Fatal(alarms, err)
			}
			var told []string
			got, err := e.ClearNoSpace(t.Context(), func(text string) { told = append(told, text) })
			if err != nil || len(got.Left) != 0 {
				t.Fatalf("%+v, %v", got, err)
			}
			var order []string
			for _, c := range got.Changes {
				word, _, _ := strings.Cut(c.What, " ")
				order = append(order, strings.TrimSuffix(word, ":"))
			}
			if order = slices.Compact(order); !slices.Equal(order, []string{"compacted", "defragmented", "alarm"}) {
				t.Errorf("%v", got.Changes)
			}
			if len(told) < 4 {
				t.Errorf("told %q", told)
			}
			put(t, client, "a", "b")
			members, err := e.Members(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range members {
				if m.DBBytes > quota/2 || !m.Healthy() {
					t.Errorf("%+v", m)
				}
			}
			// The leader is the last to be defragmented.
			if last := got.Changes[2].Object; !strings.Contains(last, members[0].Leader.String()) {
				t.Errorf("the leader is %s; %v", members[0].Leader, got.Changes)
			}
		})
	}
}

func TestADatabaseThatStaysFullIsTold(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{Args: []string{"--quota-backend-bytes", fmt.Sprint(16 << 20)}})
	client, e := c.Client(), connect(t, c)
	for i := 0; ; i++ {
		if _, err := client.Put(t.Context(), fmt.Sprint(i), strings.Repeat("v", 512<<10)); err != nil {
			break
		}
	}
	got, err := e.ClearNoSpace(t.Context(), nil)
	if err == nil && (len(got.Left) != 1 || !strings.Contains(got.Left[0], "raise --quota-backend-bytes")) {
		t.Errorf("%+v", got)
	}
	if err != nil && !strings.Contains(err.Error(), "raise --quota-backend-bytes") {
		t.Error(err)
	}
}

func TestADeadMemberKeepsTheAlarm(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3, Args: []string{"--quota-backend-bytes", fmt.Sprint(16 << 20)}})
	client, e := c.Client(), connect(t, c)
	for {
		if _, err := client.Put(t.Context(), "one", strings.Repeat("v", 512<<10)); err != nil {
			break
		}
	}
	members, err := e.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	follower := slices.IndexFunc(members, func(m kubeapi.EtcdMember) bool { return m.ID != m.Leader })
	c.Kill(follower)
	got, err := e.ClearNoSpace(t.Context(), nil)
	if err == nil || len(got.Changes) != 0 || !strings.Contains(err.Error(), "member "+members[follower].Name) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Nothing of etcd's is answered under it, so nobody can tell what the data is worth.
func TestACorruptMemberIsNoHealthyOne(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{})
			client, e := c.Client(), connect(t, c)
			members, err := e.Members(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			raise := &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: uint64(members[0].ID), Alarm: etcdserverpb.AlarmType_CORRUPT}
			if _, err := etcdserverpb.NewMaintenanceClient(client.ActiveConnection()).Alarm(t.Context(), raise); err != nil {
				t.Fatal(err)
			}
			if _, err := e.ClearNoSpace(t.Context(), nil); !errors.Is(err, kubeapi.ErrCorrupt) || !strings.Contains(err.Error(), members[0].ID.String()) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestStaleMasters(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{})
	client, e := c.Client(), connect(t, c)
	for _, key := range []string{"10.0.0.11", "10.0.0.12", "fd00::13", "junk"} {
		put(t, client, "/registry/masterleases/"+key, "x")
	}
	put(t, client, "/registry/masterleases2/10.0.0.99", "x")
	put(t, client, "/other/masterleases/10.0.0.99", "x")
	alive := []netip.Addr{netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("fd00::13")}

	if _, err := e.StaleMasters(t.Context(), nil, ""); err == nil {
		t.Error("all API servers were taken for gone")
	}
	if other, err := e.StaleMasters(t.Context(), alive, "other"); err != nil || len(other) != 1 {
		t.Errorf("another prefix: %v, %v", other, err)
	}
	stale, err := e.StaleMasters(t.Context(), alive, "/registry")
	if err != nil || len(stale) != 2 || stale[0].Address.String() != "10.0.0.12" || stale[1].Address.IsValid() {
		t.Fatalf("%v, %v", stale, err)
	}
	put(t, client, stale[1].Key, "written again") // by somebody who lives
	done, err := e.DeleteMasters(t.Context(), stale)
	if !errors.Is(err, kubeapi.ErrAlive) || !strings.Contains(err.Error(), "masterleases/junk") || len(done) != 1 {
		t.Errorf("%v, %v", done, err)
	}
	if done, err = e.DeleteMasters(t.Context(), stale[:1]); err != nil || len(done) != 0 {
		t.Errorf("again: %v, %v", done, err)
	}
	r, err := client.Get(t.Context(), "/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || r.Count != 5 {
		t.Errorf("%d keys are left, %v", r.Count, err)
	}
}

func TestEtcdThatIsNotThereIsAnErrorInTime(t *testing.T) {
	e, err := kubeapi.NewEtcd(kubeapi.EtcdOptions{Endpoints: []string{"http://127.0.0.1:1"}, Limit: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	start := time.Now()
	for _, ask := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := e.Members(ctx); return err },
		func(ctx context.Context) error { _, err := e.Alarms(ctx); return err },
		func(ctx context.Context) error { _, err := e.Agree(ctx, nil); return err },
		func(ctx context.Context) error { _, err := e.ClearNoSpace(ctx, nil); return err },
	} {
		if err := ask(t.Context()); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
			t.Error(err)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if _, err := kubeapi.NewEtcd(kubeapi.EtcdOptions{}); err == nil {
		t.Error("no endpoints were taken")
	}
}
