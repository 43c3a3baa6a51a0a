package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
)

func TestWrongSettingsAreRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_REGION", "us-east-1")
	for want, cfg := range map[string]Config{
		"bucket is named":        {},
		"not a bucket name":      {Bucket: "a/b"},
		"clean relative path":    {Bucket: "b", Prefix: "a/../b"},
		"limit 123":              {Bucket: "b", Prefix: strings.Repeat("p", 124)},
		"pathStyle":              {Bucket: "b", PathStyle: "yes"},
		"checksums":              {Bucket: "b", Checksums: "crc32"},
		"sse":                    {Bucket: "b", SSE: "rot13"},
		"kmsKeyId":               {Bucket: "b", KMSKeyID: "k", SSE: "AES256"},
		"objectLock mode":        {Bucket: "b", ObjectLock: ObjectLock{Mode: "COMPLIANCE"}},
		"7 days and mode \"\"":   {Bucket: "b", ObjectLock: ObjectLock{Days: 7}},
		"negative":               {Bucket: "b", StallTimeout: -1},
		"no such file":           {Bucket: "b", CAFile: "/does/not/exist.pem"},
		"no PEM certificate":     {Bucket: "b", CAFile: empty},
		"https://host":           {Bucket: "b", Endpoint: "minio.example:9000"},
		"not hold credentials":   {Bucket: "b", Endpoint: "https://user:hunter2@minio.example"},
		"failed to get shared c": {Bucket: "b", Profile: "there-is-no-such-profile"},
	} {
		_, err := New(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: error %v, want one that says %q", cfg, err, want)
		}
	}
}

func TestAddressingStyle(t *testing.T) {
	for _, c := range []struct {
		endpoint, env, style string
		path                 bool
	}{
		{"", "", "auto", false},
		{"", "", "true", true},
		{"", "https://s3.example.org", "auto", true},
		{"", "https://s3.example.org", "false", false},
		{"", "http://127.0.0.1:9000", "", true},
		{"https://s3.example.org", "", "auto", true},
		{"https://192.0.2.7:9000", "", "auto", true},
		{"https://[2001:db8::1]:9000", "", "auto", true},
		{"https://s3.eu-central-1.amazonaws.com", "", "auto", false},
		{"https://s3.eu-central-1.amazonaws.com", "https://s3.example.org", "auto", false},
		{"https://s3.cn-north-1.amazonaws.com.cn", "", "auto", false},
		{"https://amazonaws.com.evil.example", "", "auto", true},
	} {
		for _, name := range []string{"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} {
			t.Setenv("AWS_ENDPOINT_URL", "")
			t.Setenv("AWS_ENDPOINT_URL_S3", "")
			if os.Unsetenv("AWS_ENDPOINT_URL") != nil || os.Unsetenv("AWS_ENDPOINT_URL_S3") != nil {
				t.Fatal("can't clear the environment")
			}
			if c.env != "" {
				t.Setenv(name, c.env)
			}
			s, err := New(t.Context(), Config{Bucket: "bkt", Endpoint: c.endpoint, Region: "eu-central-1", PathStyle: c.style})
			if err != nil {
				t.Fatal(err)
			}
			if got := s.client.Options().UsePathStyle; got != c.path {
				t.Errorf("endpoint %q, %s=%q, pathStyle %q: path style %v", c.endpoint, name, c.env, c.style, got)
			}
		}
	}
}

func TestTheEndpointAndTheAuthorityOfTheEnvironment(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true})
	s := newStore(t, server, nil) // all from the environment
	mustPut(t, s, "a", []byte("1"))

	t.Setenv("AWS_CA_BUNDLE", "")
	s = newStore(t, server, func(c *Config) { c.CAFile = server.CAFile }) // Setenv of the server sets the bundle again
	mustHold(t, s, "a", []byte("1"))

	t.Setenv("AWS_CA_BUNDLE", "")
	s, err := New(t.Context(), Config{Bucket: server.Bucket, Prefix: "some/prefix", CAFile: server.CAFile, MaxBackoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, s, "a", []byte("1"))

	s, err = New(t.Context(), Config{Bucket: server.Bucket, MaxBackoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Put(t.Context(), "b", strings.NewReader("x"), storage.PutOptions{})
	if err == nil || !strings.Contains(err.Error(), "unknown authority") || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
		t.Errorf("an unknown authority: %v", err)
	}

	// The one for S3 goes before the general one.
	t.Setenv("AWS_CA_BUNDLE", server.CAFile)
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	t.Setenv("AWS_ENDPOINT_URL_S3", server.Endpoint)
	s, err = New(t.Context(), Config{Bucket: server.Bucket, Prefix: "some/prefix"})
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, s, "a", []byte("1"))
}

