// Package config is lifeboat's configuration file: one YAML document, decoded
// strictly. The doc tags are the manual; Render writes them as comments.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// ErrInvalid is wrapped by every complaint about a configuration.
var ErrInvalid = errors.New("invalid configuration")

// DefaultPath is where commands look for the configuration.
const DefaultPath = "/etc/lifeboat/config.yaml"

// Config is the whole file. Paths in a loaded Config are absolute.
type Config struct {
	Cluster    string    `yaml:"cluster" doc:"the cluster's name; the trust file holds its full, unique name"`
	Node       string    `yaml:"node" doc:"this node's name, its host files' chain; empty means the host name"`
	Etcd       []Etcd    `yaml:"etcd" doc:"etcd clusters to back up, each a chain of its own"`
	Discover   bool      `yaml:"discover" doc:"add the etcd clusters that this node's API server uses, found in its static pods"`
	Host       Host      `yaml:"host" doc:"this node's files"`
	Stores     []Store   `yaml:"stores" doc:"where backups go; each store is a repository of its own"`
	MinStores  int       `yaml:"minStores" doc:"a backup that fewer stores committed has failed"`
	Recipients []string  `yaml:"recipients" doc:"age or SSH public keys that can unseal: operations, and an offline escrow"`
	Signing    Signing   `yaml:"signing" doc:"keys of the manifests' signatures"`
	Schedule   Schedule  `yaml:"schedule" doc:"when the agent works: cron in UTC, or @every 6h; empty means never"`
	Segments   Segments  `yaml:"segments" doc:"changes recorded between fulls"`
	Proof      Proof     `yaml:"proof" doc:"comparison with the live members"`
	Retention  Retention `yaml:"retention" doc:"how many backups stay"`
	StateDir   string    `yaml:"stateDir" doc:"scratch, spool, heads seen and what restores moved aside"`
	HTTP       HTTP      `yaml:"http" doc:"metrics, health and the status page"`
	DeadMan    DeadMan   `yaml:"deadMan" doc:"an outside service that raises an alarm when it hears nothing"`
}

// Etcd is one etcd cluster.
type Etcd struct {
	Name      string   `yaml:"name" doc:"chain etcd/NAME"`
	Endpoints []string `yaml:"endpoints" doc:"client URLs, the local member first"`
	CAFile    string   `yaml:"caFile" doc:"CA of the servers' certificates"`
	CertFile  string   `yaml:"certFile" doc:"client certificate"`
	KeyFile   string   `yaml:"keyFile" doc:"its key"`
}

// Host says which files of the node are captured.
type Host struct {
	Root       string   `yaml:"root" doc:"where the host's root is mounted"`
	ExtraPaths []string `yaml:"extraPaths" doc:"files and folders beside those found, as the host sees them"`
}

// Store is one place for backups.
type Store struct {
	URL string `yaml:"url" doc:"s3://bucket/prefix or file:///folder"`
	S3  S3     `yaml:"s3" doc:"only for s3:// URLs; credentials come from the environment, shared files or the instance"`
}

// S3 holds a bucket's settings. storage/s3 gives them their meaning.
type S3 struct {
	Endpoint     string     `yaml:"endpoint" doc:"URL of a server other than AWS; empty: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS"`
	Region       string     `yaml:"region" doc:"empty: AWS_REGION, the profile's"`
	Profile      string     `yaml:"profile" doc:"of the shared configuration files"`
	PathStyle    string     `yaml:"pathStyle" doc:"auto, true or false; auto: true for IP addresses and custom endpoints"`
	CAFile       string     `yaml:"caFile" doc:"CA of the server's certificate; empty: AWS_CA_BUNDLE, the system's"`
	Checksums    string     `yaml:"checksums" doc:"auto, on or off; auto: on for AWS, else only where required"`
	SSE          string     `yaml:"sse" doc:"server-side encryption: AES256 or aws:kms"`
	KMSKeyID     string     `yaml:"kmsKeyId" doc:"key for aws:kms"`
	StorageClass string     `yaml:"storageClass" doc:"such as STANDARD_IA; empty is the bucket's default"`
	ObjectLock   ObjectLock `yaml:"objectLock" doc:"keep fulls and host files undeletable"`
}

// ObjectLock protects objects from deletion, everyone's.
type ObjectLock struct {
	Mode string `yaml:"mode" doc:"governance or compliance; empty is off"`
	Days int    `yaml:"days" doc:"for how long"`
}

// Signing names the key files.
type Signing struct {
	KeyFile   string `yaml:"keyFile" doc:"signs this node's manifests; 0600"`
	TrustFile string `yaml:"trustFile" doc:"whose manifests are believed"`
}

