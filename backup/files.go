package backup

import (
	"context"
	"errors"
	"fmt"
	"io"

	"lifeboat/backup/host"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
)

// filesFile is a files backup's data object.
const filesFile = "files.tar.zst.age"

// mostWarnings bounds what is said of a backup's degradation; all of it is in
// its manifest.
const mostWarnings = 3

// FilesChain is the chain of one node's host files.
func FilesChain(node string) manifest.Chain { return manifest.Chain("hosts/" + node) }

// Files backs up the host files of one node. uses are the encryption keys
// that etcd holds values of: one that the captured configuration lacks makes
// the backup degraded.
func (r *Runner) Files(ctx context.Context, options host.Options, uses []manifest.KeyUse) (*Result, error) {
	chain, created := FilesChain(options.Node), r.now()
	if err := r.anyOpen(); err != nil {
		return nil, fmt.Errorf("back up %s: %w", chain, err)
	}
	id, err := manifest.NewID(r.Rand)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	reader, writer := io.Pipe()
	var captured *host.Result
	captureDone := make(chan error, 1)
	go func() {
		var err error
		captured, err = capture(ctx, options, writer)
		writer.CloseWithError(err)
		captureDone <- err
	}()
	data, err := r.spread(ctx, chain, id, manifest.RoleFiles, filesFile, reader)
	reader.CloseWithError(errors.Join(errors.New("sealing ended"), err)) // frees a capture that still writes
	if captureErr := <-captureDone; err == nil {
		err = captureErr
	}
	if err != nil {
		return nil, fmt.Errorf("back up %s: %w", chain, err)
	}

	draft := r.draft(chain, manifest.KindFiles, id, created)
	draft.Host = &manifest.Host{Node: options.Node, Files: captured.Files, Bytes: captured.Bytes, Encryption: captured.Facts.KeyNames()}
	draft.Degraded = append(captured.Degraded, captured.Covers(uses)...)
	for i, reason := range draft.Degraded {
		if i == mostWarnings && len(draft.Degraded) > mostWarnings+1 {
			reason = fmt.Sprintf("degraded for %d more reasons: lifeboat show %s lists all", len(draft.Degraded)-i, id)
		}
		r.Events.Emit(events.Warning{Chain: string(chain), Subject: "host files", Message: reason})
		if i == mostWarnings {
			break
		}
	}
	return r.commit(ctx, draft, data)
}

func capture(ctx context.Context, options host.Options, w io.Writer) (*host.Result, error) {
	archive := seal.NewArchiveWriter(w)
	result, err := host.Capture(ctx, options, archive)
	if err != nil {
		return nil, err
	}
	return result, archive.Close()
}
