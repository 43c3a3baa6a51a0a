package host

import (
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
)

// What is told of a machine; the format is hostfacts'.
type (
	Facts           = hostfacts.Facts
	Address         = hostfacts.Address
	Route           = hostfacts.Route
	Answer          = hostfacts.Answer
	Image           = hostfacts.Image
	NotedFolder     = hostfacts.NotedFolder
	SkippedFile     = hostfacts.SkippedFile
	FileFact        = hostfacts.File
	CertificateFact = hostfacts.Certificate
	Discovery       = hostfacts.Discovery
	Provider        = hostfacts.Provider
	providerKeys    = hostfacts.Keys
)

// The facts' place in the archive, and their format.
const (
	FactsName   = hostfacts.Name
	FactsFormat = hostfacts.Format
)

// Covers returns a sentence for every key that values in etcd were encrypted
// with and that no captured EncryptionConfiguration holds.
func (r *Result) Covers(uses []manifest.KeyUse) (missing []string) { return r.Facts.Covers(uses) }
