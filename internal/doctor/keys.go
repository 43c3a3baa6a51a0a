package doctor

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
)

// soon is how long before something expires there is a warning.
const soon = 30 * 24 * time.Hour

// trust reads the trust file; nil if it can't.
func (d *doctor) trust() *manifest.Trust {
	path := d.Config.Signing.TrustFile
	const remedy = "copy the trust file that \"lifeboat init\" made for this cluster, from the recovery kit or another node"
	text, err := os.ReadFile(path)
	if err != nil {
		d.problem("trust", remedy, "%v", err)
		return nil
	}
	trust, err := manifest.ParseTrust(text)
	if err != nil {
		d.problem("trust", remedy, "%s: %v", path, err)
		return nil
	}
	if name, _, _ := manifest.ClusterName(trust.Cluster); name != d.Config.Cluster && trust.Cluster != d.Config.Cluster {
		d.problem("trust", remedy, "%s is of cluster %s, the configuration of %s", path, trust.Cluster, d.Config.Cluster)
		return nil
	}
	valid := 0
	for _, v := range trust.Verifiers {
		left := v.Until.Sub(d.Now())
		switch {
		case v.Until.IsZero() || left > soon:
			valid++
		case left > 0:
			valid++
			d.warn("trust", "make a new signing key in time, and add its verifier to every trust file", "a verifier is trusted only until %s", v.Until.Format(time.RFC3339))
		}
	}
	if valid == 0 {
		d.problem("trust", remedy, "%s trusts no key now", path)
		return trust
	}
	d.ok("trust", "cluster %s, %d valid verifier(s)", trust.Cluster, valid)
	return trust
}

func (d *doctor) signer(trust *manifest.Trust) {
	path := d.Config.Signing.KeyFile
	const remedy = "copy the signing key that \"lifeboat init\" made, from another node"
	info, err := os.Stat(path)
	if err != nil {
		d.problem("signing key", remedy, "%v", err)
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		d.problem("signing key", "run as the user that backs up", "%v", err)
		return
	}
	signer, err := manifest.ParseSigner(text)
	if err != nil {
		d.problem("signing key", remedy, "%s: %v", path, err)
		return
	}
	if trust != nil && !slices.ContainsFunc(trust.Verifiers, func(v manifest.Verifier) bool { return v.Key == signer.VerifierText() }) {
		d.problem("signing key", "use the trust file that belongs to this key, or add the line: verifier "+signer.VerifierText()+" chains=* kinds=* until=never",
			"what %s signs would not be believed: its verifier is not in the trust file", path)
		return
	}
	if info.Mode().Perm()&0o077 != 0 {
		d.warn("signing key", "chmod 600 "+path, "%s has mode %v: others can sign in this cluster's name", path, info.Mode().Perm())
		return
	}
	d.ok("signing key", "%s", signer)
}

func (d *doctor) recipients() {
	if _, err := seal.ParseRecipients(d.Config.Recipients); err != nil {
		d.problem("recipients", "write public keys only: age1..., ssh-ed25519 ... or ssh-rsa ...", "%v", err)
		return
	}
	left := filepath.Join(d.ConfigDir, "recovery.key")
	if _, err := os.Lstat(left); err == nil {
		d.warn("recipients", "move it to two safe places off this machine; backing up does not need it", "%s is still here: who takes this machine can open every backup", left)
		return
	}
	d.ok("recipients", "%d key(s) can open the backups", len(d.Config.Recipients))
}

// clientCertificate warns of a client certificate that ends soon.
func (d *doctor) clientCertificate(check, path string) {
	if path == "" {
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return // the connection's failure will say so
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return
	}
	if left := certificate.NotAfter.Sub(d.Now()); left < soon {
		d.warn(check, "renew it (kubeadm certs renew); lifeboat reads it anew at every connection", "the client certificate %s ends at %s", path, certificate.NotAfter.UTC().Format(time.RFC3339))
	}
}
