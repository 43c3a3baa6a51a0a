package plane

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/restore"
)

// ErrShared says that a shared order can't be used.
var ErrShared = errors.New("the shared order of the restore can't be used")

// Shared is what all nodes of one restore must do alike: the first node's plan
// gives it, the others take it. Its MAC is made with a key that only who can
// unseal the cluster's backups can know, so nobody else can send a node
// elsewhere: it is derived from the full's own (restore.Secret). The order is no
// secret itself.
type Shared struct {
	Format  int            `json:"format"`
	Cluster string         `json:"cluster"` // as in the repository's folder
	Chain   manifest.Chain `json:"chain"`
	Created time.Time      `json:"created"`
	Order   Order          `json:"order"` // without what is one node's own
	MAC     string         `json:"mac"`
}

const (
	sharedFormat = 1
	maxShared    = 1 << 20 // bytes
)

// sharedPurpose is what the MAC's key is derived for.
const sharedPurpose = "shared restore 1"

// Share returns the order for the restore's other nodes. The plan need not be
// executed before.
func (p *Plan) Share() ([]byte, error) {
	s := Shared{Format: sharedFormat, Cluster: p.opts.Repo.Cluster(), Chain: p.chain(), Created: p.opts.Now().UTC(), Order: p.Order}
	s.Order.Node, s.Order.FilesID = "", ""
	mac, err := s.mac(p.secret)
	if err != nil {
		return nil, err
	}
	s.MAC = mac
	text, err := json.MarshalIndent(s, "", "  ")
	return append(text, '\n'), err
}

// ParseShared reads a shared order. Nothing in it counts before Prepare has
// verified it. Errors wrap ErrShared.
func ParseShared(text []byte) (*Shared, error) {
	if len(text) > maxShared {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrShared, len(text))
	}
	var s Shared
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrShared, err)
	}
	switch {
	case s.Format > sharedFormat:
		return nil, fmt.Errorf("%w: a newer lifeboat made it (format %d, this one knows %d)", ErrShared, s.Format, sharedFormat)
	case s.Format != sharedFormat || s.Order.RestoreID == "" || s.Order.Token == "" || s.MAC == "":
		return nil, fmt.Errorf("%w: it is not whole", ErrShared)
	}
	return &s, nil
}

// takeShared makes the order the shared one, but for what is the node's own.
func (p *Plan) takeShared() error {
	s := p.opts.Shared
	if s == nil {
		return nil
	}
	if s.Cluster != p.opts.Repo.Cluster() || s.Chain != p.chain() {
		return fmt.Errorf("%w: %w: it is for %s of cluster %s, this is %s of %s", restore.ErrRefused, ErrShared, s.Chain, s.Cluster, p.chain(), p.opts.Repo.Cluster())
	}
	own := p.Order
	p.Order = s.Order
	p.Order.Node, p.Order.FilesID = own.Node, own.FilesID
	return nil
}

// checkShared refuses an order that nobody made who can unseal the backups.
func (p *Plan) checkShared(ctx context.Context) error {
	s := p.opts.Shared
	if s == nil {
		return nil
	}
	route, err := p.opts.Repo.Route(ctx, p.chain(), s.Order.Point)
	if err != nil {
		return fmt.Errorf("%w: %w: find the backup that it is of: %w", restore.ErrRefused, ErrShared, err)
	}
	secret, err := restore.Secret(ctx, p.opts.Repo, route.Base.Manifest, sharedPurpose, p.opts.Identities)
	if err != nil {
		return err
	}
	mac, err := s.mac(secret)
	if err != nil {
		return err
	}
	if !hmac.Equal([]byte(mac), []byte(s.MAC)) {
		return fmt.Errorf("%w: %w: it was changed, or not made from a backup of this cluster", restore.ErrRefused, ErrShared)
	}
	return nil
}

// mac is that of a shared order, without its own MAC.
func (s Shared) mac(secret []byte) (string, error) {
	s.MAC = ""
	text, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(text)
	return hex.EncodeToString(mac.Sum(nil)), nil
}

// chain is the etcd's.
func (p *Plan) chain() manifest.Chain {
	if p.opts.Chain == "" {
		return restore.DefaultChain
	}
	return p.opts.Chain
}
