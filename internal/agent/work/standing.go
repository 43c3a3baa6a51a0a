package work

import (
	"context"
	"slices"
	"strings"

	"lifeboat/backup/etcd"
	"lifeboat/internal/agent"
	"lifeboat/internal/agent/turns"
	"lifeboat/internal/manifest"
	"lifeboat/internal/session"
	"lifeboat/internal/status"
)

// Standing asks an etcd cluster for this agent's place in the order of turns.
func (w *Work) Standing(ctx context.Context, cluster string) (*agent.Standing, error) {
	w.mu.Lock()
	c, nodes := w.config, w.nodes
	w.mu.Unlock()
	e, err := find(c, cluster)
	if err != nil {
		return nil, err
	}
	members, err := etcd.Open(session.EtcdConfig(e), session.Limits(c), w.session.Events)
	if err != nil {
		return nil, agent.Because(status.Config, err)
	}
	defer members.Close()
	survey, err := members.Survey(ctx)
	if err != nil {
		return nil, because(ctx, status.EtcdDown, err)
	}
	s := &agent.Standing{Quorum: survey.FloorErr == nil}
	place, local := turns.Among(among(survey, e.Endpoints))
	if !local {
		place = turns.Beside(c.Node, nodes)
	}
	s.Rank, s.First = place.Rank, place.First
	return s, nil
}

// among tells the members as the order of turns wants them.
func among(survey *etcd.Survey, endpoints []string) []turns.Member {
	own := own(survey, endpoints)
	var list []turns.Member
	for _, m := range survey.Members {
		list = append(list, turns.Member{
			ID: uint64(m.ID), Name: m.Name, Local: m.ID == own, Answers: m.Err == nil,
			Leader: m.Leader != 0, Healthy: m.Err == nil && m.Leader != 0 && len(m.Errors) == 0, Learner: m.Learner,
		})
	}
	return list
}

// own is the member at an address of this machine; 0 if there is none. Of
// several the one that the first configured endpoint leads to, as the
// configuration says of endpoints.
func own(survey *etcd.Survey, endpoints []string) manifest.EtcdID {
	var local []etcd.MemberState
	for _, m := range survey.Members {
		if m.Local {
			local = append(local, m)
		}
	}
	for _, endpoint := range endpoints {
		for _, m := range local {
			if m.Endpoint == endpoint || slices.Contains(m.ClientURLs, strings.TrimSuffix(endpoint, "/")) {
				return m.ID
			}
		}
	}
	if len(local) > 0 {
		return local[0].ID
	}
	return 0
}
