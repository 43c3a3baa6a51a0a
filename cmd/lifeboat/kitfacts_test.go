package main

import (
	"testing"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/recoverykit"
)

func TestMastersAndHostsOfEtcdAreToldApart(t *testing.T) {
	const master, etcd, unknown = recoverykit.ControlPlane, recoverykit.EtcdHost, recoverykit.Unknown
	type node struct {
		files, member bool // of the main etcd
		facts, want   recoverykit.Kind
	}
	for name, c := range map[string]struct {
		nodes map[string]node
		warns bool
	}{
		"etcd on the masters": {nodes: map[string]node{"a": {true, true, unknown, master}, "b": {true, true, unknown, master}}},
		"one has no files":    {nodes: map[string]node{"a": {true, true, unknown, master}, "b": {false, true, unknown, master}}},
		"etcd without agents": {nodes: map[string]node{"a": {true, false, unknown, master}, "e": {false, true, unknown, etcd}}},
		"nothing but members": {nodes: map[string]node{"a": {false, true, unknown, master}}},
		"both have files, and no identity": {nodes: map[string]node{
			"a": {true, false, unknown, unknown}, "e": {true, true, unknown, unknown}}, warns: true},
		"both have files, and facts": {nodes: map[string]node{
			"a": {true, false, master, master}, "e": {true, true, etcd, etcd}, "f": {false, true, unknown, etcd}}},
		"a master that joined after the backup of etcd": {nodes: map[string]node{
			"a": {true, true, master, master}, "b": {true, false, master, master}, "c": {false, true, unknown, unknown}}},
		"events on a host without an agent": {nodes: map[string]node{
			"a": {true, true, unknown, master}, "b": {false, true, unknown, master}, "events": {false, false, unknown, unknown}}},
	} {
		kit := &recoverykit.Kit{}
		nodes, members := map[string]*recoverykit.Node{}, map[string]bool{}
		for id, n := range c.nodes {
			nodes[id] = &recoverykit.Node{Name: id, Kind: n.facts}
			if n.files {
				nodes[id].ID = "jv2qunwfwwrlubjnnlxeoxtl3i"
			}
			members[id] = n.member
		}
		(&gathering{kit: kit}).tellApart(nodes, members, map[string]bool{"events": true})
		for id, n := range c.nodes {
			if got := nodes[id].Kind; got != n.want {
				t.Errorf("%s: %s is %q, want %q", name, id, got, n.want)
			}
		}
		if warned := len(kit.Warnings) > 0; warned != c.warns {
			t.Errorf("%s: %q", name, kit.Warnings)
		}
	}
}

func TestFactsSayWhatANodeIs(t *testing.T) {
	server := []hostfacts.EtcdServer{{Name: "e1"}}
	for want, f := range map[recoverykit.Kind]*hostfacts.Facts{
		recoverykit.ControlPlane: {Etcd: &hostfacts.Discovery{Kind: "external"}, EtcdServers: server},
		recoverykit.EtcdHost:     {EtcdServers: server},
		recoverykit.Unknown:      {},
	} {
		if got := kindOf(f); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
