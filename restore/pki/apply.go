package pki

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// Result says what a run did.
type Result struct {
	Issued      []string `json:"issued"`      // files with a new certificate, as the host sees them
	Kubeconfigs []string `json:"kubeconfigs"` // that were written
	MovedAside  []string `json:"movedAside"`
	Finished    []string `json:"finished,omitempty"` // files of an interrupted run that were put in place
}

// Apply carries the plan out; a plan is applied once. What the plan calls
// impossible stays as it is. After an error, or a kill, preparing and applying
// again goes on: a run that had come so far that anything changed is finished,
// and no other is begun by the same plan. A file that changed since the plan was
// made is ErrChanged, and nothing is done.
func (p *Plan) Apply(ctx context.Context) (*Result, error) {
	r, err := p.apply(ctx)
	if err != nil {
		return nil, fmt.Errorf("re-issue certificates: %w", err)
	}
	return r, nil
}

func (p *Plan) apply(ctx context.Context) (*Result, error) {
	r := &Result{Issued: []string{}, Kubeconfigs: []string{}, MovedAside: []string{}}
	unlock, err := p.t.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	j, err := p.t.journal()
	if err != nil {
		return nil, err
	}
	if j != nil && len(p.Unfinished) == 0 && j.ID != p.id {
		return nil, fmt.Errorf("another run was interrupted: %w", ErrChanged)
	}
	if j != nil {
		r.Finished = j.names()
		return r, p.t.finish(j)
	}
	if p.scan == nil {
		return nil, fmt.Errorf("the interrupted run was finished by another one: %w", ErrChanged)
	}
	if err := p.scan.sweepAll(); err != nil {
		return nil, err
	}
	contents, err := p.compose(ctx, r)
	if err != nil || len(contents) == 0 {
		return r, err
	}
	if err := p.unchanged(contents); err != nil {
		return nil, err
	}
	keep := func(contents []content) error { return p.t.aside(p.opts.Aside, contents) }
	return r, p.t.put(p.id, contents, p.opts.KeepOwner || os.Geteuid() != 0, keep)
}

// unchanged compares what is to be replaced with what the plan was made of.
func (p *Plan) unchanged(contents []content) error {
	for _, c := range contents {
		if c.old == nil {
			continue
		}
		now, err := p.t.read("/" + c.place)
		if err != nil {
			return err
		}
		if now == nil || now.sum() != c.old.sum() {
			return fmt.Errorf("/%s: %w", c.place, ErrChanged)
		}
	}
	return nil
}

// composing is the making of all new contents.
type composing struct {
	*Plan
	keys     map[string]privateKey // new ones, by spot
	contents []content
	written  map[string]bool // places of key files in contents
	configs  map[*configFile]bool
}

// compose makes the keys, the certificates and the contents that hold them.
func (p *Plan) compose(ctx context.Context, r *Result) ([]content, error) {
	c := &composing{Plan: p, keys: map[string]privateKey{}, written: map[string]bool{}, configs: map[*configFile]bool{}}
	for i := range p.Leaves {
		l := &p.Leaves[i]
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		switch {
		case l.makes():
			if err := c.make(l); err != nil {
				return nil, fmt.Errorf("%s: %w", l.File, err)
			}
			r.Issued = append(r.Issued, l.File)
		case l.Action == MoveAside:
			r.MovedAside = append(r.MovedAside, c.empty(l.leaf)...)
		}
	}
	for _, e := range p.Kubeconfigs {
		for _, change := range e.Changes {
			set(change.node, change.New)
		}
		c.configs[e.config] = true
	}
	for _, config := range p.scan.configs {
		if !c.configs[config] {
			continue
		}
		data, err := config.encode()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", config.name, err)
		}
		c.replace(config.saved, data, true)
		r.Kubeconfigs = append(r.Kubeconfigs, config.name)
	}
	return c.contents, nil
}

