package pki

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Where kubeadm and the kubelet keep what is read here.
const (
	pkiFolder     = "/etc/kubernetes/pki"
	configFolder  = "/etc/kubernetes"
	kubeletFolder = "/var/lib/kubelet/pki"
	kubeletServer = kubeletFolder + "/kubelet.crt" // self-signed; the kubelet makes one where there is none
	currentSuffix = "-current.pem"

	serviceAccountKey = "sa.key" // with a new one every token would be void
)

var (
	configNames = []string{"admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf", "kubelet.conf"}
	// kubeletLinks lead to the certificate in use, which lies beside those before it.
	kubeletLinks = []string{"kubelet-client", "kubelet-server"}
)

// scan is all that was read of a node.
type scan struct {
	t           *tree
	pems        []*pemFile
	certs       int // in pems
	byPlace     map[string]*pemFile
	configs     []*configFile
	authorities []*authority
	leaves      []*leaf
}

// pemFile is a file of certificates or keys.
type pemFile struct {
	*saved
	bundle
	link string // the place of the kubelet's link that leads to it, else ""
}

// configFile is a kubeconfig on disk.
type configFile struct {
	*saved
	*kubeconfig
	trust       []bundle // of each cluster
	certs, keys []bundle // of each user, what is inside the kubeconfig
}

// authority is a CA's certificate.
type authority struct {
	cert *x509.Certificate
	file *saved
	key  *privateKey // nil if it is not there
	own  bool        // its file holds nothing but CAs
}

// leaf is a certificate that may be re-issued, with where it and its key are.
type leaf struct {
	cert   *x509.Certificate
	chain  []*x509.Certificate // what follows it in the file
	issuer *authority          // nil if no saved CA has signed it
	file   *pemFile            // nil for one in a kubeconfig
	config *configFile         // and user, if it is in a kubeconfig
	user   int
	key    keySpot
}

// keySpot is where a leaf's key is.
type keySpot struct {
	id      string      // tells spots apart: leaves with one spot share their key
	file    *pemFile    // nil for one in a kubeconfig
	key     *privateKey // nil with trouble
	trouble string      // why no new key can be put there, as a sentence without its end
}

func (l *leaf) name() string {
	if l.file != nil {
		return l.file.name
	}
	return l.config.name
}

func (l *leaf) userName() string {
	if l.file != nil {
		return ""
	}
	return value(l.config.users[l.user].name)
}

func (l *leaf) matchesKey() bool {
	return l.key.key == nil || samePublic(l.cert.PublicKey, l.key.key.signer.Public())
}

func (t *tree) scan(ctx context.Context, folders []string) (*scan, error) {
	s := &scan{t: t, byPlace: map[string]*pemFile{}}
	for _, folder := range folders {
		if place, err := t.resolve(folder); err != nil || place.Missing {
			return nil, errors.Join(fmt.Errorf("%w: the folder %s is not there", ErrInvalid, folder), err)
		}
	}
	for _, folder := range append([]string{pkiFolder}, folders...) {
		if err := s.folder(ctx, path.Join("/", folder), 0); err != nil {
			return nil, err
		}
	}
	if err := s.kubelet(); err != nil {
		return nil, err
	}
	if err := s.kubeconfigs(); err != nil {
		return nil, err
	}
	s.findAuthorities()
	s.findLeaves()
	return s, nil
}

