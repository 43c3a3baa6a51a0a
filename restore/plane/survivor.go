package plane

import (
	"fmt"
	"path/filepath"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/datadir"
)

// takeSurvivor makes a plan for etcd take the data directory that the order names,
// if it names one.
func (p *Plan) takeSurvivor(o *restore.EtcdOptions) error {
	if p.Order.FromDataDir == "" {
		return nil
	}
	if p.Order.Members == All || p.opts.Shared != nil {
		return refuse("one data directory makes one member: restore this node alone from %s (--members one), and join the others to it as new ones", p.Order.FromDataDir)
	}
	if !filepath.IsAbs(p.Order.FromDataDir) {
		return refuse("%s is not an absolute path", p.Order.FromDataDir)
	}
	o.FromDataDir, o.Log = p.Order.FromDataDir, p.Order.Log
	var err error
	o.Placed, err = p.placed()
	return err
}

// placed says, without a change, whether an earlier run has put the new member in
// place already: then the old one may be gone from where the order says it is.
func (p *Plan) placed() (bool, error) {
	if p.journal == nil {
		return false, nil
	}
	s := p.journal.Step(stepEtcd)
	if s == nil || s.Undone != nil {
		return false, nil
	}
	if s.Done != nil {
		return true, nil
	}
	return datadir.IsOf(p.dataDir, p.id)
}

// survivorPlanned refuses what a node can't be rebuilt with beside a data directory,
// and gives it what the rest of the plan reads of a backup.
func (p *Plan) survivorPlanned() error {
	if p.Order.FromDataDir == "" || p.Etcd.Backup != nil {
		return nil
	}
	why := "none was found"
	if s := p.Etcd.Survivor; s != nil && s.Uncompared != "" {
		why = s.Uncompared
	}
	return refuse("to rebuild a node, a full backup of its etcd must be there beside %s, and %s: make the member with \"lifeboat restore etcd --from-data-dir\" and put the files back with \"lifeboat restore files\"", p.Order.FromDataDir, why)
}

// survivorStaged notes what the new member holds, for the journal: another process
// that goes on may not find it out again.
func (p *Plan) survivorStaged() {
	if p.Order.FromDataDir != "" {
		p.Order.Point = repository.Point{Revision: p.Etcd.Choice.Revision, Time: p.Etcd.Choice.At.UTC()}
	}
}

// uses are the encryption keys that the member is known to need before it is made.
func (p *Plan) uses() []manifest.KeyUse {
	if p.Order.FromDataDir == "" {
		return p.Etcd.Backup.Etcd.Encryption
	}
	if p.Etcd.Survivor == nil {
		return nil // placed: they were looked at before
	}
	return keyUses(p.Etcd.Survivor.Found.Database)
}

// FromSurvivor says in words where etcd's state comes from, if not from a backup.
func (p *Plan) FromSurvivor() string {
	if p.Order.FromDataDir == "" {
		return ""
	}
	return fmt.Sprintf("that of the data directory %s, as it was last written", p.Order.FromDataDir)
}
