package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"lifeboat/internal/manifest"
)

func TestWhatChangedSinceTheLastLookIsToldOnce(t *testing.T) {
	f := NewFacts()
	quiet := clusterFacts{members: "a; b"}
	old, younger := memberFacts{version: "3.5.21"}, memberFacts{version: "3.6.4", storage: "3.5.0"}
	look := func(what string, member uint64, cluster clusterFacts, now memberFacts, want ...string) {
		t.Helper()
		if got := f.changes(manifest.EtcdID(member), cluster, now); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
		f.note(manifest.EtcdID(member), cluster, now)
	}
	look("the first look", 1, quiet, old)
	look("nothing new", 1, quiet, old)
	look("another member, of another version", 2, quiet, younger)
	look("the first one again", 1, quiet, old)
	look("it was upgraded while it was not watched", 1, quiet, younger, "the server's version: 3.6.4, before: 3.5.21", "the storage version: 3.5.0, before: none")
	look("the cluster's version follows", 1, quiet, memberFacts{version: "3.6.4", storage: "3.6.0"}, "the storage version: 3.6.0, before: 3.5.0")
	alarmed := clusterFacts{members: "a; b", alarms: "NOSPACE"}
	look("an alarm, seen by another member", 2, alarmed, younger, "alarms: NOSPACE, before: none")
	look("it is known", 1, alarmed, memberFacts{version: "3.6.4", storage: "3.6.0"})
	look("a downgrade", 1, alarmed, memberFacts{version: "3.6.4", storage: "3.6.0", downgrade: "to 3.5.0"}, "a downgrade: to 3.5.0, before: none")
	look("a member less", 2, clusterFacts{members: "b", alarms: "NOSPACE"}, younger, "the members: b, before: a; b")
	f.Forget()
	look("of another history", 1, quiet, old)
}

func TestWhatChangedSinceAFullIsTold(t *testing.T) {
	full := &manifest.Etcd{
		MemberID: 1, Version: "3.5.21", AuthRevision: 4, Alarms: []string{"NOSPACE on member 1"},
		Members: []manifest.Member{{ID: 1, PeerURLs: []string{"http://b", "http://a"}}, {ID: 2, Learner: true}},
	}
	same := clusterFacts{members: members(full.Members), alarms: "alarm:NOSPACE"}
	cases := []struct {
		name    string
		member  manifest.EtcdID
		cluster clusterFacts
		now     memberFacts
		want    []string
	}{
		{"nothing", 1, same, memberFacts{version: "3.5.21", storage: "3.5.0"}, nil},
		{"the version", 1, same, memberFacts{version: "3.6.4"}, []string{"the server's version: 3.6.4, before: 3.5.21"}},
		{"a member whose version the full doesn't tell", 2, same, memberFacts{version: "3.6.4"}, nil},
		{"the alarm ended", 1, clusterFacts{members: same.members}, memberFacts{version: "3.5.21"}, []string{"alarms: none, before: NOSPACE on member 1"}},
		{"the learner was promoted", 1, clusterFacts{members: members([]manifest.Member{full.Members[0], {ID: 2}}), alarms: same.alarms}, memberFacts{version: "3.5.21"},
			[]string{"the members: 1 http://a http://b; 2 , before: 1 http://a http://b; 2  (learner)"}},
	}
	for _, c := range cases {
		f := NewFacts()
		f.Seed(full)
		if got := f.changes(c.member, c.cluster, c.now); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		f.note(c.member, c.cluster, c.now)
		f.Seed(full) // it is known better by now
		if again := f.changes(c.member, c.cluster, c.now); again != nil {
			t.Errorf("%s: told twice: %q", c.name, again)
		}
	}
	f := NewFacts()
	f.Seed(nil)
	if got := f.changes(1, same, memberFacts{}); got != nil || f.authChange(9) != "" {
		t.Errorf("without a full: %q", got)
	}
	f.Seed(full)
	if f.authChange(4) != "" || f.authChange(3) != "" || f.authChange(5) == "" {
		t.Error("the revision of users and roles")
	}
	f.noteAuth(5)
	f.noteAuth(4) // a member that lags
	if f.authChange(5) != "" {
		t.Error("told twice")
	}
}

func TestAMemberWithoutLeaderHasNoAlarm(t *testing.T) {
	if got := alarms(&pb.StatusResponse{Errors: []string{"etcdserver: no leader"}}); got != "" {
		t.Errorf("%q", got)
	}
	if got := alarms(&pb.StatusResponse{Errors: []string{"b", "etcdserver: no leader", "a"}}); got != "a, b" {
		t.Errorf("%q", got)
	}
}

func TestOnlyAMemberThatIsThereKnowsNoLeader(t *testing.T) {
	for _, c := range []struct {
		err  error
		want error
	}{
		{rpctypes.ErrNoLeader, ErrNoLeader},
		{fmt.Errorf("read: %w", rpctypes.ErrTimeout), ErrNoLeader},
		{fmt.Errorf("read: %w", context.DeadlineExceeded), ErrNoLeader},
		{status.Error(codes.DeadlineExceeded, "slow"), ErrNoLeader},
		{status.Error(codes.Unavailable, "connection refused"), ErrLost},
		{errors.New("down"), ErrLost},
	} {
		if got := Unreadable(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}
