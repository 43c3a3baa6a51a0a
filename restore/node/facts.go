package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/internal/chroot"
)

// Identity implements Machine.
func (l *Local) Identity() (Identity, error) {
	name, err := os.Hostname()
	if err != nil {
		return Identity{}, fmt.Errorf("this machine's name: %w", err)
	}
	out := Identity{Hostname: name}
	interfaces, err := net.Interfaces()
	if err != nil {
		return Identity{}, fmt.Errorf("this machine's addresses: %w", err)
	}
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			return Identity{}, fmt.Errorf("the addresses of %s: %w", i.Name, err)
		}
		for _, a := range addresses {
			prefix, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue // no IP address
			}
			out.Addresses = append(out.Addresses, Address{Interface: i.Name, Prefix: prefix})
		}
	}
	return out, nil
}

// Space implements Machine.
func (l *Local) Space(path string) (Space, error) {
	place, err := nearest(path)
	if err != nil {
		return Space{}, fmt.Errorf("free space of %s: %w", path, err)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(place, &stat); err != nil {
		return Space{}, fmt.Errorf("free space of %s: %w", place, err)
	}
	out := Space{
		Free:  int64(stat.Bavail) * int64(stat.Bsize),
		Total: int64(stat.Blocks) * int64(stat.Bsize), ReadOnly: stat.Flags&unix.ST_RDONLY != 0,
	}
	mounts, err := os.ReadFile(l.path("proc/self/mountinfo"))
	if err != nil {
		return Space{}, fmt.Errorf("the file system of %s: %w", path, err)
	}
	mountOf(string(mounts), place, &out)
	if out.MountPoint == "" {
		return Space{}, fmt.Errorf("the file system of %s: no mount holds it", path)
	}
	return out, nil
}

// nearest returns where path is, or else its nearest parent that exists, without
// links.
func nearest(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	for {
		place, err := filepath.EvalSymlinks(path)
		if err == nil {
			return place, nil
		}
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return "", err
		}
		path = parent
	}
}

// mountOf finds the mount that holds a path: the deepest, and of several at one
// point the last, which covers the others (proc_pid_mountinfo(5)).
func mountOf(mounts, path string, into *Space) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mounts) {
		left, right, ok := strings.Cut(line, " - ")
		fields, about := strings.Fields(left), strings.Fields(right)
		const point = 4
		if !ok || len(fields) <= point || len(about) < 2 {
			continue
		}
		at := unescape.Replace(fields[point])
		if len(at) < len(into.MountPoint) || !chroot.Within(strings.TrimPrefix(path, "/"), orDot(strings.TrimPrefix(at, "/"))) {
			continue
		}
		into.MountPoint, into.Type, into.Source = at, about[0], unescape.Replace(about[1])
	}
}

func orDot(name string) string {
	if name == "" {
		return "."
	}
	return name
}