// Schedule holds the agent's cron expressions.
type Schedule struct {
	Full   string `yaml:"full" doc:"whole etcd snapshots"`
	Files  string `yaml:"files" doc:"host files"`
	Verify string `yaml:"verify" doc:"every stored byte"`
	Prune  string `yaml:"prune" doc:"retention"`
	Drill  string `yaml:"drill" doc:"restores into a sandbox: not in this version"`
	Jitter int    `yaml:"jitter" doc:"percent of the interval that runs are spread over, 0 to 10"`
}

// Segments bounds the recorder.
type Segments struct {
	Interval   Duration `yaml:"interval" doc:"longest time between two segments when there are changes; 0 turns recording off"`
	MaxBytes   int64    `yaml:"maxBytes" doc:"a segment is cut at this size, in bytes"`
	SpoolBytes int64    `yaml:"spoolBytes" doc:"disk space for what the stores have not taken yet, in bytes"`
}

// Proof bounds what proving may cost.
type Proof struct {
	MaxStall Duration `yaml:"maxStall" doc:"longest that a HashKV scan may hold up a member's writes; 0 means never scan"`
}

// Retention is how many backups stay.
type Retention struct {
	Hourly      int      `yaml:"hourly" doc:"newest of so many hours"`
	Daily       int      `yaml:"daily" doc:"newest of so many days"`
	Weekly      int      `yaml:"weekly" doc:"newest of so many weeks"`
	Monthly     int      `yaml:"monthly" doc:"newest of so many months"`
	Minimum     int      `yaml:"minimum" doc:"never fewer than these"`
	PointInTime Duration `yaml:"pointInTime" doc:"every second can be restored for this long"`
}

// HTTP configures the agent's server.
type HTTP struct {
	Listen    string `yaml:"listen" doc:"address; empty turns it off"`
	CertFile  string `yaml:"certFile" doc:"the server's certificate; with keyFile it speaks TLS"`
	KeyFile   string `yaml:"keyFile" doc:"its key"`
	TokenFile string `yaml:"tokenFile" doc:"holds the bearer token that all but /healthz and /readyz ask for; empty: none"`
}

// DeadMan is a URL that is requested while all is well: an alarm for the day
// that Prometheus is gone too. Whoever knows it can silence the alarm.
type DeadMan struct {
	URLFile  string   `yaml:"urlFile" doc:"holds the URL to request while every backup is in time; empty turns it off"`
	Interval Duration `yaml:"interval" doc:"how often"`
}

// Duration is a time.Duration in Go's notation, such as 72h or 500ms.
type Duration time.Duration

func (d Duration) String() string {
	text := time.Duration(d).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if n := len(text) - len(zero); n > 0 && text[n:] == zero {
			text = text[:n+1]
		}
	}
	return text
}

// MarshalText writes Go's notation.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads Go's notation.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 72h, 90m or 500ms", text)
	}
	*d = Duration(parsed)
	return nil
}

// Default is a configuration with every default. Cluster, Etcd, Stores and
// Recipients have none.
func Default() *Config {
	return &Config{
		Host:      Host{Root: "/"},
		MinStores: 1,
		Signing:   Signing{KeyFile: "signing.key", TrustFile: "trust"},
		Schedule: Schedule{
			Full: "0 */6 * * *", Files: "15 */6 * * *", Verify: "30 4 * * *", Prune: "45 4 * * *",
		},
		Segments:  Segments{Interval: Duration(2 * time.Second), MaxBytes: 4 << 20, SpoolBytes: 1 << 30},
		Proof:     Proof{MaxStall: Duration(500 * time.Millisecond)},
		Retention: Retention{Hourly: 24, Daily: 14, Weekly: 8, Monthly: 12, Minimum: 3, PointInTime: Duration(72 * time.Hour)},
		StateDir:  DefaultStateDir(),
		HTTP:      HTTP{Listen: ":9478"},
		DeadMan:   DeadMan{Interval: Duration(5 * time.Minute)},
	}
}

// DefaultStore is a store with every default but its URL.
func DefaultStore(url string) Store {
	return Store{URL: url, S3: S3{PathStyle: "auto", Checksums: "auto"}}
}

// DefaultStateDir is /var/lib/lifeboat for root, else a folder in the user's
// state folder (XDG base directory specification).
func DefaultStateDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/lifeboat"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lifeboat")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "state", "lifeboat")
	}
	return filepath.Join(os.TempDir(), "lifeboat-state")
}
