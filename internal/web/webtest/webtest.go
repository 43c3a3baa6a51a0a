// Package webtest has an agent's status in the states that its page must show
// well, for tests in a browser and without one.
package webtest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/status"
)

// Now is the moment of every state.
var Now = time.Date(2026, 11, 21, 12, 3, 4, 0, time.UTC)

// State is a status with a name that can be a file's.
type State struct {
	Name   string
	Status *status.Status
}

// States returns new copies of all states. All but the first have few runs.
func States() []State {
	states := []State{
		{"well", Well()},
		{"not-loaded", NotLoaded()},
		{"never-a-backup", Never()},
		{"store-down", StoreDown()},
		{"chain-broken", Broken()},
		{"late", Late()},
		{"recording", Recording()},
		{"many-chains", Many(400, 2)},
		{"long-names", Long()},
		{"hostile", Hostile()},
		{"empty", &status.Status{}},
	}
	for _, state := range states[1:] {
		state.Status.Runs = state.Status.Runs[:min(len(state.Status.Runs), 8)]
	}
	return states
}

const (
	near = "s3://backups-eu-central-1/prod"
	far  = "s3://backups-eu-west-3/prod"
)

func ago(d time.Duration) time.Time { return Now.Add(-d) }

// Recording is Well with recorders: one that records, to a store that takes it
// and to one that waits for a full, one that stands by, and one that fails.
func Recording() *status.Status {
	s := Well()
	s.Recorders = []status.Recorder{
		{
			Chain: "etcd/events", Interval: 2 * time.Second, Running: true, Active: true, Why: "recording", Revision: 288_113_900, Recorded: ago(time.Second),
			SpoolBytes: 300 << 20, SpoolLimit: 1 << 30, Wanted: "there is no full backup", Stores: []status.RecorderStore{
				{Store: near, Epoch: 1, Revision: 288_113_899, RecoveryPoint: ago(2 * time.Second), Behind: 4096, Segments: 41_000, RollUps: 20},
				{Store: far, Behind: 300 << 20, Waiting: "waiting for a full backup: the chain has none"},
			},
		},
		{
			Chain: "etcd/main", Interval: 2 * time.Second, Running: true, Why: "standing by: cp1 records", Stores: []status.RecorderStore{
				{Store: near, Epoch: 3, Revision: 1_288_114_001, RecoveryPoint: ago(3 * time.Second)},
				{Store: far, Epoch: 3, Revision: 1_288_100_000, RecoveryPoint: ago(20 * time.Minute), Error: "connection refused"},
			},
		},
		{Chain: "etcd/third", Interval: 2 * time.Second, Error: "open the spool: no space left on device"},
	}
	return s
}

