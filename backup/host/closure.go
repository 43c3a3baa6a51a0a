package host

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/chroot"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/seal"
)

const (
	parseLimit   = 1 << 20  // bytes of a file in which names of others are looked for
	keepLimit    = 24 << 20 // bytes of contents held in memory between reading and archiving
	maxDepth     = 32       // folders below a named one
	maxItems     = 100_000  // names looked at; a loop's end
	defaultFile  = 64 << 20
	defaultTotal = 512 << 20
	defaultFiles = 20_000
)

// item is one name to follow.
type item struct {
	path     string // as written, seen from the host's root
	why      string // who names it: stands in messages
	view     *view  // how names inside the file are to be read; nil: as the host sees them
	fileOnly bool   // a folder of this name is not meant
	config   bool   // the file must be a kubeconfig
	required bool   // its absence means that the node is not whole
	explicit bool   // named itself, not found in a folder: beats trust folders and broad ones
}

// entry is one thing to store.
type entry struct {
	header seal.Header
	sum    [sha256.Size]byte
	data   []byte // nil when too large to hold
	named  bool   // something names it: it is in use
}

// closure is everything that a node's static pods and services reach.
type closure struct {
	t      *tree
	limits Limits

	queue     []item
	queued    int
	parsed    map[parsedKey]bool
	entries   map[string]*entry
	folders   map[string]bool // stored whole
	noted     map[string]note
	skipped   map[string]string // name -> why
	bytes     int64
	kept      int64
	manifests map[string]bool // folders of static pods
	dataDirs  map[string]bool // of etcd; nothing below is stored
	pods      []staticPod
	pairs     map[pair]bool
	keys      []providerKeys
	configs   map[string]bool // files that must be kubeconfigs
	servers   map[string]bool // URLs in kubeconfigs
	etcds     []EtcdServer
	own       *hostfacts.Distribution // nil: the node is of none
	omitted   map[string]bool         // folders of which nothing is stored, beside the usual ones

	degraded *set
	warnings *set
	torn     bool // a file changed under our eyes
}

type parsedKey struct {
	name string
	view *view
}

// collect follows every name from the well-known places, the extra paths and
// the static pods.
func collect(ctx context.Context, t *tree, extra []string, limits Limits) (*closure, error) {
	c := &closure{
		t: t, limits: limits.withDefaults(),
		parsed: make(map[parsedKey]bool), entries: make(map[string]*entry), folders: make(map[string]bool),
		noted: make(map[string]note), skipped: make(map[string]string), manifests: make(map[string]bool),
		dataDirs: make(map[string]bool), pairs: make(map[pair]bool), configs: make(map[string]bool), servers: make(map[string]bool),
		omitted: make(map[string]bool), degraded: &set{}, warnings: &set{},
	}
	own, _, left := setUp(t)
	c.own = own
	for _, dir := range manifestFolders {
		if !left("/" + dir) {
			c.manifestFolder("/"+dir, "")
		}
	}
	for _, name := range places() {
		c.add(item{path: "/" + name, why: "a node's usual files"})
	}
	c.etcds = etcdServers(t)
	if c.own != nil {
		c.distribution(c.own)
	}
	for _, s := range c.etcds {
		c.etcdServer(s)
	}
	for _, p := range extra {
		c.add(item{path: p, why: "extraPaths", explicit: true, required: true})
	}
	for len(c.queue) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		next := c.queue[0]
		c.queue = c.queue[1:]
		c.follow(next)
	}
	c.dropData()
	c.dropEscapes()
	c.addParents()
	if len(c.entries) == 0 {
		c.degraded.addf("no file of a control-plane node was found")
	}
	return c, nil
}

func (c *closure) add(i item) {
	if c.queued++; c.queued > maxItems {
		c.degraded.addf("more than %d names to follow: some files may be missing", maxItems)
		return
	}
	c.queue = append(c.queue, i)
}

// manifestFolder notes where a kubelet looks for static pods, and takes it.
func (c *closure) manifestFolder(p, by string) {
	place, err := c.t.resolve(p)
	if err != nil || place.Missing {
		if by != "" {
			c.degraded.addf("%s names the folder of static pods %s, which can't be found", by, p)
		}
		return
	}
	c.manifests[place.Name] = true
	c.add(item{path: p, why: "static pods"})
}

