package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxBytes is far above any real configuration.
const maxBytes = 1 << 20

// minSpool is what a recorder needs in bytes: etcd's largest transactions by
// far, and room for what comes while one is sealed.
const minSpool = 16 << 20

// Load reads a configuration file. Relative paths become relative to the
// file's folder. Errors name the file and, where there is one, the line; all
// but those of reading wrap ErrInvalid.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c.resolve(dir)
	if c.Node == "" {
		if c.Node, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("%s: %w: node: give the node's name, the host name can't be read: %w", path, ErrInvalid, err)
		}
	}
	return c, nil
}

// Parse decodes and checks a configuration. Keys that are missing keep their
// defaults; unknown and repeated ones are errors.
func Parse(data []byte) (*Config, error) {
	if len(data) > maxBytes {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrInvalid, len(data), maxBytes)
	}
	c := Default()
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: the file is empty", ErrInvalid)
		}
		return nil, fmt.Errorf("%w: %s", ErrInvalid, plain(err))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more than one document", ErrInvalid)
	}
	for i := range c.Stores {
		s := &c.Stores[i].S3
		s.PathStyle, s.Checksums = orAuto(s.PathStyle), orAuto(s.Checksums)
		s.ObjectLock.Mode = strings.ToLower(s.ObjectLock.Mode) // S3 itself writes it in capitals
	}
	if err := c.check(lines(data)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return c, nil
}

func orAuto(s string) string {
	if s == "" {
		return "auto"
	}
	return s
}

// plain words the decoder's complaints without Go's type names.
func plain(err error) string {
	text := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
	text = strings.TrimPrefix(text, "unmarshal errors: ")
	for _, t := range []string{"Config", "Etcd", "Host", "Store", "S3", "ObjectLock", "Signing", "Schedule", "Segments", "Proof", "Retention", "HTTP", "DeadMan"} {
		text = strings.ReplaceAll(text, " not found in type config."+t, " is unknown")
	}
	return text
}

// lines maps a key's dotted path to its line, for complaints about values.
func lines(data []byte) func(path string) string {
	var document yaml.Node
	at := map[string]int{}
	if yaml.Unmarshal(data, &document) == nil {
		index(&document, "", at)
	}
	return func(path string) string {
		for p := path; p != ""; p = p[:max(0, strings.LastIndexByte(p, '.'))] {
			if line, ok := at[p]; ok {
				return fmt.Sprintf("line %d: %s", line, path)
			}
		}
		return path
	}
}

func index(n *yaml.Node, path string, at map[string]int) {
	join := func(key string) string { return strings.TrimPrefix(path+"."+key, ".") }
	switch n.Kind {
	case yaml.DocumentNode:
		for _, child := range n.Content {
			index(child, path, at)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			p := join(n.Content[i].Value)
			at[p] = n.Content[i].Line
			index(n.Content[i+1], p, at)
		}
	case yaml.SequenceNode:
		for i, child := range n.Content {
			p := join(fmt.Sprint(i))
			at[p] = child.Line
			index(child, p, at)
		}
	}
}