func (s *scan) folder(ctx context.Context, folder string, depth int) error {
	names, err := s.t.names(folder)
	if err != nil {
		return fmt.Errorf("list %s: %w", folder, err)
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if rotated(name) {
			continue
		}
		file := path.Join(folder, name)
		place, err := s.t.resolve(file)
		if err != nil || place.Missing {
			continue // a link that leads nowhere holds no certificate
		}
		info, err := s.t.lstat(place.Name)
		switch {
		case err != nil:
			return fmt.Errorf("look at %s: %w", file, err)
		case info.IsDir():
			if depth < deepest && len(place.Links) == 0 {
				err = s.folder(ctx, file, depth+1)
			}
		case ofPEM(name):
			_, err = s.file(file)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rotated: the kubelet leaves what it has replaced beside the link to the one in
// use, to expire there.
func rotated(name string) bool {
	return slices.ContainsFunc(kubeletLinks, func(link string) bool { return strings.HasPrefix(name, link+"-2") })
}

func ofPEM(name string) bool {
	switch path.Ext(name) {
	case ".crt", ".key", ".pem":
		return true
	}
	return false
}

// file reads a PEM file once, whatever names lead to it; nil if it is not there.
func (s *scan) file(name string) (*pemFile, error) {
	if place, err := s.t.resolve(name); err == nil && s.byPlace[place.Name] != nil {
		return s.byPlace[place.Name], nil
	}
	if len(s.pems) == filesLimit {
		return nil, fmt.Errorf("read %s: %w: more than %d files of certificates and keys", name, ErrUnreadable, filesLimit)
	}
	got, err := s.t.read(name)
	if got == nil || err != nil {
		return nil, err
	}
	b, err := parsePEM(got.data)
	s.certs += len(b.certs)
	switch {
	case err != nil:
	case path.Ext(name) == ".crt" && len(b.certs) == 0:
		err = fmt.Errorf("%w: no certificate in it", ErrUnreadable)
	case s.certs > certsLimit:
		err = fmt.Errorf("%w: with those before it more than %d certificates", ErrUnreadable, certsLimit)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	f := &pemFile{saved: got, bundle: b}
	s.byPlace[got.place] = f
	s.pems = append(s.pems, f)
	return f, nil
}

// kubelet reads the pairs that the kubelet uses, and none that it has replaced.
func (s *scan) kubelet() error {
	for _, name := range kubeletLinks {
		name = kubeletFolder + "/" + name + currentSuffix
		f, err := s.file(name)
		if err != nil {
			return err
		}
		place, err := s.t.folderOf(name)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if f != nil && f.place != place {
			f.name, f.link = name, place
		}
	}
	for _, name := range []string{kubeletServer, keyBeside(kubeletServer)} {
		if _, err := s.file(name); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) kubeconfigs() error {
	for _, name := range configNames {
		got, err := s.t.read(path.Join(configFolder, name))
		if err != nil {
			return err
		}
		if got == nil {
			continue
		}
		c, err := parseConfigFile(got)
		if err != nil {
			return fmt.Errorf("read %s: %w", got.name, err)
		}
		s.configs = append(s.configs, c)
		for _, u := range c.users {
			for _, node := range []*yaml.Node{u.certFile, u.keyFile} {
				if node == nil {
					continue
				}
				if _, err := s.file(c.beside(node.Value)); err != nil {
					return fmt.Errorf("a file that %s names: %w", c.name, err)
				}
			}
		}
	}
	return nil
}

// parseConfigFile parses a kubeconfig and what is inside it.
func parseConfigFile(got *saved) (*configFile, error) {
	k, err := parseKubeconfig(got.data)
	if err != nil {
		return nil, err
	}
	c := &configFile{saved: got, kubeconfig: k}
	inline := func(into *[]bundle, node *yaml.Node) {
		var b bundle
		if node != nil && err == nil {
			b, err = inlinePEM(node)
		}
		*into = append(*into, b)
	}
	for _, cluster := range k.clusters {
		inline(&c.trust, cluster.caData)
	}
	for _, u := range k.users {
		inline(&c.certs, u.certData)
		inline(&c.keys, u.keyData)
	}
	return c, err
}

// beside makes a kubeconfig's file name whole.
func (c *configFile) beside(name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(path.Dir(c.name), name)
}

// keyBeside is the name that kubeadm gives the key of a certificate.
func keyBeside(name string) string { return strings.TrimSuffix(name, path.Ext(name)) + ".key" }

// keyOf finds the file of a certificate file's key: itself, a file whose name
// says so, or one in its folder that fits.
func (s *scan) keyOf(f *pemFile) keySpot {
	if len(f.keys) > 0 || f.sealed {
		return spotOf(f)
	}
	stem := strings.TrimSuffix(f.place, path.Ext(f.place))
	for _, place := range []string{stem + ".key", stem + "-key.pem"} {
		if k := s.byPlace[place]; k.holdsOnlyKeys() {
			return spotOf(k)
		}
	}
	spot := keySpot{id: "none of " + f.place, trouble: "its private key is not beside it"}
	for _, k := range s.pems {
		if path.Dir(k.place) != path.Dir(f.place) || !k.holdsOnlyKeys() || len(k.keys) != 1 || !samePublic(f.certs[0].PublicKey, k.keys[0].signer.Public()) {
			continue
		}
		if spot.file != nil {
			spot.trouble, spot.key = "its private key is in "+spot.file.name+" and "+k.name, nil
			return spot
		}
		spot = spotOf(k)
	}
	return spot
}

func (f *pemFile) holdsOnlyKeys() bool {
	return f != nil && len(f.certs) == 0 && (len(f.keys) > 0 || f.sealed)
}

func spotOf(f *pemFile) keySpot {
	spot := keySpot{id: f.place, file: f}
	switch {
	case f.sealed:
		spot.trouble = "its private key is behind a passphrase"
	case len(f.keys) > 1:
		spot.trouble = f.name + " holds more than one private key"
	default:
		spot.key = &f.keys[0]
	}
	return spot
}

func (s *scan) findLeaves() {
	explicit := s.namedKeys()
	for _, f := range s.pems {
		if len(f.certs) == 0 || f.certs[0].IsCA && f.name != kubeletServer {
			continue
		}
		l := &leaf{cert: f.certs[0], chain: f.certs[1:], file: f}
		if key := explicit[f]; key != nil {
			l.key = spotOf(key)
		} else {
			l.key = s.keyOf(f)
		}
		s.leaves = append(s.leaves, l)
	}
	for _, c := range s.configs {
		for i, b := range c.certs {
			if len(b.certs) > 0 && !b.certs[0].IsCA {
				l := &leaf{cert: b.certs[0], chain: b.certs[1:], config: c, user: i, key: c.keyOf(i)}
				s.leaves = append(s.leaves, l)
			}
		}
	}
	for _, l := range s.leaves {
		l.issuer = s.issuerOf(l.cert)
		s.spare(&l.key)
	}
}

// spare keeps keys that others depend on from being replaced with a leaf's.
func (s *scan) spare(spot *keySpot) {
	if spot.key == nil {
		return
	}
	for _, a := range s.authorities {
		if samePublic(a.cert.PublicKey, spot.key.signer.Public()) {
			spot.trouble = "its private key is that of the CA " + a.file.name
		}
	}
	if spot.file != nil && path.Base(spot.file.place) == serviceAccountKey {
		spot.trouble = "its private key signs the service accounts' tokens"
	}
}

// keyOf is the spot of a user's key inside a kubeconfig.
func (c *configFile) keyOf(user int) keySpot {
	spot := keySpot{id: fmt.Sprintf("%s, user %d", c.place, user)}
	switch keys := c.keys[user].keys; {
	case len(keys) == 1:
		spot.key = &keys[0]
	case len(keys) > 1:
		spot.trouble = "the kubeconfig holds more than one private key for this user"
	default:
		spot.trouble = "its private key is not in the kubeconfig"
	}
	return spot
}

// namedKeys maps a certificate file to the key file that a kubeconfig names with it.
func (s *scan) namedKeys() map[*pemFile]*pemFile {
	out := map[*pemFile]*pemFile{}
	for _, c := range s.configs {
		for _, u := range c.users {
			cert, key := s.at(c, u.certFile), s.at(c, u.keyFile)
			if cert != nil && key.holdsOnlyKeys() {
				out[cert] = key
			}
		}
	}
	return out
}

// at returns the file that a kubeconfig's field names.
func (s *scan) at(c *configFile, field *yaml.Node) *pemFile {
	if field == nil {
		return nil
	}
	place, err := s.t.resolve(c.beside(field.Value))
	if err != nil {
		return nil
	}
	return s.byPlace[place.Name]
}
