package pki

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"lifeboat/internal/chroot"
)

// Action is what a run does with one certificate.
type Action string

// The actions.
const (
	Keep       Action = "keep"
	Renew      Action = "renew"      // only its validity is at its end
	Reissue    Action = "re-issue"   // its names change, or its key
	MoveAside  Action = "move aside" // its owner makes a new one
	Impossible Action = "impossible" // it should be made anew and can't: see Remedy
)

// Face is what a certificate says.
type Face struct {
	Subject   string    `json:"subject"`
	SANs      []string  `json:"sans"` // DNS names and addresses
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// Leaf is one certificate of the plan.
type Leaf struct {
	File   string `json:"file"` // as the host sees it
	User   string `json:"user,omitempty"`
	Action Action `json:"action"`
	Reason string `json:"reason,omitempty"`
	Remedy string `json:"remedy,omitempty"` // of what is impossible: what to do instead
	Issuer string `json:"issuer"`           // the file of the CA, "" if it is unknown
	Old    Face   `json:"old"`
	New    *Face  `json:"new,omitempty"` // of what is renewed or re-issued

	leaf  *leaf
	draft *draft
}

// Edit is a kubeconfig of which more changes than a certificate.
type Edit struct {
	File    string   `json:"file"`
	Changes []Change `json:"changes"`

	config *configFile
}

// Change is one field's.
type Change struct {
	Field string `json:"field"`
	Old   string `json:"old"`
	New   string `json:"new"`

	node *yaml.Node
}

// Plan is what a run will do.
type Plan struct {
	Leaves      []Leaf `json:"leaves"`
	Kubeconfigs []Edit `json:"kubeconfigs"`
	// Unfinished names the files that an interrupted run has still to put in
	// place. Then the plan does that and nothing else; plan again afterwards.
	Unfinished []string `json:"unfinished,omitempty"`
	Warnings   []string `json:"warnings"`
	Notes      []string `json:"notes"` // what the plan does not do

	id   string // of this plan's journal
	opts Options
	now  time.Time
	t    *tree
	scan *scan
}

// Prepare looks at the node and says what is to be done. It changes nothing. A
// CA in use that is not valid now is an *AuthorityError. The caller closes the plan.
func Prepare(ctx context.Context, opts Options) (*Plan, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Rand == nil {
		opts.Rand = rand.Reader
	}
	t, err := openTree(opts.Root)
	if err != nil {
		return nil, err
	}
	p := &Plan{id: rand.Text(), opts: opts, now: opts.Now(), t: t, Leaves: []Leaf{}, Kubeconfigs: []Edit{}, Warnings: []string{}, Notes: []string{}}
	if err := p.prepare(ctx); err != nil {
		t.close()
		return nil, fmt.Errorf("plan the re-issuing of certificates: %w", err)
	}
	return p, nil
}

// Close releases the root.
func (p *Plan) Close() error { return p.t.close() }

// Count returns how many certificates have the action.
func (p *Plan) Count(a Action) int {
	n := 0
	for _, l := range p.Leaves {
		if l.Action == a {
			n++
		}
	}
	return n
}

func (p *Plan) prepare(ctx context.Context) error {
	if err := p.checkAside(); err != nil {
		return err
	}
	j, err := p.t.journal()
	if err != nil {
		return err
	}
	if p.Unfinished = j.names(); len(p.Unfinished) > 0 {
		return nil
	}
	if p.scan, err = p.t.scan(ctx, p.opts.Folders); err != nil {
		return err
	}
	if err := p.scan.checkAuthorities(p.now); err != nil {
		return err
	}
	for _, l := range p.scan.leaves {
		p.Leaves = append(p.Leaves, p.consider(l))
	}
	p.joinSharedKeys()
	p.moveKubeletServer()
	for i := range p.Leaves {
		p.settle(&p.Leaves[i])
	}
	p.edits()
	p.advise()
	slices.SortStableFunc(p.Leaves, func(a, b Leaf) int { return strings.Compare(a.File, b.File) })
	return nil
}

// checkAside keeps what is put aside out of the folders that are looked through,
// and of those whose files a kubelet runs.
func (p *Plan) checkAside() error {
	relative, err := filepath.Rel(p.t.path, p.opts.Aside)
	if err != nil {
		return nil // no relation: it is elsewhere
	}
	for _, folder := range append([]string{configFolder, kubeletFolder}, p.opts.Folders...) {
		if chroot.Within(filepath.ToSlash(relative), strings.Trim(folder, "/")) {
			return fmt.Errorf("%w: the aside folder %s lies in %s; choose one elsewhere", ErrInvalid, p.opts.Aside, folder)
		}
	}
	return nil
}

// consider decides about a certificate by itself.
func (p *Plan) consider(l *leaf) Leaf {
	out := Leaf{File: l.name(), User: l.userName(), Action: Keep, Old: face(l.cert), leaf: l}
	if l.issuer != nil {
		out.Issuer = l.issuer.file.name
	}
	d, err := p.draft(l)
	if err != nil {
		out.Action, out.Reason = Impossible, err.Error()
		return out
	}
	out.draft = d
	left := l.cert.NotAfter.Sub(p.now)
	switch {
	case string(d.subject) != string(l.cert.RawSubject):
		out.Action, out.Reason = Reissue, "its subject changes"
	case string(d.alternatives) != string(alternativesOf(l.cert)):
		out.Action, out.Reason = Reissue, "its names change"
	case !l.matchesKey():
		out.Action, out.Reason = Reissue, "its private key is another one's"
	case left < 0 && p.opts.RenewExpired:
		out.Action, out.Reason = Renew, "it expired on "+day(l.cert.NotAfter)
	case left < p.opts.RenewWithin && p.opts.RenewExpired && !l.endsWithCA():
		out.Action, out.Reason = Renew, "it expires on "+day(l.cert.NotAfter)
	}
	return out
}

// endsWithCA says that a new certificate could last no longer.
func (l *leaf) endsWithCA() bool {
	return l.issuer != nil && !l.issuer.cert.NotAfter.After(l.cert.NotAfter)
}

// draft maps what a certificate says.
func (p *Plan) draft(l *leaf) (*draft, error) {
	d := &draft{old: l.cert, issuer: l.issuer}
	var err error
	if d.subject, err = p.opts.subject(l.cert.RawSubject); err != nil {
		return nil, err
	}
	var more []string
	if forAPIServer(l.cert) {
		more = p.opts.AddSANs
	}
	d.alternatives, err = p.opts.alternatives(alternativesOf(l.cert), more)
	return d, err
}

func alternativesOf(cert *x509.Certificate) []byte {
	if e := extension(cert, oidSubjectAltName); e != nil {
		return e.Value
	}
	return nil
}

// joinSharedKeys takes the certificates of one key together: a new key is new
// for all of them, and none gets one where another can't.
func (p *Plan) joinSharedKeys() {
	first, blocked := map[string]string{}, map[string]string{} // by spot of the key
	for _, l := range p.Leaves {
		if id := l.leaf.key.id; l.makes() && first[id] == "" {
			first[id] = l.File
		}
		if id := l.leaf.key.id; blocked[id] == "" {
			blocked[id] = l.leaf.obstacle()
		}
	}
	for i := range p.Leaves {
		l := &p.Leaves[i]
		other, why := first[l.leaf.key.id], blocked[l.leaf.key.id]
		switch {
		case l.makes() && why != "":
			l.Action, l.Reason = Impossible, l.Reason+", but "+why
		case l.Action == Keep && other != "" && why == "":
			l.Action, l.Reason = Reissue, "it shares its private key with "+other
		}
	}
}

// makes says whether a certificate is made anew.
func (l *Leaf) makes() bool { return l.Action == Renew || l.Action == Reissue }

// obstacle says why nothing can be made anew for this certificate.
func (l *leaf) obstacle() string {
	switch err := makeable(l.cert.PublicKey); {
	case l.issuer == nil:
		return "no saved CA has signed it"
	case l.issuer.key == nil:
		return "the private key of its CA " + l.issuer.file.name + " is not there"
	case l.key.trouble != "":
		return l.key.trouble
	case err != nil:
		return err.Error()
	}
	return ""
}

// moveKubeletServer moves the kubelet's self-signed pair out of its way, which
// makes a new one for its name when it starts.
func (p *Plan) moveKubeletServer() {
	changes := slices.ContainsFunc(p.Leaves, func(l Leaf) bool { return l.Action == Reissue && p.nodeChanges(l.draft) })
	for i := range p.Leaves {
		l := &p.Leaves[i]
		if l.File != kubeletServer || l.leaf.issuer != nil || l.Action == Keep && !changes {
			continue
		}
		l.Action, l.Reason = MoveAside, "self-signed for the node as it was; the kubelet makes a new one when it starts"
	}
}

// nodeChanges says whether a draft differs by more than names that were added.
func (p *Plan) nodeChanges(d *draft) bool {
	without, err := p.opts.alternatives(alternativesOf(d.old), nil)
	return err != nil || string(without) != string(alternativesOf(d.old)) || string(d.subject) != string(d.old.RawSubject)
}

// longLife is more than the year that kubeadm gives a certificate.
const longLife = 400 * 24 * time.Hour

// settle adds what the new certificate will say, or what to do in its stead.
func (p *Plan) settle(l *Leaf) {
	switch {
	case l.makes():
		l.draft.life(p.now)
		l.New = l.draft.face()
		if last := l.draft.issuer.cert.NotAfter; l.draft.notAfter.Equal(last) && l.Old.NotAfter.Sub(l.Old.NotBefore) > last.Sub(l.draft.notBefore) {
			p.warn("%s: the new certificate ends with its CA on %s, earlier than its kind lasts", l.File, day(last))
		}
	case l.Action == Impossible:
		l.Remedy = l.remedy()
	case l.Action == Keep && p.now.After(l.Old.NotAfter):
		p.warn("%s: it expired on %s and is not renewed: that was not asked for", l.File, day(l.Old.NotAfter))
	case l.Action == Keep && p.now.Before(l.Old.NotBefore):
		p.warn("%s: it is not valid before %s: is this machine's clock right?", l.File, day(l.Old.NotBefore))
	}
	if l.New == nil {
		return
	}
	if old := l.leaf.cert; old.NotBefore.Equal(l.leaf.issuer.cert.NotBefore) && old.NotAfter.Sub(old.NotBefore) > longLife {
		p.warn("%s: it begins with its CA, as kubeadm before 1.31 wrote, so how long it was meant to last is not known; the new one ends on %s", l.File, day(l.New.NotAfter))
	}
	for _, name := range l.New.SANs {
		if short, _, long := strings.Cut(name, "."); long && p.opts.Rename[short] != "" {
			p.warn("%s: it goes on naming %s: rename that one, too, if it is the node's", l.File, name)
		}
	}
}

func (l *Leaf) remedy() string {
	switch {
	case l.leaf.file != nil && l.leaf.file.link != "":
		return "let the kubelet ask for a new one once the API server answers: write a bootstrap token's kubeconfig to " +
			"/etc/kubernetes/bootstrap-kubelet.conf, move kubelet.conf and this file away, and restart the kubelet"
	case l.leaf.issuer == nil || l.leaf.issuer.key == nil:
		names, subject := l.Old.SANs, l.Old.Subject
		if l.draft != nil {
			planned := l.draft.face()
			names, subject = planned.SANs, planned.Subject
		}
		text := fmt.Sprintf("put the private key of the CA %q beside its certificate and plan again, or have its owner sign one for %s", l.leaf.cert.Issuer.CommonName, subject)
		if len(names) > 0 {
			text += " with the names " + strings.Join(names, ", ")
		}
		return text + ", and put it with its key here"
	case l.leaf.key.trouble != "":
		return "give it a private key of its own, without a passphrase and alone in its file, at " + keyBeside(l.File) + " (in a kubeconfig: in client-key-data) and plan again"
	}
	return "make a certificate for it by hand, or remove it if nothing uses it, and plan again"
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}
