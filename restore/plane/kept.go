package plane

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"

	"lifeboat/restore/datadir"
	"lifeboat/restore/journal"
)

// Kept are the folders that exist and hold what a restore has taken out of its
// place, by its journal: replaced files and etcd's old member, the manifests of the
// fenced pods, and what an abort put away.
func Kept(r journal.Record) (folders []string) {
	add := func(list ...string) {
		for _, path := range list {
			if info, err := os.Lstat(path); err == nil && info.IsDir() && !slices.Contains(folders, path) {
				folders = append(folders, path)
			}
		}
	}
	for _, s := range r.Steps {
		switch s.Name {
		case stepFence:
			var n fenceNote
			if json.Unmarshal(s.Note, &n) == nil {
				add(n.Aside)
			}
		case stepFiles:
			var n filesNote
			if json.Unmarshal(s.Note, &n) == nil {
				add(filepath.Join(n.AsideDir, n.ID), filepath.Join(n.AsideDir, n.ID+".undone"))
			}
		case stepEtcd, stepEvents:
			var n etcdNote
			if json.Unmarshal(s.Note, &n) == nil {
				add(filepath.Join(n.AsideDir, n.ID), filepath.Join(n.DataDir, datadir.AsideName, n.ID))
			}
		case stepPods:
			var n podsNote
			if json.Unmarshal(s.Note, &n) == nil {
				add(n.Undone)
			}
		}
	}
	return folders
}

// DataDirs are the data directories of etcd that a restore has worked on.
func DataDirs(r journal.Record) (paths []string) {
	for _, s := range r.Steps {
		var n etcdNote
		if (s.Name == stepEtcd || s.Name == stepEvents) && json.Unmarshal(s.Note, &n) == nil {
			paths = append(paths, n.DataDir)
		}
	}
	return paths
}