// Well is a control-plane node with two etcd clusters, two stores and some
// weeks of backups.
func Well() *status.Status {
	s := &status.Status{
		Cluster: "prod-eu1-7f3a91c2", Node: "cp2", Version: "v0.4.1", Now: Now, Started: ago(12*24*time.Hour + 3*time.Hour), Loaded: true,
		Stores: []status.Store{
			{URL: near, Answered: ago(40 * time.Second), Skew: 300 * time.Millisecond, SkewKnown: true},
			{URL: far, Answered: ago(40 * time.Second), Skew: -4 * time.Second, SkewKnown: true},
		},
		Chains: []status.Chain{
			chain("etcd/events", true, 6*time.Hour, ago(3*time.Minute), 288_113_092, 610<<20),
			chain("etcd/main", true, 6*time.Hour, ago(3*time.Minute+8*time.Second), 1_288_113_092, 4400<<20),
			chain("hosts/cp1", false, 0, ago(2*time.Hour), 0, 3<<20),
			chain("hosts/cp2", true, 6*time.Hour, ago(11*time.Minute), 0, 3<<20),
			chain("hosts/cp3", false, 0, ago(5*time.Hour), 0, 3<<20),
		},
		Jobs: []status.Job{
			{Kind: status.Full, Target: "etcd/events", Schedule: "0 */6 * * *", Interval: 6 * time.Hour, Due: Now.Add(5*time.Hour + 56*time.Minute + 56*time.Second), LastAttempt: ago(3 * time.Minute), LastSuccess: ago(3 * time.Minute)},
			{Kind: status.Full, Target: "etcd/main", Schedule: "0 */6 * * *", Interval: 6 * time.Hour, Due: Now.Add(5*time.Hour + 56*time.Minute + 56*time.Second), LastAttempt: ago(3 * time.Minute), LastSuccess: ago(2 * time.Minute)},
			{Kind: status.Files, Target: "hosts/cp2", Schedule: "@every 6h", Interval: 6 * time.Hour, Running: true, LastAttempt: ago(9 * time.Second), LastSuccess: ago(6*time.Hour + 11*time.Minute), Why: "due"},
			{Kind: status.Prune, Schedule: "45 4 * * *", Interval: 24 * time.Hour, Due: Now.Add(16*time.Hour + 41*time.Minute), LastAttempt: ago(7*time.Hour + 18*time.Minute), LastSuccess: ago(7*time.Hour + 18*time.Minute), Why: "done by cp1, the steward"},
			{Kind: status.Verify, Schedule: "30 4 * * *", Interval: 24 * time.Hour, Due: Now.Add(16*time.Hour + 26*time.Minute), LastAttempt: ago(7*time.Hour + 33*time.Minute), LastSuccess: ago(7*time.Hour + 2*time.Minute)},
		},
		Certificates: []status.Certificate{
			{Name: "/etc/kubernetes/pki/apiserver.crt", Subject: "CN=kube-apiserver", NotAfter: Now.Add(87*24*time.Hour + 3*time.Hour)},
			{Name: "/etc/kubernetes/admin.conf#kubernetes-admin", Subject: "CN=kubernetes-admin,O=kubeadm:cluster-admins", NotAfter: Now.Add(87*24*time.Hour + 4*time.Hour)},
			{Name: "/etc/kubernetes/pki/etcd/server.crt", Subject: "CN=cp2", NotAfter: Now.Add(90 * 24 * time.Hour)},
			{Name: "/etc/kubernetes/pki/ca.crt", Subject: "CN=kubernetes", NotAfter: Now.Add(3200 * 24 * time.Hour), CA: true},
		},
		Problems: []status.Problem{},
	}
	s.Runs = runs()
	return s
}

func chain(name string, ours bool, interval time.Duration, at time.Time, revision, plain int64) status.Chain {
	c := status.Chain{Name: name, Ours: ours, Interval: interval, RecoveryPoint: at}
	for _, store := range []string{near, far} {
		in := status.InStore{
			Store: store, Read: ago(40 * time.Second), Head: 1412, RecoveryPoint: at, Newest: at, NewestWhole: at, Revision: revision,
			PlainBytes: plain, StoredBytes: plain * 27 / 100, Previous: plain * 26 / 100, Backups: 43, TotalBytes: plain * 43 * 26 / 100, Valid: true, Failures: []string{},
		}
		if revision > 0 {
			in.NewestProved, in.Keys = at, 48_211
		}
		if store == near {
			in.RetainUntil = at.Add(30 * 24 * time.Hour)
		}
		c.InStores = append(c.InStores, in)
	}
	return c
}