func TestCredentialsOfAProfileAndTheirRotation(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	server.Setenv(t)
	dir := t.TempDir()
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_ENDPOINT_URL", "")
	_ = os.Unsetenv("AWS_ENDPOINT_URL")
	credentials, config := filepath.Join(dir, "credentials"), filepath.Join(dir, "config")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", credentials)
	t.Setenv("AWS_CONFIG_FILE", config)
	write := func(path, format string, args ...any) {
		t.Helper()
		if err := os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(config, "[profile backup]\nregion = %s\nendpoint_url = %s\n", s3test.Region, server.Endpoint)
	good := func() {
		write(credentials, "[default]\naws_access_key_id = other\naws_secret_access_key = other\n\n[backup]\naws_access_key_id = %s\naws_secret_access_key = %s\n",
			server.AccessKey, server.SecretKey)
	}
	good()
	s, err := New(t.Context(), Config{Bucket: server.Bucket, Profile: "backup", MaxBackoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "a", []byte("1"))

	// The server gets other keys; the store is told by its file only.
	server.Kill()
	oldSecret := server.SecretKey
	server.AccessKey, server.SecretKey = "AKROTATED000000", "rotated-secret-rotated-secret"
	server.Restart()
	if _, _, err := get(s, "a", storage.Range{}); !errors.Is(err, storage.ErrPermission) || strings.Contains(err.Error(), oldSecret) {
		t.Errorf("with outdated keys: %v, want ErrPermission", err)
	}
	good()
	mustHold(t, s, "a", []byte("1"))
	_ = os.Unsetenv("AWS_PROFILE")
	t.Setenv("AWS_PROFILE", "backup")
	s, err = New(t.Context(), Config{Bucket: server.Bucket})
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, s, "a", []byte("1"))
}

func TestFailuresAreClearAndHoldNoSecret(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	session := "session-token-that-is-secret"
	for _, c := range []struct {
		name   string
		change func(t *testing.T, c *Config)
		want   string
		is     error
	}{
		{"an unknown access key", func(t *testing.T, _ *Config) { t.Setenv("AWS_ACCESS_KEY_ID", "AKUNKNOWN") }, "access key", storage.ErrPermission},
		{"a wrong secret", func(t *testing.T, _ *Config) { t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong-"+server.SecretKey) }, "SignatureDoesNotMatch", storage.ErrPermission},
		{"a session token nobody gave", func(t *testing.T, _ *Config) { t.Setenv("AWS_SESSION_TOKEN", session) }, "", nil},
		{"no credentials", func(t *testing.T, _ *Config) {
			t.Setenv("AWS_ACCESS_KEY_ID", "")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		}, "credentials", nil},
		{"a missing bucket", func(t *testing.T, c *Config) { c.Bucket = "no-such-bucket" }, `bucket "no-such-bucket" at ` + server.Endpoint + " does not exist", nil},
		{"nobody listens", func(t *testing.T, c *Config) { c.Endpoint = "http://127.0.0.1:1" }, "connection refused", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			server.Setenv(t)
			cfg := Config{Bucket: server.Bucket, MaxBackoff: time.Millisecond}
			c.change(t, &cfg)
			s, err := New(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			_, _, openErr := s.Open(t.Context(), "x", storage.Range{})
			var listErr, versionsErr error
			for _, err := range s.List(t.Context(), "") {
				listErr = err
			}
			for _, err := range s.Versions(t.Context(), "x") {
				versionsErr = err
			}
			for what, err := range map[string]error{
				"put":      s.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{IfAbsent: true}),
				"part":     s.Put(t.Context(), "x", bytes.NewReader(randomBytes(minPart)), storage.PutOptions{}),
				"open":     openErr,
				"list":     listErr,
				"versions": versionsErr,
				"delete":   s.Delete(t.Context(), "x"),
			} {
				if c.want == "" {
					if err != nil && strings.Contains(err.Error(), session) {
						t.Errorf("%s: the session token is in %v", what, err)
					}
					continue
				}
				if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
					t.Errorf("%s: %v, want %q and %v", what, err, c.want, c.is)
					continue
				}
				if c.is == nil && (errors.Is(err, storage.ErrNotExist) || errors.Is(err, storage.ErrPermission)) {
					t.Errorf("%s: %v is taken for a plain missing object", what, err)
				}
				if strings.Contains(err.Error(), server.SecretKey) || strings.Contains(fmt.Sprintf("%+v %#v", err, err), server.SecretKey) {
					t.Errorf("%s: the secret key is in %v", what, err)
				}
				for e := err; e != nil; e = errors.Unwrap(e) {
					if pkg := fmt.Sprintf("%T", e); strings.Contains(pkg, "smithy") || strings.Contains(pkg, "aws") || strings.Contains(pkg, "types.") {
						t.Errorf("%s: the provider's %s leaves the package", what, pkg)
					}
				}
			}
		})
	}
}

func TestNothingIsLogged(t *testing.T) {
	if os.Getenv("LIFEBOAT_S3_CHILD") == "log" {
		server := s3test.Start(t, s3test.Options{})
		for _, key := range []string{"wrong", server.SecretKey} {
			server.Setenv(t)
			t.Setenv("AWS_SECRET_ACCESS_KEY", key)
			s, err := New(t.Context(), Config{Bucket: server.Bucket, Checksums: "on", MaxBackoff: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Put(t.Context(), "x", bytes.NewReader(randomBytes(minPart+1)), storage.PutOptions{IfAbsent: true})
			_ = s.Put(t.Context(), "x", bytes.NewReader(randomBytes(minPart+1)), storage.PutOptions{IfAbsent: true})
			_, _, _ = get(s, "x", storage.Range{})
		}
		return
	}
	out := runChild(t, "TestNothingIsLogged", "LIFEBOAT_S3_CHILD=log")
	if got := strings.TrimSpace(out); got != "PASS" {
		t.Errorf("the process wrote %q", got)
	}
}

// runChild runs one test of this binary in a process of its own, and returns
// all that it writes.
func runChild(t *testing.T, test string, env ...string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// The proxy variables are read once in a process's life, hence the child.
func TestProxiesOfTheEnvironmentAreUsed(t *testing.T) {
	if os.Getenv("LIFEBOAT_S3_CHILD") == "proxy" {
		s, err := New(t.Context(), Config{Bucket: "bkt", Region: "us-east-1", Endpoint: "http://s3.example.invalid", MaxAttempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var hits atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host == "s3.example.invalid" && r.URL.Path == "/bkt/x" && r.Header.Get("Proxy-Authorization") != "" {
			hits.Add(1)
		}
	}))
	defer proxy.Close()
	runChild(t, "TestProxiesOfTheEnvironmentAreUsed", "LIFEBOAT_S3_CHILD=proxy",
		"HTTP_PROXY="+strings.Replace(proxy.URL, "http://", "http://user:pass@", 1), "NO_PROXY=",
		"AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b", "AWS_EC2_METADATA_DISABLED=true")
	if hits.Load() != 1 {
		t.Errorf("%d requests went over the proxy, want 1", hits.Load())
	}
}

// What each setting puts on the wire.
func TestSettingsOnTheWire(t *testing.T) {
	big := randomBytes(minPart + 1)
	for _, c := range []struct {
		name   string
		change func(*Config)
		opts   storage.PutOptions
		want   map[string]string // header of the small put; empty value: absent
	}{
		{"nothing is set", func(*Config) {}, storage.PutOptions{}, map[string]string{
			"X-Amz-Checksum-Crc32": "", "X-Amz-Sdk-Checksum-Algorithm": "", "X-Amz-Trailer": "", "Content-Encoding": "", "Expect": "",
			"X-Amz-Server-Side-Encryption": "", "X-Amz-Storage-Class": "", "X-Amz-Object-Lock-Mode": "", "If-None-Match": "",
		}},
		{"checksums on", func(c *Config) { c.Checksums = "on" }, storage.PutOptions{}, map[string]string{
			"X-Amz-Checksum-Crc32": "jNwWgw==", "X-Amz-Trailer": "", "Content-Encoding": "",
		}},
		{"checksums off", func(c *Config) { c.Checksums = "off" }, storage.PutOptions{IfAbsent: true}, map[string]string{
			"X-Amz-Checksum-Crc32": "", "If-None-Match": "*",
		}},
		{"encryption with a key", func(c *Config) { c.SSE, c.KMSKeyID = "aws:kms", "key-1" }, storage.PutOptions{}, map[string]string{
			"X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key-1",
		}},
		{"encryption", func(c *Config) { c.SSE = "AES256" }, storage.PutOptions{}, map[string]string{
			"X-Amz-Server-Side-Encryption": "AES256", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "",
		}},
		{"a storage class", func(c *Config) { c.StorageClass = "STANDARD_IA" }, storage.PutOptions{}, map[string]string{
			"X-Amz-Storage-Class": "STANDARD_IA",
		}},
		{"a lock without checksums", func(c *Config) { c.Checksums, c.ObjectLock.Mode = "off", "governance" },
			storage.PutOptions{RetainUntil: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}, map[string]string{
				"X-Amz-Object-Lock-Mode": "GOVERNANCE", "X-Amz-Object-Lock-Retain-Until-Date": "2030-01-02T03:04:05Z", "X-Amz-Checksum-Crc32": "jNwWgw==",
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			wire := &wire{}
			front := httptest.NewServer(wire)
			defer front.Close()
			t.Setenv("AWS_ACCESS_KEY_ID", "a")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
			cfg := Config{Bucket: "bkt", Endpoint: front.URL}
			c.change(&cfg)
			s, err := New(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Put(t.Context(), "x", strings.NewReader("x"), c.opts); err != nil {
				t.Fatal(err)
			}
			got := wire.last
			if got.URL.Path != "/bkt/x" {
				t.Errorf("path %s", got.URL.Path)
			}
			for header, want := range c.want {
				if value := got.Header.Get(header); value != want {
					t.Errorf("%s is %q, want %q", header, value, want)
				}
			}
			if err := s.Put(t.Context(), "x", bytes.NewReader(big), c.opts); err != nil {
				t.Fatal(err)
			}
			// Of a multipart upload, the create carries these and the parts the checksum.
			for header, want := range c.want {
				value := wire.create.Header.Get(header)
				switch header {
				case "X-Amz-Checksum-Crc32":
					if (wire.part.Header.Get(header) != "") != (want != "") || (wire.create.Header.Get("X-Amz-Checksum-Algorithm") != "") != (want != "") {
						t.Errorf("checksums of parts: %q, algorithm %q", wire.part.Header.Get(header), wire.create.Header.Get("X-Amz-Checksum-Algorithm"))
					}
				case "If-None-Match":
					if got := wire.complete.Header.Get(header); got != want {
						t.Errorf("the completion's %s is %q, want %q", header, got, want)
					}
				default:
					if value != want {
						t.Errorf("multipart: %s is %q, want %q", header, value, want)
					}
				}
			}
		})
	}
}

// wire is a server that says yes and remembers the requests.
type wire struct {
	last, create, part, complete *http.Request
}

func (w *wire) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // else the connection lingers for half a second
	r = r.Clone(context.Background())
	w.last = r
	out.Header().Set("ETag", `"e"`)
	switch {
	case isCreateUpload(r):
		w.create = r
		_, _ = out.Write([]byte(`<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>`))
	case isPart(r):
		w.part = r
	case isComplete(r):
		w.complete = r
		_, _ = out.Write([]byte(`<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>`))
	}
}

func TestPayloadsAreNotHashedUnderTLS(t *testing.T) {
	var payload atomic.Value
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		payload.Store(r.Header.Get("X-Amz-Content-Sha256") + r.Header.Get("Content-Encoding"))
	}))
	defer front.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	for _, checksums := range []string{"on", "off"} {
		s, err := New(t.Context(), Config{Bucket: "bkt", Endpoint: front.URL, Checksums: checksums})
		if err != nil {
			t.Fatal(err)
		}
		s.client.Options().HTTPClient.(*watchedClient).next = front.Client()
		if err := s.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := payload.Load(); got != "UNSIGNED-PAYLOAD" {
			t.Errorf("checksums %s: payload hash %v", checksums, got)
		}
	}
}

func TestChecksumsOnAreAcceptedAndChecked(t *testing.T) {
	s := newStore(t, s3test.Start(t, s3test.Options{TLS: true}), func(c *Config) { c.Checksums = "on" })
	for _, size := range []int{10, 2*minPart + 10} {
		content := randomBytes(size)
		name := fmt.Sprint(size)
		mustPut(t, s, name, content)
		mustHold(t, s, name, content)
	}
}
