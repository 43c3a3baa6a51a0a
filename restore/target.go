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
// from it. Measured: etcd 3.6 refuses to start from a 3.7 snapshot; etcd 3.5
// starts and silently downgrades the data, which is worse.
func checkTarget(target, storage, cluster, server string) error {
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
		return fmt.Errorf("%w: the snapshot is of etcd %s and the target is %s: an older etcd fails on it or silently downgrades it", ErrRefused, oldest, want)
	}
	return nil
}

// minBump covers a week at 1,500 writes a second, by etcd's documents
// (op-guide/recovery).
const minBump = 1_000_000_000

// defaultBump is a revision bump that lifts a restored member above everything
// that clients can have seen: what the chain's head is ahead of the point, and
// then ten times what the recorded rate gives from the head until now, but at
// least minBump.
func defaultBump(point, head *manifest.Manifest, now time.Time) uint64 {
	rate, since, ahead := 0.0, point.Created, 0.0
	for _, m := range []*manifest.Manifest{point, head} {
		if m != nil && m.Etcd != nil {
			rate = max(rate, m.Etcd.Rate)
		}
	}
	if head != nil {
		since = head.Created
		if head.Etcd != nil && head.Epoch == point.Epoch && head.Etcd.Revision > point.Etcd.Revision {
			ahead = float64(head.Etcd.Revision - point.Etcd.Revision)
		}
	}
	age := max(0, now.Sub(since).Seconds())
	bump := math.Ceil(ahead + max(minBump, 10*rate*age))
	return uint64(min(bump, 1<<62))
}
