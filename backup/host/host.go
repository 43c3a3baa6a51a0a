// Package host captures the files of one control-plane node: everything that
// its static pods and services reach, found by following what they name, and
// the facts about the machine that a restore on another one needs.
//
// A capture never refuses: what does not fit makes the backup degraded, with a
// reason, and what a person should look at is a warning. Reasons name files and
// never hold their content. Nothing is written to the host.
//
// Start at Capture. The closure is in closure.go, what names what in pods.go,
// named.go and kubeconfig.go, and the places that are always looked at in places.go.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/seal"
)

// Resolver answers the DNS questions that facts hold. *net.Resolver is one.
type Resolver interface {
	LookupHost(ctx context.Context, name string) ([]string, error)
}

// Limits bound one capture. Zero fields have defaults: 64 MiB a file, 512 MiB
// together, 20,000 files.
type Limits struct {
	FileBytes, TotalBytes int64
	Files                 int
}

func (l Limits) withDefaults() Limits {
	if l.FileBytes == 0 {
		l.FileBytes = defaultFile
	}
	if l.TotalBytes == 0 {
		l.TotalBytes = defaultTotal
	}
	if l.Files == 0 {
		l.Files = defaultFiles
	}
	return l
}

// Options says what to capture.
type Options struct {
	Root       string           // the host's root; default /
	ExtraPaths []string         // files, folders and patterns, as the host sees them
	Node       string           // the chain's name; stands in the facts
	Now        func() time.Time // default time.Now
	Events     events.Listener  // hears of the warnings; degraded reasons are the caller's to tell with its own
	Resolver   Resolver         // default the system's
	// Addresses returns the machine's network addresses; default those of this
	// process's network, which is the host's when the pod uses it.
	Addresses func() ([]Address, error)
	Limits    Limits

	// Images asks the container runtime which images the node needs, given those
	// of its static pods, and for their digests; nil: nobody is asked.
	Images func(ctx context.Context, static []Image) ([]Image, error)

	Wait time.Duration // between two readings that differ; default 250 ms
}

// Result says what was captured.
type Result struct {
	Files    int   // regular files, without the facts
	Bytes    int64 // their sizes' sum
	Degraded []string
	Warnings []string
	Facts    Facts
}

// tries is how often the files are read to see them the same twice.
const tries = 5

