package recoverykit

import (
	"bytes"
	"fmt"

	"go.yaml.in/yaml/v3"

	"lifeboat/internal/config"
)

// Store is one place of backups.
type Store struct {
	URL      string    `json:"url"`
	Endpoint string    `json:"endpoint"` // of S3; empty is AWS
	Region   string    `json:"region"`
	Answered bool      `json:"answered"` // when the kit was made
	S3       config.S3 `json:"-"`
	CA       []byte    `json:"-"` // the text of its authority's file
}

// NewStore is the place that a configuration names; ca is the text of the file
// that its s3.caFile names, if any.
func NewStore(s config.Store, ca []byte) Store {
	return Store{S3: s.S3, URL: s.URL, Endpoint: s.S3.Endpoint, Region: s.S3.Region, CA: ca}
}

// authority is the name of a store's authority in the kit.
func authority(i int) string { return fmt.Sprintf("store-%d-ca.crt", i+1) }

// The configuration's keys that reading needs; config.Config has them all.
type (
	reading struct {
		Cluster    string         `yaml:"cluster"`
		Stores     []readingStore `yaml:"stores"`
		Recipients []string       `yaml:"recipients"`
		Signing    readingTrust   `yaml:"signing"`
		StateDir   string         `yaml:"stateDir"`
	}
	readingStore struct {
		URL string     `yaml:"url"`
		S3  *readingS3 `yaml:"s3,omitempty"`
	}
	readingS3 struct {
		Endpoint  string `yaml:"endpoint,omitempty"`
		Region    string `yaml:"region,omitempty"`
		PathStyle string `yaml:"pathStyle,omitempty"`
		CAFile    string `yaml:"caFile,omitempty"`
		Checksums string `yaml:"checksums,omitempty"`
	}
	readingTrust struct {
		TrustFile string `yaml:"trustFile"`
	}
)

const configHead = `# What lifeboat needs to read the backups of %s, and nothing else: no
# secrets, no schedule, no signing key. Credentials of the store come from the
# environment, shared files or the instance's role. Not for an agent.
`

// config makes the configuration, and checks that lifeboat can read it.
func (k *Kit) config() ([]byte, error) {
	c := reading{Cluster: k.name(), Recipients: k.Recipients, Signing: readingTrust{TrustFile}, StateDir: k.StateDir}
	for i, s := range k.Stores {
		store := readingStore{URL: s.URL}
		// A profile of this machine's shared files is not there on another.
		s3 := readingS3{Endpoint: s.S3.Endpoint, Region: s.S3.Region, PathStyle: s.S3.PathStyle, Checksums: s.S3.Checksums}
		if len(s.CA) > 0 {
			s3.CAFile = authority(i)
		}
		if s3 != (readingS3{PathStyle: "auto", Checksums: "auto"}) {
			store.S3 = &s3
		}
		c.Stores = append(c.Stores, store)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, configHead, k.Cluster)
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := encoder.Encode(c); err != nil {
		return nil, fmt.Errorf("write the configuration to read with: %w", err)
	}
	if _, err := config.Parse(b.Bytes()); err != nil {
		return nil, fmt.Errorf("check the configuration to read with: %w", err)
	}
	return b.Bytes(), nil
}
