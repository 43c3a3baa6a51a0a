package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
)

const (
	defaultAttempts = 5
	defaultBackoff  = 20 * time.Second

	// credentialsAge is how long credentials without an expiry of their own
	// are used before their source is read again.
	credentialsAge = time.Minute

	// ioBuffer is what the transport gathers before it calls the kernel; the
	// standard 4 KiB costs a system call, and a TLS record, for every page.
	ioBuffer = 128 << 10
)

// connect builds the client: the SDK's configuration first, then what only
// S3 is to see, since an endpoint or a retry rule must not reach the other
// services that credentials may come from.
func (s *Store) connect(ctx context.Context) error {
	httpClient := awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
		tr.WriteBufferSize, tr.ReadBufferSize = ioBuffer, ioBuffer
		// One stream of large bodies gains nothing from HTTP/2, and a stall of
		// one request must not hide behind the progress of another.
		tr.ForceAttemptHTTP2 = false
	}).WithReadTimeout(s.cfg.StallTimeout)

	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(httpClient),
		config.WithLogger(logging.Nop{}),
	}
	if s.cfg.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(s.cfg.Profile))
	}
	if s.cfg.Region != "" {
		options = append(options, config.WithRegion(s.cfg.Region))
	}
	if s.cfg.CAFile != "" {
		pem, err := os.ReadFile(s.cfg.CAFile)
		if err != nil {
			return fmt.Errorf("read the CA file: %w", err)
		}
		if !bytes.Contains(pem, []byte("-----BEGIN CERTIFICATE-----")) {
			return fmt.Errorf("the CA file %s holds no PEM certificate", s.cfg.CAFile)
		}
		options = append(options, func(o *config.LoadOptions) error {
			// A fresh reader for each load; WithCustomCABundle's is read once.
			o.CustomCABundle = bytes.NewReader(pem)
			return nil
		})
	}
	awsConfig, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return fmt.Errorf("load the AWS configuration: %w", plain(err))
	}
	s.creds = aws.NewCredentialsCache(&rereading{options: options, now: time.Now})
	awsConfig.Credentials = s.creds
	retryer := s.retryer(awsConfig.RetryMaxAttempts)

	var endpoint string
	s.client = awss3.NewFromConfig(awsConfig, func(o *awss3.Options) {
		if s.cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(s.cfg.Endpoint)
		}
		endpoint = aws.ToString(o.BaseEndpoint)
		amazon := endpoint == "" || isAmazon(endpoint)
		if o.Region == "" && !amazon {
			o.Region = "us-east-1"
		}
		o.UsePathStyle = s.cfg.PathStyle == "true" || s.cfg.PathStyle != "false" && !amazon

		// The checksum goes into a header, computed from the buffer at hand;
		// the SDK's own way would be a trailer after a chunked body, which
		// other servers understand less often.
		s.checksum = s.cfg.Checksums == "on" || s.cfg.Checksums != "off" && amazon &&
			awsConfig.RequestChecksumCalculation != aws.RequestChecksumCalculationWhenRequired
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		if s.checksum {
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenSupported
		}
		o.DisableLogOutputChecksumValidationSkipped = true

		o.Retryer = retryer
		o.ContinueHeaderThresholdBytes = -1 // Expect: 100-continue costs a second a part where it is not understood
		if b, ok := o.HTTPClient.(*awshttp.BuildableClient); ok {
			// The SDK's read timeout would also end slow uploads.
			o.HTTPClient = &watchedClient{b.WithReadTimeout(0)}
		} else {
			o.HTTPClient = &watchedClient{o.HTTPClient}
		}
	})
	s.where = fmt.Sprintf("bucket %q at %s", s.cfg.Bucket, endpoint)
	region := s.client.Options().Region
	if region == "" {
		return errors.New("no region: set it in the configuration, in AWS_REGION or in the profile")
	}
	if endpoint == "" {
		s.where = fmt.Sprintf("bucket %q in AWS region %s", s.cfg.Bucket, region)
		return nil
	}
	return checkEndpoint(endpoint)
}

// checkEndpoint does not repeat the endpoint when it may hold a secret.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return errors.New("the endpoint is not a URL")
	case u.User != nil:
		return errors.New("the endpoint must not hold credentials")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("the endpoint %q is not of the form https://host[:port]", endpoint)
	}
	return nil
}

// isAmazon reports whether the endpoint is one of Amazon's own, where buckets
// are host names.
func isAmazon(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	host := strings.ToLower(u.Hostname())
	return strings.HasSuffix(host, ".amazonaws.com") || strings.HasSuffix(host, ".amazonaws.com.cn")
}

func (s *Store) retryer(fromEnvironment int) aws.RetryerV2 {
	attempts, backoff := s.cfg.MaxAttempts, s.cfg.MaxBackoff
	if attempts == 0 {
		attempts = fromEnvironment
	}
	if attempts == 0 {
		attempts = defaultAttempts
	}
	if backoff == 0 {
		backoff = defaultBackoff
	}
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = attempts
		o.MaxBackoff = backoff
		o.Backoff = retry.NewExponentialJitterBackoff(backoff)
		// The SDK's token bucket would, after a long outage, make the next
		// single failure final. Attempts are bounded; that is enough.
		o.RateLimiter = ratelimit.None
	})
}

// rereading resolves credentials from their sources each time that it is
// asked. The SDK reads the shared files once in a process's life, so keys that
// are rotated in them would go unnoticed.
type rereading struct {
	options []func(*config.LoadOptions) error
	now     func() time.Time
}

func (r *rereading) Retrieve(ctx context.Context) (aws.Credentials, error) {
	loaded, err := config.LoadDefaultConfig(ctx, r.options...)
	if err != nil {
		return aws.Credentials{}, err
	}
	creds, err := loaded.Credentials.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, err
	}
	if !creds.CanExpire {
		creds.CanExpire, creds.Expires = true, r.now().Add(credentialsAge)
	}
	return creds, nil
}
