package topology

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/manifest"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
	"lifeboat/restore/node"
)

// Freshness is how a data directory compares with the point to be restored.
type Freshness string

// The comparisons.
const (
	None     Freshness = "none"     // there is no member
	Fresher  Freshness = "fresher"  // it holds changes that the point lacks
	Equal    Freshness = "equal"    // it ends at the point's revision
	Older    Freshness = "older"    //
	Foreign  Freshness = "foreign"  // it is another cluster's: nothing to compare
	Unproved Freshness = "unproved" // it could not be compared
)

// DataDir is etcd's data directory on this host.
type DataDir struct {
	Path      string          `json:"path"` // as the host sees it
	How       string          `json:"how"`  // the path was found
	Member    bool            `json:"member"`
	InUse     bool            `json:"inUse"`
	By        string          `json:"by,omitempty"` // the process that uses it, as far as can be told
	DBBytes   int64           `json:"dbBytes,omitempty"`
	ClusterID manifest.EtcdID `json:"clusterID,omitempty"` // by its write-ahead log; 0: not known
	MemberID  manifest.EtcdID `json:"memberID,omitempty"`
	Names     []string        `json:"names,omitempty"` // of the members that it knows
	Revision  int64           `json:"revision,omitempty"`
	Compact   int64           `json:"compactRevision,omitempty"`
	HashKV    uint32          `json:"hashKV,omitempty"`
	Freshness Freshness       `json:"freshness"`
	FreshHow  string          `json:"freshHow"`
	Failed    string          `json:"failed,omitempty"` // why it could not be looked into
	Snapshot  *snapdb.Facts   `json:"-"`                // all that the database says; nil: not read
	log       *walIDs
}

func (h *Host) data(ctx context.Context, in Inputs, t *tree, s setup) {
	d := &h.Data
	d.Path, d.How = s.dataDir, s.dataHow
	d.Freshness, d.FreshHow = None, "there is no "+path.Join(d.Path, "member")
	onDisk := t.path(d.Path)
	info, err := os.Stat(filepath.Join(onDisk, "member"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		d.unproved(err)
		return
	case !info.IsDir():
		d.unproved(fmt.Errorf("%s is no folder", path.Join(d.Path, "member")))
		return
	}
	d.Member = true
	db := filepath.Join(onDisk, "member", "snap", "db")
	if info, err := os.Stat(db); err == nil {
		d.DBBytes = info.Size()
	}
	if ids, err := readWAL(filepath.Join(onDisk, "member", "wal")); err == nil {
		d.log, d.ClusterID, d.MemberID = ids, ids.cluster, ids.member
	}
	switch err := datadir.InUse(onDisk); {
	case errors.Is(err, datadir.ErrInUse):
		d.InUse = true
		d.By = h.user(ctx, in, d.Path)
		d.unproved(errors.New("it is in use, so its database can't be read; the member itself is asked"))
		return
	case err != nil:
		d.unproved(err)
		return
	case in.Limits.Database > 0 && d.DBBytes > in.Limits.Database:
		d.unproved(fmt.Errorf("its database has %d bytes, more than are read through (%d)", d.DBBytes, in.Limits.Database))
		return
	}
	facts, err := snapdb.Inspect(ctx, db, snapdb.Options{})
	if err != nil {
		d.unproved(err)
		return
	}
	if err := datadir.InUse(onDisk); err != nil {
		d.unproved(fmt.Errorf("while its database was read: %w; look again", err))
		return
	}
	d.Snapshot, d.Revision, d.Compact, d.HashKV = facts, facts.Revision, facts.CompactRevision, facts.HashKV
	for _, m := range facts.Members {
		d.Names = append(d.Names, m.Name)
	}
	h.compare()
}

func (d *DataDir) unproved(err error) {
	d.Failed = err.Error()
	d.Freshness, d.FreshHow = Unproved, d.Failed
}

// compare says whether the data directory is fresher than the point. Revisions
// count changes of one cluster, so they mean nothing between two.
func (h *Host) compare() {
	d := &h.Data
	of := fmt.Sprintf("its database ends at revision %d", d.Revision)
	switch {
	case h.backup == nil || h.point == 0:
		d.Freshness, d.FreshHow = Unproved, of+"; what will be restored is not known"
	case d.ClusterID != 0 && h.backup.ClusterID != 0 && d.ClusterID != h.backup.ClusterID:
		d.Freshness, d.FreshHow = Foreign, fmt.Sprintf("its write-ahead log is of cluster %s, the backup of %s", d.ClusterID, h.backup.ClusterID)
	case d.ClusterID == 0 || h.backup.ClusterID == 0:
		d.Freshness, d.FreshHow = Unproved, fmt.Sprintf("%s, the point is %d, but whether it is the same cluster is not known: no readable write-ahead log tells its id", of, h.point)
	case d.Revision > int64(h.point):
		d.Freshness, d.FreshHow = Fresher, fmt.Sprintf("%s, the point is %d, in the same cluster %s", of, h.point, d.ClusterID)
	case d.Revision < int64(h.point):
		d.Freshness, d.FreshHow = Older, fmt.Sprintf("%s, the point is %d, in the same cluster %s; its write-ahead log may hold the last moment before it ended besides", of, h.point, d.ClusterID)
	default:
		d.Freshness, d.FreshHow = Equal, fmt.Sprintf("%s, as the point, in the same cluster %s", of, d.ClusterID)
		if h.point == h.backup.Revision && h.backup.HashKV != 0 && max(d.Compact, 0) == max(int64(h.backup.CompactRevision), 0) && d.HashKV != h.backup.HashKV {
			d.Freshness = Unproved
			d.FreshHow += fmt.Sprintf("; but HashKV is %08x and the backup's is %08x: one of them is corrupt, or its history is another", d.HashKV, h.backup.HashKV)
		}
	}
}

// programs are those that hold an etcd.
var programs = []string{"etcd", "k3s", "k3s-server", "rke2", "k0s"}

// user finds the process that uses the data directory: the one that names it, or
// else the only one that could.
func (h *Host) user(ctx context.Context, in Inputs, dir string) string {
	found, err := within(ctx, in.Limits.Call, func(ctx context.Context) ([]node.Process, error) {
		return in.Machine.Processes(ctx, programs...)
	})
	if err != nil {
		return "a process that could not be found: " + err.Error()
	}
	for _, p := range found {
		if strings.Contains(strings.Join(p.Args, " ")+" ", dir+" ") {
			return p.String() + ", whose arguments name it"
		}
	}
	if len(found) == 1 {
		return found[0].String() + ", the only etcd that runs"
	}
	var names []string
	for _, p := range found {
		names = append(names, p.String())
	}
	if len(names) == 0 {
		return "a process that is called neither " + strings.Join(programs, " nor ")
	}
	slices.Sort(names)
	return "one of " + strings.Join(names, ", ")
}