// runs are 20 days of work with a bad day in between.
func runs() []status.Run {
	var list []status.Run
	for i := range 79 {
		slot := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).Add(-time.Duration(i) * 6 * time.Hour)
		grow := int64(79 - i)
		full := status.Run{
			Kind: status.Full, Target: "etcd/main", Started: slot, Duration: time.Duration(38+i*7%11) * time.Second, Result: status.Succeeded,
			ID: fmt.Sprintf("20261121T1200%02dZ-full", i), Revision: 1_288_113_092 - int64(i)*10_000, PlainBytes: 4000<<20 + grow<<22, StoredBytes: 1000<<20 + grow<<21,
			Message: "committed to 2 stores",
		}
		switch i {
		case 9, 10:
			full.Result, full.Reason, full.Duration, full.StoredBytes, full.PlainBytes = status.Failed, status.StoreDown, 12*time.Second, 0, 0
			full.Message = "0 of 2 stores answered: head bucket: connection refused"
		case 11:
			full.Degraded = []string{"no quorum: the snapshot of one member was taken as it is"}
		case 20:
			full.Result, full.Message = status.Overtaken, "cp1 had committed a newer one"
		}
		files := status.Run{
			Kind: status.Files, Target: "hosts/cp2", Started: slot.Add(15 * time.Minute), Duration: time.Duration(1400+i*37%400) * time.Millisecond,
			Result: status.Succeeded, PlainBytes: 3 << 20, StoredBytes: 900 << 10, Message: "214 files",
		}
		if i > 0 {
			list = append(list, files)
		}
		list = append(list, full)
		if i%4 == 1 {
			list = append(list, status.Run{
				Kind: status.Verify, Started: slot.Add(-90 * time.Minute), Duration: 31*time.Minute + time.Duration(i)*time.Second, Result: status.Succeeded,
				Message: "every byte of 5 chains in 2 stores is what it must be",
			})
			list = append(list, status.Run{Kind: status.Prune, Started: slot.Add(-95 * time.Minute), Duration: 9 * time.Second, Result: status.Succeeded, Message: "removed 4 backups"})
		}
	}
	return list[:min(len(list), status.MaxRuns)]
}

// NotLoaded is an agent seconds after its start.
func NotLoaded() *status.Status {
	s := Well()
	s.Loaded, s.Started = false, ago(4*time.Second)
	s.Chains, s.Runs, s.Problems, s.Certificates = []status.Chain{}, []status.Run{}, []status.Problem{}, []status.Certificate{}
	for i := range s.Stores {
		s.Stores[i] = status.Store{URL: s.Stores[i].URL}
	}
	for i := range s.Jobs {
		s.Jobs[i] = status.Job{Kind: s.Jobs[i].Kind, Target: s.Jobs[i].Target, Schedule: s.Jobs[i].Schedule, Interval: s.Jobs[i].Interval, Why: "the stores' first answer"}
	}
	return s
}

// Never is a new installation that can't reach etcd.
func Never() *status.Status {
	s := Well()
	s.Started, s.Runs = ago(9*time.Minute), nil
	s.Chains = s.Chains[1:2]
	s.Chains[0].RecoveryPoint = time.Time{}
	for i := range s.Chains[0].InStores {
		s.Chains[0].InStores[i] = status.InStore{Store: s.Stores[i].URL, Read: ago(40 * time.Second), Valid: true}
	}
	s.Jobs = []status.Job{{
		Kind: status.Full, Target: "etcd/main", Schedule: "0 */6 * * *", Interval: 6 * time.Hour, Due: ago(9 * time.Minute), LastAttempt: ago(70 * time.Second), Why: "retry in 2 min",
	}}
	for i := range 4 {
		s.Runs = append(s.Runs, status.Run{
			Kind: status.Full, Target: "etcd/main", Started: ago(time.Duration(70+i*120) * time.Second), Duration: 10 * time.Second,
			Result: status.Failed, Reason: status.EtcdDown, Message: "etcd main: no member answers: dial tcp 127.0.0.1:2379: connection refused",
		})
	}
	s.Problems = []status.Problem{{Severity: status.Critical, Subject: "etcd/main", Message: "There is no backup of it in any store. The last try failed: no member answers. Look at etcd's log on this node; lifeboat doctor checks the rest."}}
	return s
}

