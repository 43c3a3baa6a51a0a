// Package s3 keeps objects in an S3 bucket, Amazon's or any other server that
// speaks the protocol.
//
// It is a storage.Store and a storage.Versioned and nothing more: which bucket
// holds which cluster, and what may be deleted when, is decided above it.
// Start reading at New, then Put; errors.go says what becomes of a provider's
// errors, which never leave this package.
//
// What a bucket must offer: conditional creates (If-None-Match: *), multipart
// uploads, ListObjectsV2. Versioning and Object Lock are used when they are on.
package s3

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"lifeboat/storage"
)

// Config says where the bucket is and how objects are kept in it. Bucket is
// required; everything else has a usable zero value. Credentials are not part
// of it: they come from the environment, the shared files, a web identity or
// the instance's role, as for every AWS tool.
type Config struct {
	Bucket string
	Prefix string // put before every name, with a slash between; at most 123 bytes

	// Endpoint is the server's URL. Empty: AWS_ENDPOINT_URL_S3,
	// AWS_ENDPOINT_URL, the profile's endpoint_url, else Amazon's of the region.
	Endpoint string
	Region   string // empty: the environment's or the profile's; us-east-1 with an endpoint that is not Amazon's
	Profile  string // of the shared configuration files; empty: AWS_PROFILE

	// PathStyle is "true" (https://host/bucket/key), "false"
	// (https://bucket.host/key) or "auto": true for every endpoint that is not
	// Amazon's own. Empty is auto.
	PathStyle string

	// CAFile holds the PEM certificates of the authorities to trust, in place
	// of the system's. Empty: AWS_CA_BUNDLE, else the system's.
	CAFile string

	// Checksums is "on" (a CRC-32 goes with every upload and is checked on
	// downloads), "off", or "auto": on for Amazon, off for other servers, of
	// which some refuse them. Object Lock asks for one and always gets it.
	Checksums string

	SSE          string // server-side encryption: AES256, aws:kms or aws:kms:dsse; empty: the bucket's default
	KMSKeyID     string // only with SSE aws:kms or aws:kms:dsse
	StorageClass string // for example STANDARD_IA; empty: the server's default

	// ObjectLock protects the objects that are put with RetainUntil; see
	// Store.RetainUntil. The bucket must have Object Lock enabled.
	ObjectLock ObjectLock

	// StallTimeout is how long a request may go without one byte moving
	// before it is given up; half of it is spent on a first try and half on a
	// second. 0 is DefaultStallTimeout. It counts the network only: a source
	// that is slow to give Put its bytes, or a reader slow to take them, is
	// never a stall.
	StallTimeout time.Duration

	// MaxAttempts bounds the tries of one request that fails in a way worth
	// retrying (5xx, 429, broken connections). 0: AWS_MAX_ATTEMPTS, else 5.
	MaxAttempts int

	// MaxBackoff bounds the wait between two tries. 0 is 20 seconds.
	MaxBackoff time.Duration
}

// ObjectLock is how RetainUntil is enforced.
type ObjectLock struct {
	Mode string // "compliance", "governance" or empty: objects are not locked
	Days int    // how long Store.RetainUntil asks for
}

// DefaultStallTimeout is the stall limit when the configuration names none.
const DefaultStallTimeout = time.Minute

const maxPrefix = 1024 - storage.MaxNameLength - 1 // S3 keys are at most 1024 bytes

// Store is a bucket, or the part of it below a prefix.
type Store struct {
	cfg      Config
	client   *awss3.Client
	creds    *aws.CredentialsCache
	prefix   string // empty, or ends in a slash
	where    string // the bucket and the endpoint, for messages
	checksum bool   // send a CRC-32 with every upload
}

var (
	_ storage.Store     = (*Store)(nil)
	_ storage.Versioned = (*Store)(nil)
)

// New checks the configuration and prepares a client. It does not talk to the
// bucket, so that a store that is down now can be used later.
func New(ctx context.Context, cfg Config) (*Store, error) {
	cfg.Prefix = strings.Trim(cfg.Prefix, "/")
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("s3 store: %w", err)
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = DefaultStallTimeout
	}
	s := &Store{cfg: cfg}
	if cfg.Prefix != "" {
		s.prefix = cfg.Prefix + "/"
	}
	if err := s.connect(ctx); err != nil {
		return nil, fmt.Errorf("s3 store %s: %w", cfg.Bucket, err)
	}
	return s, nil
}

func (c *Config) check() error {
	if c.Bucket == "" {
		return errors.New("no bucket is named")
	}
	if strings.ContainsAny(c.Bucket, "/?#@ ") {
		return fmt.Errorf("%q is not a bucket name", c.Bucket)
	}
	if c.Prefix != "" {
		if err := storage.CheckName(c.Prefix); err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
		if len(c.Prefix) > maxPrefix {
			return fmt.Errorf("the prefix has %d bytes, limit %d", len(c.Prefix), maxPrefix)
		}
	}
	if !oneOf(c.PathStyle, "", "auto", "true", "false") {
		return fmt.Errorf("pathStyle %q is none of auto, true, false", c.PathStyle)
	}
	if !oneOf(c.Checksums, "", "auto", "on", "off") {
		return fmt.Errorf("checksums %q is none of auto, on, off", c.Checksums)
	}
	if !oneOf(c.SSE, "", "AES256", "aws:kms", "aws:kms:dsse") {
		return fmt.Errorf("sse %q is none of AES256, aws:kms, aws:kms:dsse", c.SSE)
	}
	if c.KMSKeyID != "" && !strings.HasPrefix(c.SSE, "aws:kms") {
		return errors.New("kmsKeyId is set, but sse is not aws:kms")
	}
	if !oneOf(c.ObjectLock.Mode, "", "compliance", "governance") {
		return fmt.Errorf("objectLock mode %q is none of compliance, governance", c.ObjectLock.Mode)
	}
	if c.ObjectLock.Days < 0 || c.ObjectLock.Mode == "" && c.ObjectLock.Days != 0 {
		return fmt.Errorf("objectLock has %d days and mode %q", c.ObjectLock.Days, c.ObjectLock.Mode)
	}
	if c.StallTimeout < 0 || c.MaxAttempts < 0 || c.MaxBackoff < 0 {
		return errors.New("a limit is negative")
	}
	return nil
}

func oneOf(value string, choices ...string) bool {
	for _, c := range choices {
		if value == c {
			return true
		}
	}
	return false
}

// RetainUntil is the time until which an object made at now is to be protected
// by the configured Object Lock, for PutOptions.RetainUntil. It is zero when
// none is configured.
func (s *Store) RetainUntil(now time.Time) time.Time {
	if s.cfg.ObjectLock.Mode == "" || s.cfg.ObjectLock.Days == 0 {
		return time.Time{}
	}
	return now.AddDate(0, 0, s.cfg.ObjectLock.Days)
}

// String names the bucket and the endpoint.
func (s *Store) String() string { return s.where }

// versityTemporary is in the names that versitygw shows for a moment while an
// object is being replaced.
const versityTemporary = ".sgwtmp."

func (s *Store) key(name string) *string { return aws.String(s.prefix + name) }

// name is the object name of a key, or false for keys that no Store could have
// made, such as the folder placeholders of web consoles.
func (s *Store) name(key string) (string, bool) {
	name, ok := strings.CutPrefix(key, s.prefix)
	return name, ok && storage.CheckName(name) == nil && !strings.Contains(name, versityTemporary)
}
