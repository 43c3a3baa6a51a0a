package restore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

const (
	factsLimit = 64 << 20 // bytes; the facts name every file with its hash
	pemLimit   = 64 << 10 // bytes of one file that is looked into
	pemsLimit  = 16 << 20 // bytes of all of them, kept until the end
)

// readArchive reads an archive to its end and compares it with the facts at
// its beginning and with the manifest.
//
// The facts are written first, and a large file is read again after them. One
// that vanished or changed meanwhile made the backup degraded, by its signed
// manifest: then it is a warning here, and no sign of later damage.
func (d *DeepReport) readArchive(ctx context.Context, r io.Reader) error {
	failed := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", repository.ErrVerification, fmt.Sprintf(format, args...))
	}
	differs := func(format string, args ...any) error {
		if len(d.Backup.Degraded) == 0 {
			return failed(format, args...)
		}
		d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...)+"; the backup was degraded when it was made")
		return nil
	}
	archive := seal.NewArchiveReader(r, seal.Limits{})
	var hashes map[string]string // by name, from the facts
	pems, kept := map[string][]byte{}, 0
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if h.Type != seal.TypeFile {
			continue
		}
		if h.Name == hostfacts.Name {
			if hashes, err = readFacts(io.LimitReader(archive, factsLimit)); err != nil {
				return failed("%s: %v", hostfacts.Name, err)
			}
			continue
		}
		var text bytes.Buffer
		sum, to := sha256.New(), io.Discard
		if isPEM(h.Name) && h.Size <= pemLimit && kept < pemsLimit {
			to = &text
		}
		if _, err := io.Copy(io.MultiWriter(sum, to), archive); err != nil {
			return err
		}
		if want, ok := hashes[h.Name]; !ok {
			return failed("%s is in the archive and not in its facts", h.Name)
		} else if got := hex.EncodeToString(sum.Sum(nil)); got != want {
			if err := differs("%s: its SHA-256 is %s, the facts say %s", h.Name, got, want); err != nil {
				return err
			}
		}
		delete(hashes, h.Name)
		d.Files++
		d.Bytes += h.Size
		if text.Len() > 0 {
			pems[h.Name] = text.Bytes()
			kept += text.Len()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(hashes)) {
		if err := differs("%s is in the facts and not in the archive", name); err != nil {
			return err
		}
	}
	if want := d.Backup.Host; want != nil && (want.Files != d.Files || want.Bytes != d.Bytes) {
		return failed("%d files of %d bytes, the manifest says %d of %d", d.Files, d.Bytes, want.Files, want.Bytes)
	}
	d.comparePairs(pems)
	return nil
}

func readFacts(r io.Reader) (map[string]string, error) {
	var facts struct {
		Files []struct {
			Name   string `json:"name"`
			SHA256 string `json:"sha256"`
		} `json:"files"`
	}
	if err := json.NewDecoder(r).Decode(&facts); err != nil {
		return nil, err
	}
	hashes := make(map[string]string, len(facts.Files))
	for _, f := range facts.Files {
		hashes[f.Name] = f.SHA256
	}
	return hashes, nil
}

func isPEM(name string) bool {
	return slices.Contains([]string{".crt", ".key", ".pem"}, path.Ext(name))
}

// comparePairs compares every certificate with the key beside it, by the names
// that kubeadm and the kubelet use. A pair that does not fit was so on the
// node: it is worth a warning, and the archive is whole.
func (d *DeepReport) comparePairs(pems map[string][]byte) {
	for _, name := range slices.Sorted(maps.Keys(pems)) {
		cert := pems[name]
		if !bytes.Contains(cert, []byte("-----BEGIN CERTIFICATE-----")) {
			continue
		}
		key := pems[strings.TrimSuffix(name, path.Ext(name))+".key"]
		if bytes.Contains(cert, []byte("PRIVATE KEY-----")) {
			key = cert // kubelet-client-current.pem holds both
		}
		if key == nil || bytes.Contains(key, []byte("ENCRYPTED PRIVATE KEY-----")) {
			continue
		}
		d.Pairs++
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			// The error's text may come from a parser that quotes its input.
			d.Warnings = append(d.Warnings, fmt.Sprintf("%s: the certificate does not belong to the key beside it, or one of them is damaged", name))
		}
	}
}
