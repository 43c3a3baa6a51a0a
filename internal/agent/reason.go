package agent

import (
	"context"
	"errors"

	"lifeboat/internal/status"
)

// Because gives an error of Works the reason that the run's metrics carry. It
// is nil for a nil error.
func Because(reason status.Reason, err error) error {
	if err == nil {
		return nil
	}
	return &reasoned{reason, err}
}

type reasoned struct {
	reason status.Reason
	err    error
}

func (r *reasoned) Error() string { return r.err.Error() }
func (r *reasoned) Unwrap() error { return r.err }

// ReasonOf is what Because said of an error, or what can be told without.
func ReasonOf(err error) status.Reason {
	var r *reasoned
	switch {
	case err == nil:
		return status.None
	case errors.As(err, &r):
		return r.reason
	case errors.Is(err, context.DeadlineExceeded):
		return status.Timeout
	case errors.Is(err, context.Canceled):
		return status.Interrupted
	}
	return status.Other
}
