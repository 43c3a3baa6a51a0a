package work

import (
	"context"
	"errors"

	"lifeboat/internal/agent"
	"lifeboat/internal/status"
)

// Prune applies retention to every chain of every store, and sweeps.
func (w *Work) Prune(context.Context) (*agent.Outcome, error) {
	return nil, agent.Because(status.Other, errors.New("retention is not wired yet"))
}
