// Package pki re-issues a control-plane node's leaf certificates and the
// kubeconfigs that hold them, from the certificate authorities (CAs) that a backup
// saved: for a node that comes back under another name or address, or with
// certificates that expired meanwhile. It works on a folder tree, without a
// network and without kubeadm. It makes no CA and touches none.
//
// Inspect lists what is there. Prepare returns a plan, which changes nothing,
// prints itself and has a JSON form; Apply carries it out, and Undo takes it
// back.
//
// Apply can be killed at any moment. All new files are first written beside
// their places, and all old ones kept in the aside folder; then one journal names
// the renames. Before the journal is there nothing has changed, after it the next
// Prepare and Apply only finish it, so that no certificate stays without its key.
//
// Names are resolved as in a chroot of the root, by package chroot, and opened
// through os.Root, so that no link leads out.
package pki

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// What a caller may want to tell apart; see also AuthorityError.
var (
	// ErrInvalid says that the options can't be used as they are.
	ErrInvalid = errors.New("invalid options for re-issuing certificates")
	// ErrUnreadable says that a file can't be what its name says: too large,
	// no PEM, no kubeconfig.
	ErrUnreadable = errors.New("not readable as what it should be")
	// ErrChanged says that a file is not what it was when the plan was made.
	ErrChanged = errors.New("changed since the plan was made; plan again")
	// ErrInUse says that another restore writes below the same root.
	ErrInUse = errors.New("another restore runs there; wait until it has ended")
	// ErrNothingToUndo says that the aside folder holds no record of a run.
	ErrNothingToUndo = errors.New("no run of re-issuing is recorded there")
)

// AuthorityError says that a CA is not valid now, so that nothing can be issued
// from it. Kubernetes has no way to renew a CA on a running cluster but to
// replace it.
type AuthorityError struct {
	File      string // as the host sees it
	Name      string // its common name
	NotBefore time.Time
	NotAfter  time.Time
	Now       time.Time
}

func (e *AuthorityError) Error() string {
	when := "expired on " + e.NotAfter.UTC().Format(time.RFC3339)
	if e.Now.Before(e.NotBefore) {
		when = "is not valid before " + e.NotBefore.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%s: the CA %q %s, and it is %s: nothing can be renewed from it; if the clock is right, "+
		"replace the CA by hand (Kubernetes' page \"Manual Rotation of CA Certificates\"), then plan again",
		e.File, e.Name, when, e.Now.UTC().Format(time.RFC3339))
}

// Options say what changed, and where.
type Options struct {
	Root    string   // an existing folder that holds etc/kubernetes and so on
	Aside   string   // absolute; what is replaced is kept here under its own path
	Folders []string // more folders of certificates, as the host sees them, such as an external etcd's

	Rename  map[string]string         // node names, old to new
	Address map[netip.Addr]netip.Addr // node addresses, old to new
	AddSANs []string                  // more names and addresses for the API server's certificate

	RenewExpired bool
	RenewWithin  time.Duration // with RenewExpired: also what expires within this time

	Now func() time.Time // time.Now if nil
	// Rand is read for serial numbers and signatures; crypto/rand if nil. Private
	// keys always come from Go's own secure source.
	Rand io.Reader
	// KeepOwner leaves new files to the user who restores. Owners are set only
	// by root in any case.
	KeepOwner bool
}

// State is how a certificate is now.
type State string

// The states, the first that fits.
const (
	Expired     State = "expired"
	NotYetValid State = "not yet valid"
	UnknownCA   State = "unknown CA" // no saved CA has signed it
	ExpiresSoon State = "expires soon"
	Fine        State = "fine"
)

// Soon is how long before its end a certificate counts as one that expires
// soon: kubeadm renews a month ahead.
const Soon = 30 * 24 * time.Hour

// Certificate is one certificate of a node.
type Certificate struct {
	File      string       `json:"file"`           // as the host sees it
	User      string       `json:"user,omitempty"` // whose it is in a kubeconfig
	Subject   string       `json:"subject"`
	DNSNames  []string     `json:"dnsNames"`
	Addresses []netip.Addr `json:"addresses"`
	Issuer    string       `json:"issuer"`    // the file of the CA that signed it, "" if none here did
	IssuerKey bool         `json:"issuerKey"` // the CA's private key is there
	NotBefore time.Time    `json:"notBefore"`
	NotAfter  time.Time    `json:"notAfter"`
	CA        bool         `json:"ca"`
	State     State        `json:"state"`
}

// Inventory is all certificates of a node.
type Inventory struct {
	Certificates []Certificate `json:"certificates"` // by file
	// Interrupted names the files that an interrupted run has still to put in
	// place: until Prepare and Apply have finished it, pairs may not match.
	Interrupted []string `json:"interrupted,omitempty"`
}
