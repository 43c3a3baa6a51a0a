package plane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/restore/kubeapi"
)

// Etcd waits until the members answer, with a leader, and take writes. Where several
// are restored it takes a majority of them.
func (l *Living) Etcd(ctx context.Context) error { return l.serves(ctx, "etcd", l.etcd) }

// Events implements Health.
func (l *Living) Events(ctx context.Context) error {
	if l.events == nil {
		return nil
	}
	return l.serves(ctx, "the etcd of events", l.events)
}

// serves asks again until an etcd serves.
func (l *Living) serves(ctx context.Context, what string, etcd *kubeapi.Etcd) error {
	for said := ""; ; {
		err := l.ready(ctx, etcd)
		if err == nil || errors.Is(err, kubeapi.ErrCorrupt) || errors.Is(err, kubeapi.ErrFull) {
			return err
		}
		if text := what + ": " + err.Error(); text != said && l.progress != nil {
			said = text
			l.progress(text)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; it says: %w", what, context.Cause(ctx), err)
		case <-time.After(l.pause):
		}
	}
}

// ready looks once. A NOSPACE alarm that came along out of the backup goes at once:
// under it neither kubelet nor the API server could write. That takes all members, so
// where several are restored it is waited for the others.
func (l *Living) ready(ctx context.Context, etcd *kubeapi.Etcd) error {
	members, err := etcd.Members(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(members, leads) {
		return errors.New("no member knows a leader yet")
	}
	cleared, err := etcd.ClearNoSpace(ctx, l.progress)
	l.tell(cleared)
	return err
}

// leads says whether a member knows a leader.
func leads(m kubeapi.EtcdMember) bool { return m.Leader != 0 }
