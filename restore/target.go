package restore

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/restore/datadir"
)

// minor is an etcd version as far as data compatibility goes.
type minor struct{ major, minor int }

func (v minor) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v minor) newer(than minor) bool {
	return v.major > than.major || v.major == than.major && v.minor > than.minor
}

var versionPattern = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})(?:\.\d+)?(?:[-+.].*)?$`)

// parseMinor reads a version as etcd prints it or as an image's tag has it:
// "3.6.5", "v3.6", "3.6.5-0".
func parseMinor(s string) (minor, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return minor{}, fmt.Errorf("%q is not an etcd version such as 3.6.5", s)
	}
	major, _ := strconv.Atoi(m[1])
	min, _ := strconv.Atoi(m[2])
	return minor{major, min}, nil
}

// oldestTarget is the oldest etcd that can start from a snapshot: neither its
// storage version nor its cluster version may be newer than the server. 3.5
// stores no storage version; the version of the server that made the snapshot
// stands in when neither is known. ok is false if nothing is known.
func oldestTarget(storage, cluster, server string) (v minor, ok bool, err error) {
	for _, s := range []string{storage, cluster} {
		if s == "" {
			continue
		}
		m, err := parseMinor(s)
		if err != nil {
			return minor{}, false, err
		}
		if !ok || m.newer(v) {
			v, ok = m, true
		}
	}
	if !ok && server != "" {
		v, err = parseMinor(server)
		return v, err == nil, err
	}
	return v, ok, nil
}

// checkTarget refuses a snapshot that is too new for the etcd that is to start
// from it. from says where the target comes from, and what to do about it.
// Measured: etcd 3.6 refuses to start from a 3.7 snapshot; etcd 3.5
// starts and silently downgrades the data, which is worse.
func checkTarget(target, from, storage, cluster, server string) error {
	if target == "" {
		return nil
	}
	want, err := parseMinor(target)
	if err != nil {
		return fmt.Errorf("%w: target version: %w", datadir.ErrInvalid, err)
	}
	oldest, ok, err := oldestTarget(storage, cluster, server)
	if err != nil {
		return fmt.Errorf("the snapshot's version: %w", err)
	}
	if ok && oldest.newer(want) {
		err := fmt.Errorf("%w: the snapshot is of etcd %s and the target is %s: an older etcd fails on it or silently downgrades it", ErrRefused, oldest, want)
		if from != "" {
			err = fmt.Errorf("%w. %s", err, from)
		}
		return err
	}
	return nil
}

// minBump covers a week at 1,500 writes a second, by etcd's documents
// (op-guide/recovery).
const minBump = 1_000_000_000

// defaultBump is a revision bump that lifts a restored member above everything
// that clients can have seen: what the chain's tip is ahead of the point, and
// then ten times what the recorded rate gives from the tip until now, but at
// least minBump.
func defaultBump(point, tip place, now time.Time) uint64 {
	ahead := 0.0
	if tip.epoch == point.epoch && tip.revision > point.revision {
		ahead = float64(tip.revision - point.revision)
	}
	age := max(0, now.Sub(tip.at).Seconds())
	bump := math.Ceil(ahead + max(minBump, 10*max(point.rate, tip.rate)*age))
	return uint64(min(bump, 1<<62))
}

// startWith says which etcd the data is for. Of an imported snapshot it is
// known only as far as the file tells.
func startWith(target string, m *manifest.Manifest) string {
	if target == "" {
		target = m.Etcd.Version
	}
	if target != "" {
		return "etcd " + target + " or newer of the same minor version"
	}
	if oldest, ok, err := oldestTarget(m.Etcd.StorageVersion, m.Etcd.ClusterVersion, ""); err == nil && ok {
		return fmt.Sprintf("an etcd %s, or the version that the snapshot was made by", oldest)
	}
	return "the etcd version that the snapshot was made by"
}

// voters counts the members of the backed-up cluster that were no learners.
func voters(m *manifest.Manifest) (n int) {
	for _, member := range m.Etcd.Members {
		if !member.Learner {
			n++
		}
	}
	return n
}