// StoreDown is one of two stores not answering for three hours.
func StoreDown() *status.Status {
	s := Well()
	s.Stores[1].Error = "list: Get \"https://s3.eu-west-3.example.net/backups-eu-west-3\": dial tcp 203.0.113.7:443: i/o timeout"
	s.Stores[1].Answered = ago(3*time.Hour + 4*time.Minute)
	s.Stores[1].SkewKnown = false
	for i := range s.Chains {
		in := &s.Chains[i].InStores[1]
		in.Read = s.Stores[1].Answered
		in.Newest = in.Newest.Add(-6 * time.Hour)
		in.RecoveryPoint, in.NewestWhole, in.NewestProved = in.Newest, in.Newest, in.Newest
		in.Head--
	}
	s.Problems = []status.Problem{{Severity: status.Warning, Subject: far, Message: "The store has not answered for 3 h. Backups go to the other one. Check the network and the credentials; lifeboat doctor asks it again."}}
	return s
}

// Broken is a chain that somebody changed in one store, rolled back in another.
func Broken() *status.Status {
	s := Well()
	in := &s.Chains[1].InStores[0]
	in.Valid = false
	in.Failures = []string{
		"manifest 1409: the signature is not by a key of the trust file",
		"manifest 1410 names a predecessor that is not there: 9f2c1e77d0b1",
	}
	s.Chains[1].InStores[1].Regressed = true
	s.Chains[1].InStores[1].Failures = []string{"head 1412 was seen, and now the head is 1390: the store was rolled back"}
	s.Certificates[0].NotAfter = Now.Add(5 * 24 * time.Hour)
	s.Certificates[1].NotAfter = ago(time.Hour)
	s.Problems = []status.Problem{
		{Severity: status.Critical, Subject: "etcd/main in " + near, Message: "The chain is broken: the signature of manifest 1409 is not by a key of the trust file. Somebody may have changed the store. Find out who could write to it, then start a new chain."},
		{Severity: status.Critical, Subject: "etcd/main in " + far, Message: "The store was rolled back from 1412 to 1390. Look for a restored bucket or a second writer."},
		{Severity: status.Warning, Subject: "/etc/kubernetes/pki/apiserver.crt", Message: "The certificate ends in 5 days. Renew it: kubeadm certs renew all."},
	}
	return s
}

// Late is a cluster whose backups stopped two days ago; its etcd still answers.
func Late() *status.Status {
	s := Well()
	for i := range s.Chains[:2] {
		c := &s.Chains[i]
		c.RecoveryPoint = ago(50*time.Hour + 12*time.Minute)
		for j := range c.InStores {
			in := &c.InStores[j]
			in.RecoveryPoint, in.Newest, in.NewestWhole, in.NewestProved = c.RecoveryPoint, c.RecoveryPoint, ago(56*time.Hour), ago(56*time.Hour)
			in.Late = ago(44 * time.Hour)
		}
	}
	for i := range s.Jobs[:2] {
		s.Jobs[i].Due, s.Jobs[i].LastSuccess, s.Jobs[i].LastAttempt, s.Jobs[i].Why = ago(44*time.Hour), ago(50*time.Hour), ago(2*time.Minute), "retry in 13 min"
	}
	s.Problems = []status.Problem{
		{Severity: status.Critical, Subject: "etcd/events", Message: "The newest backup is 50 h old and one is planned every 6 h."},
		{Severity: status.Critical, Subject: "etcd/main", Message: "The newest backup is 50 h old and one is planned every 6 h."},
	}
	return s
}

