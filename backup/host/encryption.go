package host

import (
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/manifest"
)

// providerKeys are the names, never the secrets, in one EncryptionConfiguration.
type providerKeys struct {
	File      string     `json:"file"`
	Providers []Provider `json:"providers"`
}

// Provider is one provider of an EncryptionConfiguration.
type Provider struct {
	Provider string   `json:"provider"`           // aescbc, aesgcm, secretbox, kms
	Keys     []string `json:"keys"`               // for kms its name
	Endpoint string   `json:"endpoint,omitempty"` // of a KMS: without it nothing it sealed can be read
}

// encryptionConfig is what this package reads of apiserver.config.k8s.io/v1
// EncryptionConfiguration; secrets are not decoded.
type encryptionConfig struct {
	Resources []struct {
		Providers []map[string]*struct {
			Name     string `json:"name"`
			Endpoint string `json:"endpoint"`
			Keys     []struct {
				Name string `json:"name"`
			} `json:"keys"`
		} `json:"providers"`
	} `json:"resources"`
}

// encryption notes the keys that a captured configuration holds.
func (c *closure) encryption(name string, data []byte) {
	var config encryptionConfig
	if err := yaml.Unmarshal(data, &config); err != nil {
		c.degraded.addf("%s: an encryption configuration that can't be parsed", name)
		return
	}
	for _, known := range c.keys {
		if known.File == name {
			return
		}
	}
	c.keys = append(c.keys, parseProviders(name, config))
}

func parseProviders(name string, config encryptionConfig) providerKeys {
	out := providerKeys{File: name, Providers: []Provider{}}
	for _, r := range config.Resources {
		for _, providers := range r.Providers {
			for kind, p := range providers {
				if p == nil || kind == "identity" {
					continue
				}
				one := Provider{Provider: kind, Endpoint: p.Endpoint, Keys: []string{}}
				if p.Name != "" {
					one.Keys = append(one.Keys, p.Name)
				}
				for _, k := range p.Keys {
					one.Keys = append(one.Keys, k.Name)
				}
				out.Providers = append(out.Providers, one)
			}
		}
	}
	slices.SortStableFunc(out.Providers, func(a, b Provider) int { return strings.Compare(a.Provider, b.Provider) })
	return out
}

// Covers returns, for every key that values in etcd were encrypted with and
// that no captured EncryptionConfiguration holds, a sentence for a person.
// Without these keys the values can't be read after a restore.
func (r *Result) Covers(uses []manifest.KeyUse) (missing []string) {
	have := make(map[[2]string]bool)
	for _, config := range r.Facts.Encryption {
		for _, p := range config.Providers {
			for _, key := range p.Keys {
				have[[2]string{p.Provider, key}] = true
			}
		}
	}
	for _, use := range uses {
		provider, _, _ := strings.Cut(use.Provider, ":") // kms:v2 is kms's newer form
		if !have[[2]string{provider, use.Key}] {
			missing = append(missing, fmt.Sprintf("%d objects in etcd, such as %s, are encrypted with the %s key %q, which no captured encryption configuration holds",
				use.Objects, use.Example, provider, use.Key))
		}
	}
	return missing
}