func (c *Config) resolve(dir string) {
	paths := []*string{
		&c.Signing.KeyFile, &c.Signing.TrustFile, &c.StateDir, &c.Host.Root,
		&c.HTTP.CertFile, &c.HTTP.KeyFile, &c.HTTP.TokenFile, &c.DeadMan.URLFile,
	}
	for i := range c.Etcd {
		paths = append(paths, &c.Etcd[i].CAFile, &c.Etcd[i].CertFile, &c.Etcd[i].KeyFile)
	}
	for i := range c.Stores {
		paths = append(paths, &c.Stores[i].S3.CAFile)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// check reports the first value that can't work.
func (c *Config) check(where func(string) string) error {
	complain := func(path, format string, args ...any) error {
		return fmt.Errorf("%s: %s", where(path), fmt.Sprintf(format, args...))
	}
	switch {
	case c.Cluster == "":
		return complain("cluster", "give the cluster a name")
	case len(c.Stores) == 0:
		return complain("stores", "name at least one store, such as file:///var/backups/lifeboat")
	case c.MinStores < 1 || c.MinStores > len(c.Stores):
		return complain("minStores", "%d, want 1 to the number of stores, %d", c.MinStores, len(c.Stores))
	case len(c.Recipients) == 0:
		return complain("recipients", "name at least one, or nobody could open a backup; lifeboat init makes one")
	case c.Signing.TrustFile == "":
		return complain("signing.trustFile", "name the file with the verifier keys; lifeboat init makes one")
	case c.StateDir == "":
		return complain("stateDir", "name a folder")
	case c.Segments.Interval < 0 || c.Segments.MaxBytes <= 0 || c.Segments.SpoolBytes <= 0:
		return complain("segments", "intervals and sizes can't be negative, sizes not 0")
	case c.Segments.SpoolBytes < minSpool:
		return complain("segments.spoolBytes", "%d, want %d (16 MiB) or more: changes wait there for the stores, and are kept to be rolled up", c.Segments.SpoolBytes, minSpool)
	case c.Segments.MaxBytes > c.Segments.SpoolBytes/4:
		return complain("segments.maxBytes", "%d, want %d at the most, a quarter of segments.spoolBytes: the spool holds what a segment is made of until every store has it", c.Segments.MaxBytes, c.Segments.SpoolBytes/4)
	case c.Proof.MaxStall < 0:
		return complain("proof.maxStall", "%s is negative", c.Proof.MaxStall)
	case min(c.Retention.Hourly, c.Retention.Daily, c.Retention.Weekly, c.Retention.Monthly) < 0 || c.Retention.PointInTime < 0:
		return complain("retention", "counts can't be negative")
	case (c.HTTP.CertFile == "") != (c.HTTP.KeyFile == ""):
		return complain("http", "certFile and keyFile go together")
	case c.DeadMan.Interval <= 0:
		return complain("deadMan.interval", "%s, want more than 0", c.DeadMan.Interval)
	case c.Schedule.Jitter < 0 || c.Schedule.Jitter > 10:
		return complain("schedule.jitter", "%d, want 0 to 10 percent", c.Schedule.Jitter)
	case c.Retention.Minimum < 1:
		return complain("retention.minimum", "%d, want 1 or more: the last backup always stays", c.Retention.Minimum)
	}
	if err := c.Schedule.check(complain); err != nil {
		return err
	}
	if err := checkRecipients(c.Recipients, complain); err != nil {
		return err
	}
	if c.Node != "" {
		if err := checkName(c.Node); err != nil {
			return complain("node", "%v", err)
		}
	}
	for i, extra := range c.Host.ExtraPaths {
		if !filepath.IsAbs(extra) {
			return complain(fmt.Sprintf("host.extraPaths.%d", i), "%q is relative; want the absolute path on the host", extra)
		}
	}
	names := map[string]bool{}
	for i, e := range c.Etcd {
		path := fmt.Sprintf("etcd.%d", i)
		switch {
		case checkName(e.Name) != nil:
			return complain(path+".name", "%v", checkName(e.Name))
		case names[e.Name]:
			return complain(path+".name", "%q stands twice", e.Name)
		case len(e.Endpoints) == 0:
			return complain(path+".endpoints", "name at least one client URL")
		case (e.CertFile == "") != (e.KeyFile == ""):
			return complain(path, "certFile and keyFile go together")
		}
		names[e.Name] = true
		for j, endpoint := range e.Endpoints {
			if strings.Contains(endpoint, "@") { // not repeated: a password would reach logs
				return complain(fmt.Sprintf("%s.endpoints.%d", path, j), "a user name or password can't be part of it; etcd's clients are known by certificates")
			}
			if u, err := url.Parse(endpoint); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
				return complain(fmt.Sprintf("%s.endpoints.%d", path, j), "%q is not an http or https URL", endpoint)
			}
		}
	}
	urls := map[string]bool{}
	for i, s := range c.Stores {
		path := fmt.Sprintf("stores.%d", i)
		if urls[s.URL] {
			return complain(path+".url", "%q stands twice", s.URL)
		}
		urls[s.URL] = true
		if err := s.check(path, complain); err != nil {
			return err
		}
	}
	return nil
}

// checkName accepts what manifest.Chain.Check accepts after "etcd/" or
// "hosts/", so that a name which no chain can have is found here and not at the
// first commit. The rule is repeated since configuration and manifests are of
// one layer and don't know each other.
func checkName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	switch {
	case name == "":
		return errors.New("a chain needs a name")
	case len(name) > 200:
		return fmt.Errorf("a name of %d bytes, limit 200", len(name))
	case strings.Trim(name, letters+"._-") != "" || !strings.Contains(letters, name[:1]):
		return fmt.Errorf("%q is not letters, digits, '.', '_' and '-' after a letter or digit", name)
	case name == "manifests" || name == "data":
		return fmt.Errorf("the name %q is reserved", name)
	}
	return nil
}

func (s Store) check(path string, complain func(string, string, ...any) error) error {
	u, err := url.Parse(s.URL)
	lock := s.S3.ObjectLock
	switch {
	case err != nil || (u.Scheme != "s3" && u.Scheme != "file"):
		return complain(path+".url", "want s3://bucket/prefix or file:///folder")
	case u.User != nil:
		return complain(path+".url", "credentials don't belong into the URL; the SDK finds them in the environment, shared files or the instance")
	case u.Scheme == "file" && (u.Host != "" || !filepath.IsAbs(u.Path)):
		return complain(path+".url", "%q: want three slashes and an absolute folder, file:///folder", s.URL)
	case u.Scheme == "s3" && u.Host == "":
		return complain(path+".url", "%q names no bucket", s.URL)
	case !slices.Contains([]string{"auto", "true", "false"}, s.S3.PathStyle):
		return complain(path+".s3.pathStyle", "%q, want auto, true or false", s.S3.PathStyle)
	case !slices.Contains([]string{"auto", "on", "off"}, s.S3.Checksums):
		return complain(path+".s3.checksums", "%q, want auto, on or off", s.S3.Checksums)
	case !slices.Contains([]string{"", "governance", "compliance"}, lock.Mode):
		return complain(path+".s3.objectLock.mode", "%q, want governance, compliance or nothing", lock.Mode)
	case (lock.Mode == "") != (lock.Days == 0) || lock.Days < 0:
		return complain(path+".s3.objectLock", "mode and days go together")
	}
	return nil
}
