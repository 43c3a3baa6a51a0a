package restore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
)

// ExportOptions says which point becomes a snapshot file.
type ExportOptions struct {
	Chain      manifest.Chain   // DefaultChain if empty
	Point      repository.Point // the latest if zero
	Without    []manifest.ID    // segments whose data is known to be lost or damaged
	Identities []age.Identity
	Out        string // the file to write, mode 0600
	Bump       uint64 // raise the last revision by it and mark all before it compacted; 0: neither
	Force      bool   // replace Out if it exists
	Quota      *int64 // as in EtcdOptions
	Now        func() time.Time
	Rand       io.Reader // names the temporary file
	Events     events.Listener
}

// ExportResult says what was written.
type ExportResult struct {
	Choice   Choice             // what was exported
	Backup   *manifest.Manifest // the full that it begins with
	Applied  *Applied           // nil: there were no segments
	Path     string
	Bytes    int64  // of the file, with its hash trailer
	Revision int64  // the last one in it, after the bump
	HashKV   uint32 // as of CompactRevision; both before the bump

	CompactRevision int64
}

// Export writes a point of etcd as an ordinary snapshot file with its hash
// trailer, which etcdutl's snapshot restore accepts. It checks the database as
// a restore does. The file appears whole, under its name, or not at all.
func Export(ctx context.Context, repo *repository.Repository, opts ExportOptions) (*ExportResult, error) {
	if opts.Chain == "" {
		opts.Chain = DefaultChain
	}
	if opts.Out == "" {
		return nil, fmt.Errorf("%w: no file to export to", datadir.ErrInvalid)
	}
	if _, err := os.Lstat(opts.Out); err == nil && !opts.Force {
		return nil, fmt.Errorf("%w: %s: %w; --force replaces it", ErrRefused, opts.Out, fs.ErrExist)
	}
	route, err := routeTo(ctx, repo, opts.Chain, opts.Point, opts.Without)
	if err != nil {
		return nil, err
	}
	m := route.Base.Manifest
	quota := quotaFor(opts.Quota, m)
	if err := overQuota(least(route), quota, "would be at least"); err != nil {
		return nil, err
	}
	object, err := objectOf(m, manifest.RoleSnapshot)
	if err != nil {
		return nil, err
	}
	id, err := manifest.NewID(opts.Rand)
	if err != nil {
		return nil, fmt.Errorf("make a temporary name: %w", err)
	}
	res := &ExportResult{Choice: ChoiceOf(route), Backup: m, Path: opts.Out}
	tmp := filepath.Join(filepath.Dir(opts.Out), "."+filepath.Base(opts.Out)+"."+string(id)+".tmp")
	defer os.Remove(tmp) // gone already if all went well

	plan := &Plan{chain: string(opts.Chain), now: opts.Now}
	var sum [sha256.Size]byte
	var facts *snapdb.Facts
	plan.Steps = []Step{
		{Stage: "fetch", Total: object.PlainSize, Run: func(ctx context.Context) error {
			free, err := durable.FreeSpace(filepath.Dir(opts.Out))
			if err != nil {
				return err
			}
			if need := object.PlainSize + roomFor(route); free < need {
				return fmt.Errorf("%w: %s has %d bytes left, the snapshot takes %d", ErrRefused, filepath.Dir(opts.Out), free, need)
			}
			r, err := unseal(ctx, repo, object, opts.Identities)
			if err != nil {
				return err
			}
			defer r.Close()
			_, sum, err = datadir.Receive(ctx, tmp, r, object.PlainSize, plan.progress("fetch"))
			return verification(err)
		}},
		{Stage: "check", Total: m.Etcd.DBBytes, Run: func(ctx context.Context) (err error) {
			if facts, err = checkDatabase(ctx, tmp, m, plan.progress("check")); err != nil {
				return err
			}
			res.Revision, res.HashKV, res.CompactRevision = facts.Revision, facts.HashKV, max(0, facts.CompactRevision)
			return overQuota(facts.DBBytes, quota, "is")
		}},
		{Stage: "apply", Total: stepBytes(route), Run: func(ctx context.Context) (err error) {
			if res.Applied, err = apply(ctx, repo, route, opts.Identities, tmp, filepath.Dir(opts.Out), facts, plan.progress("apply")); err != nil {
				return err
			}
			res.Revision, res.CompactRevision = int64(route.Revision), res.Applied.Compact
			if res.HashKV, err = snapdb.HashKV(ctx, tmp, res.Revision, res.CompactRevision); err != nil {
				return verification(err)
			}
			return overQuota(res.Applied.Bytes, quota, "has become")
		}},
		{Stage: "write", Run: func(ctx context.Context) (err error) {
			if opts.Bump > 0 {
				if _, res.Revision, err = datadir.Bump(tmp, opts.Bump); err != nil {
					return verification(err)
				}
			}
			if opts.Bump > 0 || res.Applied != nil {
				if sum, err = hashFile(ctx, tmp); err != nil {
					return err
				}
			}
			if res.Bytes, err = appendTrailer(tmp, sum); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return publish(tmp, opts.Out, opts.Force)
		}},
	}
	if len(route.Segments) == 0 {
		plan.Steps = slices.DeleteFunc(plan.Steps, func(s Step) bool { return s.Stage == "apply" })
	}
	if err := plan.Execute(ctx, opts.Events); err != nil {
		return nil, fmt.Errorf("export backup %s: %w", m.ID, err)
	}
	return res, nil
}

func hashFile(ctx context.Context, path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return sum, context.Cause(ctx)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return [sha256.Size]byte(h.Sum(nil)), nil
		}
		if err != nil {
			return sum, fmt.Errorf("hash %s: %w", path, err)
		}
	}
}

// appendTrailer makes a database file a snapshot file, and durable.
func appendTrailer(path string, sum [sha256.Size]byte) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(sum[:]); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("sync %s: %w", path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// publish gives a durable file its name. Before it the file is not there,
// after it it is whole.
func publish(tmp, out string, replace bool) error {
	if replace {
		if err := os.Rename(tmp, out); err != nil {
			return err
		}
		return durable.SyncDir(filepath.Dir(out))
	}
	var err error
	for _, place := range placing {
		if err = place(tmp, out); err == nil || errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(out))
}

// placing are the ways to give a file a name that must be free, the best
// first. A USB stick's FAT has no hard links, and old kernels have no rename
// there that refuses to replace.
var placing = []func(tmp, out string) error{linked, renamed, claimed}

func linked(tmp, out string) error {
	if err := os.Link(tmp, out); err != nil {
		return err
	}
	return os.Remove(tmp)
}

func renamed(tmp, out string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, out, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: tmp, New: out, Err: err}
	}
	return nil
}

// claimed takes the name with an empty file and replaces that. It alone has a
// moment in which the name stands for nothing.
func claimed(tmp, out string) error {
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Close(), os.Rename(tmp, out)); err != nil {
		return errors.Join(err, os.Remove(out))
	}
	return nil
}
