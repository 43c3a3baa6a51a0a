package plane

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"lifeboat/internal/hostfacts"
	"lifeboat/restore/datadir"
)

// ownerOf is who will own the new member of an etcd outside of Kubernetes: its
// unit's user as this machine knows it, else who owned the data directory; nil:
// as datadir finds it.
func (p *Plan) ownerOf(s *hostfacts.EtcdServer) (*datadir.Owner, error) {
	if s.User == "" || s.User == "root" || s.User == "0" {
		if _, err := os.Lstat(p.opts.under(s.DataDir)); errors.Is(err, fs.ErrNotExist) && s.Owner != nil && s.Unit == "" {
			return &datadir.Owner{UID: s.Owner.UID, GID: s.Owner.GID}, nil
		}
		return nil, nil
	}
	uid, gid, found := p.lookUp("/etc/passwd", s.User)
	if !found {
		return nil, refuse("%s runs as user %s, whom this machine does not know: make the user first (useradd --system --no-create-home %s), or install etcd's package, which does it", s, s.User, s.User)
	}
	if s.Group != "" {
		group, _, found := p.lookUp("/etc/group", s.Group)
		if !found {
			return nil, refuse("%s runs as group %s, which this machine does not know: make it first (groupadd --system %s)", s, s.Group, s.Group)
		}
		gid = group
	}
	return &datadir.Owner{UID: uid, GID: gid}, nil
}

// lookUp finds a name or number in the machine's passwd or group file: the first
// number of its line and the second, if there is one.
func (p *Plan) lookUp(file, name string) (first, second int, found bool) {
	text, err := os.ReadFile(p.opts.under(file))
	if err != nil {
		text = nil
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 3 || fields[0] != name && fields[2] != name {
			continue
		}
		if first, err = strconv.Atoi(fields[2]); err != nil {
			continue
		}
		if len(fields) > 3 {
			second, _ = strconv.Atoi(fields[3]) // of a group: its members
		}
		return first, second, true
	}
	number, err := strconv.Atoi(name)
	return number, number, err == nil
}
