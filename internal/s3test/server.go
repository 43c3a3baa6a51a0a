// Package s3test gives tests a real S3 server, versitygw, as a child process
// on loopback, and a proxy that breaks requests in ways that a healthy server
// never does. It is for tests only.
package s3test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"lifeboat/internal/freeport"
)

// Region is the region that servers answer for.
const Region = "us-east-1"

// Options configure Start. The zero value is plain HTTP without versions and
// one bucket.
type Options struct {
	TLS        bool // serve HTTPS with a certificate of a fresh authority, see Server.CAFile
	Versioning bool // keep versions; Server.Bucket has versioning enabled
	ObjectLock bool // Server.Bucket has Object Lock enabled; implies Versioning
	Accounts   bool // accounts beside the root's can be made, see AddAccount
}

// Server is a running versitygw. It ends with the test.
type Server struct {
	Endpoint  string // http(s)://127.0.0.1:port
	Bucket    string // exists
	AccessKey string
	SecretKey string
	CAFile    string // the authority's certificate, with TLS

	t       testing.TB
	opts    Options
	dir     string // data/, versions/, sidecar/, log
	address string
	cert    string
	key     string
	cmd     *exec.Cmd
	done    chan struct{}
}

// Start runs a server and makes its bucket.
func Start(t testing.TB, opts Options) *Server {
	t.Helper()
	opts.Versioning = opts.Versioning || opts.ObjectLock
	s := &Server{
		Bucket:    "lifeboat-test",
		AccessKey: "AK" + rand.Text()[:14],
		SecretKey: rand.Text() + "/+" + rand.Text()[:12],
		t:         t, opts: opts, dir: t.TempDir(),
	}
	for _, sub := range []string{"data", "versions", "accounts"} {
		if err := os.Mkdir(filepath.Join(s.dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.Endpoint = "http://"
	if opts.TLS {
		s.Endpoint = "https://"
		s.CAFile, s.cert, s.key = writePKI(t, s.dir)
	}
	s.address = freeport.Address(t)
	s.Endpoint += s.address
	t.Cleanup(s.Kill)
	s.run()
	s.CreateBucket(s.Bucket, opts.ObjectLock)
	if opts.Versioning && !opts.ObjectLock {
		s.EnableVersioning(s.Bucket)
	}
	return s
}

// Folder is where the server keeps its bucket's objects, a file each under its
// key: for benchmarks, which would wait long for many to be put.
func (s *Server) Folder() string { return filepath.Join(s.dir, "data", s.Bucket) }

func binary(t testing.TB) string {
	t.Helper()
	_, self, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("can't find the source folder")
	}
	path := filepath.Join(filepath.Dir(self), "..", "..", "bin", "tools", "versitygw")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("versitygw is missing (%v): run make tools", err)
	}
	return path
}

// run starts the process and waits until it answers.
func (s *Server) run() {
	s.t.Helper()
	args := []string{"--port", s.address, "--region", Region, "--quiet", "--keep-alive"}
	if s.opts.TLS {
		args = append(args, "--cert", s.cert, "--key", s.key)
	}
	if s.opts.Accounts {
		args = append(args, "--iam-dir", filepath.Join(s.dir, "accounts"))
	}
	args = append(args, "posix")
	if s.opts.Versioning {
		args = append(args, "--versioning-dir", filepath.Join(s.dir, "versions"))
	}
	args = append(args, filepath.Join(s.dir, "data"))

	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd, done, started := exec.Command(binary(s.t), args...), make(chan struct{}), make(chan error)
	cmd.Env = []string{"ROOT_ACCESS_KEY_ID=" + s.AccessKey, "ROOT_SECRET_ACCESS_KEY=" + s.SecretKey, "PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = log, log
	// The server dies with the test binary. The kernel ties that to the thread
	// that started it, so the goroutine keeps its thread.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	if err := <-started; err != nil {
		s.t.Fatalf("start versitygw: %v", err)
	}
	s.cmd, s.done = cmd, done
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-done:
			text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.t.Fatalf("versitygw ended:\n%s", text)
		default:
		}
		if s.answers() {
			return
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.t.Fatalf("versitygw does not answer at %s:\n%s", s.address, text)
		}
	}
}

