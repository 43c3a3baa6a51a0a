package host

import (
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/distro"
)

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

// markUnread tells which of the configurations the node's API server does not read: a
// copy from before a rotation has keys that nothing decrypts with. Where nothing tells
// what it reads, as with an API server in a unit, all of them count.
func (c *closure) markUnread() {
	named, known := map[string]bool{}, false
	name := func(files ...string) {
		for _, file := range files {
			known = true
			if place, err := c.t.resolve(file); err == nil && !place.Missing {
				named[place.Name] = true
			}
		}
	}
	for _, pod := range c.pods {
		for i := range pod.containers {
			if ct := &pod.containers[i]; ct.runs("kube-apiserver") {
				known = true
				if file := onHost(ct, "encryption-provider-config"); file != "" {
					name(file)
				}
			}
		}
	}
	if c.own != nil {
		name(distro.EncryptionConfigs(c.t, c.own)...)
	}
	for i := range c.keys {
		c.keys[i].Unread = known && !named[c.keys[i].File]
	}
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
