package host

import (
	"path"

	"lifeboat/internal/chroot"
)

// dataDir marks etcd's data directory. The root can't be one.
func (c *closure) dataDir(p string) {
	if place, err := c.t.resolve(p); err == nil && place.Name != "." {
		c.dataDirs[place.Name] = true
	}
}

// isData says whether a folder is an etcd data directory, by name or by looks, or
// another one that is never stored.
func (c *closure) isData(name string) bool {
	for _, dirs := range []map[string]bool{c.dataDirs, c.omitted} {
		for dir := range dirs {
			if chroot.Within(name, dir) {
				return true
			}
		}
	}
	info, err := c.t.root.Lstat(path.Join(name, "member", "snap"))
	return err == nil && info.IsDir()
}

// dropData removes what was taken before a data directory became known.
func (c *closure) dropData() {
	for name := range c.entries {
		for dir := range c.dataDirs {
			if chroot.Within(name, dir) {
				delete(c.entries, name)
				delete(c.folders, name)
			}
		}
	}
}