func (s *Server) answers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := s.Client().ListBuckets(ctx, &awss3.ListBucketsInput{})
	return err == nil
}

// Kill ends the process at once (SIGKILL) and waits for its end.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // also ends a stopped process
	<-s.done
	s.cmd = nil
}

// Restart starts the server again on its address and data, after Kill.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.run()
}

// Stall stops the process (SIGSTOP): connections open, and nothing moves. It
// returns when every thread has stopped.
func (s *Server) Stall() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	for deadline := time.Now().Add(10 * time.Second); !s.stopped(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("versitygw does not stop")
		}
	}
}

func (s *Server) stopped() bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.cmd.Process.Pid))
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		// The state follows the name, which is in parentheses.
		if state := text[bytes.LastIndexByte(text, ')')+2]; state != 'T' {
			return false
		}
	}
	return true
}

// Resume lets a stalled process go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("signal versitygw: %v", err)
	}
}

// Env is the environment in which AWS tools find the server: the endpoint, the
// credentials, the CA bundle, and no other source of any of them.
func (s *Server) Env() []string {
	env := []string{
		"AWS_ENDPOINT_URL=" + s.Endpoint,
		"AWS_ACCESS_KEY_ID=" + s.AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_SESSION_TOKEN=",
		"AWS_REGION=" + Region,
		"AWS_PROFILE=",
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=" + filepath.Join(s.dir, "no-config"),
		"AWS_SHARED_CREDENTIALS_FILE=" + filepath.Join(s.dir, "no-credentials"),
	}
	if s.CAFile != "" {
		env = append(env, "AWS_CA_BUNDLE="+s.CAFile)
	}
	return env
}

// Setenv sets Env in the test's own process.
func (s *Server) Setenv(t testing.TB) {
	t.Helper()
	for _, entry := range s.Env() {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
}

// Client is a client of the SDK for what a Store does not offer.
func (s *Server) Client() *awss3.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true // leaves no goroutine behind
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			s.t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return awss3.New(awss3.Options{
		Region:           Region,
		BaseEndpoint:     aws.String(s.Endpoint),
		UsePathStyle:     true,
		Credentials:      credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
		HTTPClient:       &http.Client{Transport: transport},
		RetryMaxAttempts: 1,
	})
}

// CreateBucket makes a bucket.
func (s *Server) CreateBucket(name string, objectLock bool) {
	s.t.Helper()
	in := &awss3.CreateBucketInput{Bucket: &name}
	if objectLock {
		in.ObjectLockEnabledForBucket = aws.Bool(true)
	}
	if _, err := s.Client().CreateBucket(context.Background(), in); err != nil {
		s.t.Fatalf("create bucket %s: %v", name, err)
	}
}

// EnableVersioning turns versioning on for a bucket of a server that was
// started with it.
func (s *Server) EnableVersioning(bucket string) {
	s.t.Helper()
	_, err := s.Client().PutBucketVersioning(context.Background(), &awss3.PutBucketVersioningInput{
		Bucket:                  &bucket,
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	})
	if err != nil {
		s.t.Fatalf("enable versioning of %s: %v", bucket, err)
	}
}

// OpenUploads is the multipart uploads of a bucket that are neither completed
// nor aborted, as "key upload-id".
func (s *Server) OpenUploads(bucket string) []string {
	s.t.Helper()
	out, err := s.Client().ListMultipartUploads(context.Background(), &awss3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		s.t.Fatalf("list multipart uploads of %s: %v", bucket, err)
	}
	var open []string
	for _, u := range out.Uploads {
		open = append(open, aws.ToString(u.Key)+" "+aws.ToString(u.UploadId))
	}
	return open
}

// Log is what the server has written so far.
func (s *Server) Log() string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(bytes.TrimSpace(text))
}

// String is the endpoint and the bucket.
func (s *Server) String() string { return fmt.Sprintf("%s/%s", s.Endpoint, s.Bucket) }