// Capture writes the node's files to w, facts first. It returns an error only
// when the context ends, the root can't be opened or w fails; then w is not a
// whole archive. It does not close w.
func Capture(ctx context.Context, opts Options, w *seal.ArchiveWriter) (*Result, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Resolver == nil {
		opts.Resolver = net.DefaultResolver
	}
	if opts.Addresses == nil {
		opts.Addresses = localAddresses
	}
	if opts.Wait == 0 {
		opts.Wait = 250 * time.Millisecond
	}
	t, err := openTree(opts.Root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return capture(ctx, t, opts, w)
}

func capture(ctx context.Context, t *tree, opts Options, w *seal.ArchiveWriter) (*Result, error) {
	created := opts.Now().UTC().Truncate(time.Millisecond)
	c, err := settle(ctx, t, opts)
	if err != nil {
		return nil, err
	}
	c.check(created)
	facts := c.facts(ctx, opts, created)
	r := &Result{Facts: facts}
	if err := c.write(ctx, w, r); err != nil {
		return nil, err
	}
	r.Degraded = c.degraded.sorted()
	r.Warnings = c.warnings.sorted()
	for _, text := range r.Warnings {
		opts.Events.Emit(events.Warning{Chain: "hosts/" + opts.Node, Subject: opts.Node, Message: text})
	}
	return r, nil
}

// settle reads the closure until two readings in a row are the same.
func settle(ctx context.Context, t *tree, opts Options) (*closure, error) {
	before, err := collect(ctx, t, opts.ExtraPaths, opts.Limits)
	if err != nil {
		return nil, err
	}
	for range tries {
		prints := before.prints()
		before = nil // its contents may go: only one reading is held at a time
		c, err := collect(ctx, t, opts.ExtraPaths, opts.Limits)
		if err != nil {
			return nil, err
		}
		changed := differences(prints, c.prints())
		if len(changed) == 0 && !c.torn {
			return c, nil
		}
		before = c
		before.changed(changed)
		timer := time.NewTimer(opts.Wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
	return before, nil
}

// print is what two readings compare.
type print struct {
	header seal.Header
	sum    [32]byte
}

func (c *closure) prints() map[string]print {
	out := make(map[string]print, len(c.entries))
	for name, e := range c.entries {
		p := print{header: e.header, sum: e.sum}
		if e.header.Type == seal.TypeDir {
			p.header.ModTime = time.Time{} // another file in it came or went
		}
		out[name] = p
	}
	return out
}

func differences(a, b map[string]print) []string {
	var out []string
	for name, p := range b {
		if q, ok := a[name]; !ok || p != q {
			out = append(out, name)
		}
	}
	for name := range a {
		if _, ok := b[name]; !ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// changed marks the closure: it stands only if no later reading is better.
func (c *closure) changed(names []string) {
	const most = 10
	for i, name := range names {
		if i == most {
			c.degraded.addf("%d more files changed while they were read", len(names)-most)
			return
		}
		c.degraded.addf("%s changed while it was read", name)
	}
	if len(names) == 0 {
		c.degraded.addf("files changed while they were read")
	}
}

// write puts the facts and then every entry into the archive.
func (c *closure) write(ctx context.Context, w *seal.ArchiveWriter, r *Result) error {
	if err := writeFacts(&r.Facts, w); err != nil {
		return err
	}
	for _, name := range c.names() {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := c.entries[name]
		var err error
		switch e.header.Type {
		case seal.TypeDir:
			err = w.AddDir(e.header)
		case seal.TypeSymlink:
			err = w.AddSymlink(e.header)
		default:
			var written bool
			if written, err = c.writeFile(w, e); written {
				r.Files++
				r.Bytes += e.header.Size
			}
		}
		var refused *seal.RefusedError
		if errors.As(err, &refused) {
			c.degraded.addf("%s: the archive can't hold it, left out", name)
			continue
		}
		if err != nil {
			return fmt.Errorf("capture host files: %w", err)
		}
	}
	return nil
}

// writeFile archives what was read, or reads a large file once more.
func (c *closure) writeFile(w *seal.ArchiveWriter, e *entry) (written bool, err error) {
	if e.data != nil || e.header.Size == 0 {
		err := w.AddFile(e.header, bytes.NewReader(e.data))
		return err == nil, err
	}
	name := e.header.Name
	f, err := c.t.open(name)
	if err != nil {
		// Its header is not out yet: leave it out.
		c.degraded.addf("%s: %s", name, why(err))
		return false, nil
	}
	defer f.Close()
	body := newExactly(f, e.header.Size)
	if err := w.AddFile(e.header, body); err != nil {
		return false, err
	}
	if body.failed || body.sum() != e.sum {
		c.degraded.addf("%s changed while it was archived: what is stored of it is no whole file", name)
	}
	return true, nil
}

// exactly yields size bytes whatever happens to the file: an archive's entry
// can't be taken back once its header is out. It tells whether they were the file's.
type exactly struct {
	f      io.Reader
	left   int64
	h      hasher
	failed bool
}

func (x *exactly) Read(p []byte) (int, error) {
	if x.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > x.left {
		p = p[:x.left]
	}
	n := len(p)
	if !x.failed {
		var err error
		if n, err = x.f.Read(p); err != nil && n == 0 {
			x.failed = true
			n = len(p)
		}
	}
	if x.failed {
		clear(p[:n])
	}
	x.h.Write(p[:n])
	x.left -= int64(n)
	return n, nil
}