// make issues one certificate and puts it and its key where they belong.
func (c *composing) make(l *Leaf) error {
	key, err := c.key(l.leaf)
	if err != nil {
		return err
	}
	cert, err := l.draft.issue(key.signer, c.opts.Rand)
	if err != nil {
		return err
	}
	keyText, err := key.encode()
	if err != nil {
		return err
	}
	certs := encodeCertificates(append([]*x509.Certificate{cert}, l.leaf.chain...)...)
	file, spot := l.leaf.file, l.leaf.key.file
	switch {
	case file == nil:
		user := l.leaf.config.users[l.leaf.user]
		set(user.certData, base64.StdEncoding.EncodeToString(certs))
		set(user.keyData, base64.StdEncoding.EncodeToString(keyText))
		c.configs[l.leaf.config] = true
	case file == spot && file.link != "":
		return c.rotate(file, append(certs, keyText...))
	case file == spot:
		c.replace(file.saved, append(certs, keyText...), true)
	default:
		if !c.written[spot.place] {
			c.written[spot.place] = true
			c.replace(spot.saved, keyText, true)
		}
		c.replace(file.saved, certs, false)
	}
	return nil
}

// key makes the new key of a spot, once for all certificates of it.
func (c *composing) key(l *leaf) (privateKey, error) {
	if key, ok := c.keys[l.key.id]; ok {
		return key, nil
	}
	key, err := makeKey(l.cert.PublicKey, l.key.key.block, c.opts.Rand)
	if err == nil {
		c.keys[l.key.id] = key
	}
	return key, err
}

// replace plans new bytes for a file. One with a key in it is for nobody but
// its owner and group.
func (c *composing) replace(old *saved, data []byte, secret bool) {
	mode := old.info.Mode().Perm()
	if secret {
		mode &^= 0o007
	}
	uid, gid := ownerOf(old.info)
	c.contents = append(c.contents, content{place: old.place, data: data, mode: mode, uid: uid, gid: gid, old: old})
}

// rotate does what the kubelet does when it has a new certificate: a file with
// the date in its name, and a link to it.
func (c *composing) rotate(file *pemFile, data []byte) error {
	target, err := c.t.root.Readlink(file.link)
	if err != nil {
		return err
	}
	info, err := c.t.lstat(file.link)
	if err != nil {
		return err
	}
	name, place, err := c.dated(file.link, path.Dir(target))
	if err != nil {
		return err
	}
	uid, gid := ownerOf(file.info)
	c.contents = append(c.contents, content{place: place, data: data, mode: file.info.Mode().Perm() &^ 0o007, uid: uid, gid: gid})
	uid, gid = ownerOf(info)
	c.contents = append(c.contents, content{place: file.link, link: name, uid: uid, gid: gid})
	return nil
}

// dated finds the first free name from now on, in the folder that the link leads
// to, and its place.
func (c *composing) dated(link, folder string) (name, place string, err error) {
	stem := strings.TrimSuffix(path.Base(link), currentSuffix)
	for at := c.now; ; at = at.Add(time.Second) {
		name = path.Join(folder, stem+at.Format("-2006-01-02-15-04-05.pem"))
		host := name
		if !path.IsAbs(name) {
			host = path.Join("/", path.Dir(link), name)
		}
		if place, err = c.t.folderOf(host); err != nil {
			return "", "", err
		}
		if _, err = c.t.lstat(place); errors.Is(err, fs.ErrNotExist) {
			return name, place, nil
		}
		if err != nil {
			return "", "", err
		}
	}
}

// empty plans a pair's going, which returns its names.
func (c *composing) empty(l *leaf) []string {
	names := []string{l.file.name}
	c.contents = append(c.contents, content{place: l.file.place, gone: true, old: l.file.saved})
	if spot := l.key.file; spot != nil && spot != l.file {
		names = append(names, spot.name)
		c.contents = append(c.contents, content{place: spot.place, gone: true, old: spot.saved})
	}
	return names
}