// Many is a repository of many nodes, in so many stores.
func Many(chains, stores int) *status.Status {
	s := Well()
	s.Stores = s.Stores[:0]
	for i := range stores {
		s.Stores = append(s.Stores, status.Store{URL: fmt.Sprintf("s3://backups-%02d/fleet", i), Answered: ago(time.Minute)})
	}
	for i := range chains {
		s.Chains = append(s.Chains, chain(fmt.Sprintf("hosts/node-%04d", i), false, 0, ago(time.Duration(i)*time.Minute), 0, 3<<20))
	}
	s.Chains[17].InStores[0].Valid = false
	for i := range s.Chains {
		first := s.Chains[i].InStores[0]
		s.Chains[i].InStores = nil
		for j := range stores {
			first.Store = s.Stores[j].URL
			s.Chains[i].InStores = append(s.Chains[i].InStores, first)
		}
	}
	s.Problems = []status.Problem{{Severity: status.Critical, Subject: s.Chains[17].Name, Message: "The chain is broken in " + s.Stores[0].URL + "."}}
	return s
}

// Long has names as long as anybody can make them, without a place to break.
func Long() *status.Status {
	s := StoreDown()
	long := func(start string) string { return start + strings.Repeat("abcdefghij", 20) }
	s.Cluster, s.Node, s.Version = long("cluster-"), long("node-"), long("v1.2.3-")
	for i := range s.Stores {
		s.Stores[i].URL = long("s3://bucket/")
		s.Stores[i].Error = long("error-")
	}
	for i := range s.Chains {
		s.Chains[i].Name = long(s.Chains[i].Name)
		for j := range s.Chains[i].InStores {
			in := &s.Chains[i].InStores[j]
			in.Store, in.Failures = s.Stores[j].URL, []string{long("failure-")}
			in.Revision, in.Keys, in.Head, in.TotalBytes = 1<<62, 1<<62, 1<<62, 1<<62
		}
	}
	for i := range s.Jobs {
		s.Jobs[i].Target, s.Jobs[i].Schedule, s.Jobs[i].Why = long("etcd/"), long("@every "), long("why-")
	}
	for i := range s.Runs {
		s.Runs[i].Target, s.Runs[i].Message = long("etcd/"), long("message-")
	}
	for i := range s.Certificates {
		s.Certificates[i].Name, s.Certificates[i].Subject = long("/etc/"), long("CN=")
	}
	s.Problems = append(s.Problems, status.Problem{Severity: status.Critical, Subject: long("subject-"), Message: long("message-")})
	return s
}

// Attack is markup that would run if it were not escaped; with it come
// characters that turn text around.
const Attack = `"><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'` + "\u202e\x00{{.}}</style></title></svg>\xff"

// Hostile has Attack in every text.
func Hostile() *status.Status {
	s := Broken()
	s.Cluster, s.Node, s.Version = Attack, Attack, Attack
	for i := range s.Stores {
		s.Stores[i].URL, s.Stores[i].Error = Attack, Attack
	}
	for i := range s.Chains {
		s.Chains[i].Name = Attack
		for j := range s.Chains[i].InStores {
			s.Chains[i].InStores[j].Store = Attack
			s.Chains[i].InStores[j].Failures = slices.Repeat([]string{Attack}, 9)
		}
	}
	s.Recorders = []status.Recorder{{Chain: Attack, Why: Attack, Error: Attack, Stores: []status.RecorderStore{{Store: Attack, Error: Attack, Waiting: Attack}}}}
	for i := range s.Jobs {
		s.Jobs[i].Kind, s.Jobs[i].Target, s.Jobs[i].Schedule, s.Jobs[i].Why = status.Kind(Attack), Attack, Attack, Attack
	}
	for i := range s.Runs {
		r := &s.Runs[i]
		r.Kind, r.Target, r.Result, r.Reason, r.Message = status.Kind(Attack), Attack, status.Result(Attack), status.Reason(Attack), Attack
		r.Degraded = []string{Attack}
	}
	for i := range s.Certificates {
		s.Certificates[i].Name, s.Certificates[i].Subject = Attack, Attack
	}
	for i := range s.Problems {
		s.Problems[i] = status.Problem{Severity: status.Severity(Attack), Subject: Attack, Message: Attack}
	}
	return s
}