// follow takes what one name leads to.
func (c *closure) follow(i item) {
	if strings.ContainsAny(path.Base(i.path), "*?[") {
		c.glob(i)
		return
	}
	place, err := c.t.resolve(i.path)
	switch {
	case err != nil:
		c.degraded.addf("%s (%s): %s", show(i.path), i.why, why(err))
		return
	case excluded(place.Name):
		if i.explicit {
			c.skipped[place.Name] = "never stored"
		}
		return
	case place.Missing:
		if i.required {
			c.degraded.addf("%s (%s) does not exist", show(i.path), i.why)
		}
		// A link to nothing is still part of the tree.
		for _, link := range place.Links {
			c.link(link, i)
		}
		return
	}
	info, err := c.t.root.Lstat(place.Name)
	if err != nil {
		c.degraded.addf("%s (%s): %s", place.Name, i.why, why(err))
		return
	}
	switch {
	case info.IsDir() && i.fileOnly:
		return
	case info.IsDir() && trusted(place.Name) && i.why != "extraPaths":
		c.note(place.Name)
		return
	case info.IsDir() && broad[place.Name] && i.why != "extraPaths":
		c.skipped[place.Name] = "too broad: only what is named inside is stored"
		c.warnings.addf("%s (%s) is too broad to store whole; only the files that are named inside it are stored", show(i.path), i.why)
		return
	}
	for _, link := range place.Links {
		c.link(link, i)
	}
	switch {
	case info.IsDir():
		c.folders[place.Name] = true
		c.folder(place.Name, info, i, 0)
	case info.Mode().IsRegular():
		if i.config {
			c.configs[place.Name] = true
		}
		c.file(place.Name, i)
	default:
		c.skipped[place.Name] = "a socket, fifo or device"
	}
}

// glob follows the names in one folder that match the pattern of the last element.
func (c *closure) glob(i item) {
	pattern := path.Base(i.path)
	found := false
	defer func() {
		if i.required && !found {
			c.degraded.addf("%s (%s) matches nothing", show(i.path), i.why)
		}
	}()
	place, err := c.t.resolve(path.Dir(i.path))
	if err != nil || place.Missing || excluded(place.Name) {
		return
	}
	names, err := c.t.folder(place.Name, c.limits.Files)
	if err != nil {
		c.degraded.addf("%s (%s): %s", place.Name, i.why, why(err))
		return
	}
	for _, name := range names {
		if ok, err := path.Match(pattern, name); err != nil || !ok || strings.ContainsAny(name, "*?[") {
			continue
		}
		found = true
		next := i
		next.path = path.Join("/", place.Name, name)
		c.add(next)
	}
}

// folder takes a folder with everything below it.
func (c *closure) folder(name string, info fs.FileInfo, i item, depth int) {
	if excluded(name) || c.isData(name) {
		return
	}
	if trusted(name) && i.why != "extraPaths" {
		c.note(name)
		return
	}
	if depth > maxDepth {
		c.degraded.addf("%s: more than %d folders deep, left out", name, maxDepth)
		return
	}
	c.store(&entry{header: header(name, seal.TypeDir, info)})
	names, err := c.t.folder(name, c.limits.Files)
	if err != nil {
		c.degraded.addf("%s: %s", name, why(err))
		c.skipped[name] = why(err)
		return
	}
	for _, base := range names {
		child := path.Join(name, base)
		info, err := c.t.root.Lstat(child)
		if errors.Is(err, fs.ErrNotExist) {
			c.torn = true
			continue
		}
		if err != nil {
			c.degraded.addf("%s: %s", child, why(err))
			c.skipped[child] = why(err)
			continue
		}
		inside := item{path: "/" + child, why: i.why, view: i.view}
		switch {
		case info.IsDir():
			c.folder(child, info, inside, depth+1)
		case info.Mode().IsRegular():
			c.file(child, inside)
		case info.Mode()&fs.ModeSymlink != 0:
			c.link(child, inside)
			inside.why = "the link " + child
			inside.explicit = true
			c.add(inside)
		case !excluded(child):
			c.skipped[child] = "a socket, fifo or device"
		}
	}
}

