package repository

import (
	"fmt"
	"strconv"
	"strings"

	"lifeboat/internal/manifest"
)

// ObjectName names a data object below the cluster's folder, as manifests do.
func ObjectName(chain manifest.Chain, id manifest.ID, file string) string {
	return chain.DataFolder(id) + file
}

// ManifestName names a manifest's object below the cluster's folder.
func ManifestName(chain manifest.Chain, seq manifest.Sequence) string {
	return string(chain) + "/manifests/" + seq.String()
}

// stored is an object's name in the store.
func (r *Repository) stored(name string) string { return r.cluster + "/" + name }

// place says what an object's name in the cluster's folder makes it.
type place struct {
	chain    manifest.Chain
	manifest bool              // in manifests/
	seq      manifest.Sequence // of a manifest; 0: not a sequence
	id       manifest.ID       // of a data object; "": not in a backup's folder
}

// locate reads a name below the cluster's folder. It reports false for what
// belongs to no chain.
func locate(name string) (place, bool) {
	parts := strings.Split(name, "/")
	for i := 1; i < len(parts) && i <= 2; i++ {
		if parts[i] != "manifests" && parts[i] != "data" {
			continue
		}
		chain := manifest.Chain(strings.Join(parts[:i], "/"))
		if chain.Check() != nil || len(parts) < i+2 {
			return place{}, false
		}
		p := place{chain: chain, manifest: parts[i] == "manifests"}
		rest := parts[i+1:]
		if p.manifest {
			if len(rest) == 1 {
				p.seq = parseSequence(rest[0])
			}
		} else if id := manifest.ID(rest[0]); len(rest) == 2 && rest[1] != "" && id.Check() == nil {
			p.id = id
		}
		return p, true
	}
	return place{}, false
}

// parseSequence reads the text form of a sequence; 0 means that s is not one.
func parseSequence(s string) manifest.Sequence {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || manifest.Sequence(n).String() != s {
		return 0
	}
	return manifest.Sequence(n)
}

// ref names a manifest in messages.
func ref(chain manifest.Chain, seq manifest.Sequence) string {
	return fmt.Sprintf("manifest %d of %s", uint64(seq), chain)
}
