package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

const (
	storeTimeout = time.Minute      // for all that is done with one store
	cleanTimeout = 10 * time.Second // for removing what a failed try left
	farewell     = time.Second      // for the same, of a person who waits behind Ctrl-C
	skewWarning  = 10 * time.Second // a clock that is this far off is worth a look
	skewProblem  = 5 * time.Minute  // from here on repository.ErrClock halts every prune
)

// stores makes a round trip to each store.
func (d *doctor) stores(ctx context.Context) {
	good := 0
	for _, s := range d.Config.Stores {
		if d.store(ctx, s) {
			good++
		}
		if ctx.Err() != nil {
			return
		}
	}
	if good < d.Config.MinStores {
		d.problem("stores", "bring the stores back, or lower minStores", "%d of %d work, a backup needs %d", good, len(d.Config.Stores), d.Config.MinStores)
	}
}

// store reports whether backups can be committed to the store. What fails because
// it was interrupted is no finding, unless something was left in the store.
func (d *doctor) store(interrupt context.Context, settings config.Store) bool {
	check := "store " + settings.URL
	ctx, cancel := context.WithTimeout(interrupt, storeTimeout)
	defer cancel()
	store, err := d.OpenStore(ctx, settings)
	if interrupt.Err() != nil {
		return false
	}
	if err != nil {
		d.problem(check, "correct the store's settings in the configuration", "%v", err)
		return false
	}
	if d.Vanished != nil { // before anything is written below a mount point
		err := d.Vanished(ctx, settings, store)
		if interrupt.Err() != nil {
			return false
		}
		if err != nil {
			d.problem(check, "mount the disk, or correct the store's URL", "%v", err)
			return false
		}
	}
	id, err := manifest.NewID(d.Rand)
	if err != nil {
		d.problem(check, "", "%v", err)
		return false
	}
	// Beside the clusters' folders, since nothing but backups belongs in those.
	p := &probe{store: store, name: "lifeboat-doctor-" + string(id), text: []byte("written by lifeboat doctor; may be deleted\n"), lock: settings.S3.ObjectLock.Mode != "", folder: strings.HasPrefix(settings.URL, "file:")}
	began := d.Now()
	if remedy, err := p.roundTrip(ctx, began); err != nil {
		interrupted := interrupt.Err() != nil
		left := p.clean(interrupt)
		switch {
		case !interrupted:
			d.problem(check, remedy, "%v", errors.Join(err, left))
		case left != nil:
			d.warn(check, "delete it", "an object of this check stays: %v", left)
		}
		return false
	}
	took := d.Now().Sub(began)
	d.ok(check, "create, conditional create, read, list and delete in %d ms", took.Milliseconds())
	d.protection(check, settings, p)
	d.clock(check, p.modified, began, took)
	d.encryptionKeys(ctx, check, settings, store)
	return true
}

// probe is the object that makes the round trip.
type probe struct {
	store storage.Store
	name  string
	text  []byte
	lock  bool // try to protect it

	folder bool // the store is a folder of this machine

	tried       bool // to create it
	created     bool
	modified    time.Time // by the store's clock
	lockRefused error     // why the store does not protect objects
	versions    int       // that were left after it was deleted
}

// roundTrip does with one object what backups, restores and prunes do. With an
// error it says what to do about it.
func (p *probe) roundTrip(ctx context.Context, now time.Time) (remedy string, err error) {
	put := func(retain time.Time) error {
		p.tried = true
		return p.store.Put(ctx, p.name, bytes.NewReader(p.text), storage.PutOptions{IfAbsent: true, RetainUntil: retain})
	}
	if p.lock {
		// As short as it may be: the version stays that long.
		p.lockRefused = put(now.Add(time.Minute))
		err = p.lockRefused
	}
	if !p.lock || p.lockRefused != nil {
		err = put(time.Time{})
	}
	if err != nil {
		return p.access(err, "create objects"), err
	}
	p.created = true
	switch err := put(time.Time{}); {
	case err == nil:
		return "use a server that honours If-None-Match: * (conditional writes): without it two writers overwrite each other's manifests",
			errors.New("a conditional create replaced an object that was there")
	case !errors.Is(err, storage.ErrExist):
		return p.access(err, "create objects on a condition"), fmt.Errorf("create what exists: %w", err)
	}
	r, info, err := p.store.Open(ctx, p.name, storage.Range{})
	if err != nil {
		return p.access(err, "read objects"), err
	}
	text, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(text, p.text) {
		return "look for a proxy or gateway that changes what passes through", fmt.Errorf("what was read is not what was written: %w", errors.Join(err, errDiffers))
	}
	p.modified = info.Modified
	listed := false
	for info, err := range p.store.List(ctx, p.name) {
		if err != nil {
			return p.access(err, "list objects"), err
		}
		listed = listed || info.Name == p.name
	}
	if !listed {
		return "use a store that lists what was just written", errors.New("an object that exists is not listed")
	}
	if err := p.store.Delete(ctx, p.name); err != nil && !errors.Is(err, storage.ErrProtected) {
		return p.access(err, "delete objects, or prune them by a lifecycle rule"), err
	}
	if versioned, ok := p.store.(storage.Versioned); ok {
		for _, err := range versioned.Versions(ctx, p.name) {
			if err != nil {
				break // not allowed to look: said as "not versioned"
			}
			p.versions++
		}
	}
	return "", nil
}

