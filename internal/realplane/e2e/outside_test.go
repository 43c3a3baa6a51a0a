package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/realplane"
	"lifeboat/internal/s3test"
)

// outside is an operator on a machine of their own: the binary, the recovery
// kit and the store's address and credentials. No configuration.
type outside struct {
	t         *testing.T
	server    *s3test.Server
	endpoint  string // as the machines reach it
	kit       string // folder with recovery.key, trust and signing.key
	recipient string
	store     string
}

const cluster = "e2e"

// newOutside runs `lifeboat init` far from the cluster.
func newOutside(t *testing.T, p *realplane.Plane) *outside {
	t.Helper()
	server := s3test.Start(t, s3test.Options{})
	o := &outside{t: t, server: server, kit: filepath.Join(t.TempDir(), "kit"), store: "s3://" + server.Bucket + "/lifeboat"}
	o.endpoint = "http://" + p.Expose(9000, strings.TrimPrefix(server.Endpoint, "http://"))
	o.run("init", "--cluster", cluster, "--store", o.store, "--out", o.kit, "--etcd", "https://127.0.0.1:2379")
	o.recipient = regexp.MustCompile(`age1[0-9a-z]+`).FindString(o.read("config.yaml"))
	return o
}

// read is a file of the kit.
func (o *outside) read(name string) string {
	o.t.Helper()
	text, err := os.ReadFile(filepath.Join(o.kit, name))
	if err != nil {
		o.t.Fatal(err)
	}
	return string(text)
}

// credentials is an AWS shared credentials file.
func (o *outside) credentials() string {
	return "[default]\naws_access_key_id = " + o.server.AccessKey + "\naws_secret_access_key = " + o.server.SecretKey + "\n"
}

// run runs lifeboat, which must succeed, and returns what it printed.
func (o *outside) run(args ...string) string {
	o.t.Helper()
	out, err := o.try(args...)
	if err != nil {
		o.t.Fatalf("lifeboat %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// try runs lifeboat and returns its standard output, or its standard error if
// it fails.
func (o *outside) try(args ...string) (string, error) {
	o.t.Helper()
	cmd := exec.Command(realplane.Lifeboat(), args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + o.t.TempDir(),
		"AWS_ACCESS_KEY_ID=" + o.server.AccessKey, "AWS_SECRET_ACCESS_KEY=" + o.server.SecretKey,
		"AWS_REGION=" + s3test.Region, "AWS_ENDPOINT_URL_S3=" + o.endpoint,
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out) + stderr.String(), err
	}
	return string(out), nil
}

// reading adds the flags that reading without a configuration needs.
func (o *outside) reading(args ...string) []string {
	return append(args, "--store", o.store, "--cluster", cluster, "--trust", filepath.Join(o.kit, "trust"),
		"--state-dir", filepath.Join(o.kit, "state"))
}

// backup is a line of `lifeboat list`.
type backup struct {
	ID       string
	Chain    string
	Created  time.Time
	Revision int64
	Proved   bool
	Degraded []string
}

// list is what the store holds of a chain, newest first. An empty or missing
// repository has nothing.
func (o *outside) list(chain string) (found []backup) {
	o.t.Helper()
	out, err := o.try(o.reading("list", "-o", "json")...)
	if err != nil {
		return nil // no repository yet; whoever waits for a backup gives up in time
	}
	var all []backup
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		o.t.Fatalf("list: %v: %s", err, out)
	}
	for _, b := range all {
		if b.Chain == chain {
			found = append(found, b)
		}
	}
	return found
}

// newer waits for a backup of the chain that was captured after a moment.
func (o *outside) newer(p *realplane.Plane, chain string, after time.Time, limit time.Duration) (b backup) {
	o.t.Helper()
	p.Wait("a new backup of "+chain, limit, func() string {
		list := o.list(chain)
		if len(list) == 0 {
			return "there is none at all"
		}
		if b = list[0]; !b.Created.After(after) {
			return "the newest is of " + b.Created.String()
		}
		return ""
	})
	return b
}