// link stores one symbolic link as it is.
func (c *closure) link(name string, i item) {
	if _, known := c.entries[name]; known || excluded(name) {
		return
	}
	if broad[name] {
		return // /lib -> usr/lib is the operating system's, and differs between them
	}
	info, err := c.t.root.Lstat(name)
	if err != nil {
		c.torn = true
		return
	}
	target, err := c.t.root.Readlink(name)
	if err != nil {
		c.torn = true
		return
	}
	h := header(name, seal.TypeSymlink, info)
	h.Linkname = target
	c.store(&entry{header: h})
	if place, err := c.t.resolve("/" + name); err == nil && place.Missing && !excluded(place.Name) {
		c.warnings.addf("%s is a link to %s, which does not exist", name, target)
	}
}

// file takes a regular file and what it names.
func (c *closure) file(name string, i item) {
	if excluded(name) || c.isData(name) {
		return
	}
	e, known := c.entries[name]
	if !known {
		var ok bool
		if e, ok = c.read(name, i); !ok {
			return
		}
	}
	e.named = e.named || i.explicit
	key := parsedKey{name, i.view}
	if c.parsed[key] || len(e.data) > parseLimit {
		return
	}
	c.parsed[key] = true
	c.parse(name, e.data, i.view)
}

func (c *closure) read(name string, i item) (*entry, bool) {
	keep := min(keepLimit-c.kept, c.limits.FileBytes)
	got, err := c.t.read(name, c.limits.FileBytes, keep)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			c.torn = true
		}
		c.degraded.addf("%s (%s): %s", name, i.why, why(err))
		c.skipped[name] = why(err)
		return nil, false
	}
	if c.bytes+got.size > c.limits.TotalBytes {
		c.degraded.addf("%s: the files together are larger than %d bytes, left out", name, c.limits.TotalBytes)
		c.skipped[name] = "past the limit for all files together"
		return nil, false
	}
	c.torn = c.torn || got.torn
	e := &entry{header: header(name, seal.TypeFile, got.info), sum: got.sum, data: got.data}
	e.header.Size = got.size
	if got.info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
		c.warnings.addf("%s: stored without its set-uid, set-gid and sticky bits", name)
	}
	if !c.store(e) {
		return nil, false
	}
	c.bytes += got.size
	c.kept += int64(len(got.data))
	return e, true
}

// store keeps an entry if an archive can hold it.
func (c *closure) store(e *entry) bool {
	name := e.header.Name
	if _, known := c.entries[name]; known {
		return true
	}
	if err := seal.CheckName(name); err != nil {
		if name == "." {
			return true
		}
		c.degraded.addf("%q: the name can't be archived, left out", name)
		return false
	}
	if len(c.entries) >= c.limits.Files {
		c.degraded.addf("more than %d files: some are left out", c.limits.Files)
		return false
	}
	c.entries[name] = e
	return true
}

func header(name string, t seal.Type, info fs.FileInfo) seal.Header {
	mode := info.Mode().Perm()
	if t == seal.TypeDir {
		mode |= info.Mode() & (fs.ModeSetgid | fs.ModeSticky)
	}
	uid, gid := owner(info)
	return seal.Header{Name: name, Type: t, Mode: mode, UID: uid, GID: gid, ModTime: info.ModTime().UTC()}
}

// dropEscapes leaves links out that a restore has to refuse: those whose target
// climbs past the root, judged by the archive's own entries as a restore does.
func (c *closure) dropEscapes() {
	readlink := func(name string) (string, error) {
		if e, ok := c.entries[name]; ok {
			return e.header.Linkname, nil
		}
		return "", nil
	}
	for again := true; again; { // a link that is left out can change where others lead
		again = false
		for name, e := range c.entries {
			if e.header.Type != seal.TypeSymlink {
				continue
			}
			if place, err := chroot.Resolve(name, readlink); err == nil && place.Clamped {
				delete(c.entries, name)
				c.degraded.addf("%s: the link's target climbs past the root, left out", name)
				again = true
			}
		}
	}
}

// addParents stores the folders above every entry, for their modes and owners.
func (c *closure) addParents() {
	names := make([]string, 0, len(c.entries))
	for name := range c.entries {
		names = append(names, name)
	}
	for _, name := range names {
		for _, dir := range parents(name) {
			if _, known := c.entries[dir]; known {
				continue
			}
			if info, err := c.t.root.Lstat(dir); err == nil && info.IsDir() {
				c.entries[dir] = &entry{header: header(dir, seal.TypeDir, info)}
			}
		}
	}
}

// names returns the entries' names in order.
func (c *closure) names() []string {
	out := make([]string, 0, len(c.entries))
	for name := range c.entries {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
