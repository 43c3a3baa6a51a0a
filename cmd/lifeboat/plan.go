package main

import (
	"lifeboat/internal/manifest"
	"lifeboat/restore"
	"lifeboat/restore/files"
)

// stepJSON is one step of a plan for etcd.
type stepJSON struct {
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

// etcdPlanJSON is what a dry run prints of a restore of etcd.
type etcdPlanJSON struct {
	ID        manifest.ID       `json:"id"`
	Revision  manifest.Revision `json:"revision"` // that is restored, without the bump
	DataDir   string            `json:"dataDir"`
	Token     string            `json:"token"`
	Bump      uint64            `json:"bump"`
	RestoreID string            `json:"restoreID"`
	Summary   string            `json:"summary"`
	Steps     []stepJSON        `json:"steps"`
	Warnings  []string          `json:"warnings"`
	Notes     []string          `json:"notes"`
	Point     pointJSON         `json:"point"`
	Survivor  *survivorJSON     `json:"survivor,omitempty"` // where the state comes from, if not from a backup
}

func describeEtcdPlan(plan *restore.EtcdPlan, dataDir string) etcdPlanJSON {
	out := etcdPlanJSON{
		ID: backupOf(plan), Revision: plan.Choice.Revision, DataDir: dataDir, Token: plan.Token, Bump: plan.Bump,
		RestoreID: plan.RestoreID, Summary: plan.Summary, Steps: []stepJSON{},
		Warnings: orEmpty(plan.Warnings), Notes: orEmpty(plan.Notes), Point: describePoint(plan.Choice), Survivor: describeSurvivor(plan.Survivor),
	}
	for _, s := range plan.Steps {
		out.Steps = append(out.Steps, stepJSON{s.Title, s.Detail})
	}
	return out
}

// fileStepJSON is what happens to one name.
type fileStepJSON struct {
	Name   string       `json:"name"`
	Type   string       `json:"type"`
	Action files.Action `json:"action"`
	Size   int64        `json:"size"`
}

// filesPlanJSON is what a dry run prints of a restore of files.
type filesPlanJSON struct {
	ID        manifest.ID    `json:"id"`
	Root      string         `json:"root"`
	RestoreID string         `json:"restoreID"`
	Aside     string         `json:"aside"` // where what is replaced would go
	Files     []fileStepJSON `json:"files"`
	Left      []string       `json:"left"`
	Warnings  []string       `json:"warnings"`
}

func describeFilesPlan(m *manifest.Manifest, options files.Options, plan *files.Plan) filesPlanJSON {
	out := filesPlanJSON{
		ID: m.ID, Root: options.Root, RestoreID: options.RestoreID, Aside: plan.Aside(),
		Files: []fileStepJSON{}, Left: orEmpty(plan.Left), Warnings: orEmpty(plan.Warnings),
	}
	for _, s := range plan.Steps {
		out.Files = append(out.Files, fileStepJSON{s.Name, typeName(s.Type), s.Action, s.Size})
	}
	return out
}