// access is the remedy for an operation that failed.
func (p *probe) access(err error, need string) string {
	switch {
	case errors.Is(err, storage.ErrFull):
		return "make room in the store"
	case p.folder:
		return "check the folder's owner and mode, and that its file system is mounted and can be written; it must be possible to " + need
	}
	return "check the credentials (environment, shared files, instance role), the bucket's policy and the endpoint; it must be allowed to " + need
}

// clean removes the object, also one whose creation was not answered: it may
// be there. The deadline is its own, since the round trip's may be over, and
// short after an interrupt.
func (p *probe) clean(interrupt context.Context) error {
	if !p.tried {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(interrupt), cleanTimeout)
	defer cancel()
	stop := context.AfterFunc(interrupt, func() { time.AfterFunc(farewell, cancel) })
	defer stop()
	if err := p.store.Delete(ctx, p.name); err != nil && p.created && !errors.Is(err, storage.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", p.name, err)
	}
	return nil
}

var errDiffers = errors.New("the bytes differ")

// protection says what stands between an attacker with the credentials and the
// backups.
func (d *doctor) protection(check string, settings config.Store, p *probe) {
	check += " protection"
	switch {
	case p.lock && p.lockRefused != nil:
		d.problem(check, "make the bucket with Object Lock, or remove objectLock from the configuration", "the store does not lock objects: %v", p.lockRefused)
	case p.lock && p.versions == 0:
		d.warn(check, "check that the bucket has Object Lock and versioning on", "a locked object could be deleted")
	case p.lock:
		d.ok(check, "Object Lock, %s, %d days", settings.S3.ObjectLock.Mode, settings.S3.ObjectLock.Days)
	case p.versions > 0:
		d.ok(check, "versioned: what is deleted or overwritten can be brought back; objectLock would refuse it")
	default:
		d.warn(check, "for S3 turn on versioning and Object Lock; for a directory keep a second store elsewhere",
			"none: who holds the store's credentials can delete every backup")
	}
}

// encryptionKeys compares the keys that etcd's values are encrypted with and those
// in the newest backups of the nodes' files.
func (d *doctor) encryptionKeys(ctx context.Context, check string, settings config.Store, store storage.Store) {
	if d.KeyCoverage == nil {
		return
	}
	check += " encryption keys"
	keys, err := d.KeyCoverage(ctx, settings, store)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		d.warn(check, "run \"lifeboat verify\"", "what the newest backups hold can't be read: %v", err)
		return
	}
	for _, g := range keys.Gaps {
		if len(g.Held) == 0 {
			d.problem(check, "run \"lifeboat backup --only files\" on a node whose API server has the key; if that does not help, name the file of its --encryption-provider-config in host.extraPaths", "%s", g)
			continue
		}
		d.warn(check, "give these API servers the key, and run \"lifeboat backup --only files\" there; until then, restore control-plane refuses their files", "%s", g)
	}
	switch {
	case keys.Fulls == 0:
		d.ok(check, "nothing to compare: there is no full backup of etcd yet that says which keys are in use")
	case keys.Keys == 0:
		d.ok(check, "none are needed: no value in the newest full backups is encrypted")
	case len(keys.Gaps) == 0:
		d.ok(check, "the nodes' newest files hold every key that the newest snapshots need (%d)", keys.Keys)
	}
}

// clock compares the store's clock with this machine's.
func (d *doctor) clock(check string, modified, began time.Time, took time.Duration) {
	check += " clock"
	const remedy = "synchronize this machine's clock (chrony, systemd-timesyncd), or the store's"
	// The store's time was read between began and began+took, to a second.
	skew := time.Duration(0)
	if early := began.Truncate(time.Second).Sub(modified); early > 0 {
		skew = -early
	} else if late := modified.Sub(began.Add(took)); late > 0 {
		skew = late
	}
	skew = skew.Round(time.Second)
	switch {
	case skew.Abs() >= skewProblem:
		d.problem(check, remedy, "the store's clock differs by %s: nothing is pruned while it does, and ages are wrong", skew)
	case skew.Abs() >= skewWarning:
		d.warn(check, remedy, "the store's clock differs by %s", skew)
	default:
		d.ok(check, "within %s of this machine's", max(time.Second, skew.Abs()))
	}
}
