// Package cluster runs real etcd servers of several versions as child
// processes on loopback, for tests. The servers are built by "make tools".
package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"lifeboat/internal/freeport"
)

// Versions are the etcd versions that Start knows.
var Versions = []string{"3.5", "3.6", "3.7"}

// Options configure Start. The zero value is one member in plain text with a
// data directory of its own.
type Options struct {
	Members int      // 1 when 0
	TLS     bool     // client and peer TLS with client certificates, from a CA of the cluster's own
	DataDir string   // of member 0; opened when it exists. The others, and it when empty, get temporary ones
	Sync    bool     // fsync as in production; tests don't need it
	Args    []string // further flags for every member
	Name    string   // of member 0; "m0" when empty
	PeerURL string   // of member 0: what a restored data directory was told; a free port when empty
	Token   string   // --initial-cluster-token
}

// Cluster is a running cluster. It ends with the test.
type Cluster struct {
	Version                   string
	Members                   []*Member
	CAFile, CertFile, KeyFile string // a client's, with TLS

	t   testing.TB
	tls *tls.Config
}

// Member is one etcd process of a cluster.
type Member struct {
	Name, Dir, Endpoint, PeerURL string

	t    testing.TB
	args []string
	bin  string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

// Binary is the path of a program of the given etcd version: "etcd",
// "etcdctl" or "etcdutl". It fails the test when it is not built.
func Binary(t testing.TB, version, program string) string {
	t.Helper()
	_, self, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("can't find the source folder")
	}
	root := filepath.Join(filepath.Dir(self), "..", "..", "..")
	path := filepath.Join(root, "bin", "tools", "etcd-"+version, program)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s of etcd %s is missing (%v): run make tools", program, version, err)
	}
	return path
}

// StartBinary starts a cluster of real etcd processes and waits until every
// member is healthy.
func StartBinary(t testing.TB, version string, opts Options) *Cluster {
	t.Helper()
	if opts.Members == 0 {
		opts.Members = 1
	}
	c := &Cluster{Version: version, t: t}
	bin := Binary(t, version, "etcd")
	scheme, pki := "http", t.TempDir()
	if opts.TLS {
		scheme = "https"
		c.CAFile, c.CertFile, c.KeyFile = filepath.Join(pki, "ca.crt"), filepath.Join(pki, "client.crt"), filepath.Join(pki, "client.key")
		c.tls = writePKI(t, pki)
	}
	var initial []string
	for i := range opts.Members {
		m := &Member{Name: fmt.Sprintf("m%d", i), Dir: t.TempDir(), t: t, bin: bin}
		m.Endpoint, m.PeerURL = scheme+"://"+freeport.Address(t), scheme+"://"+freeport.Address(t)
		if i == 0 {
			if opts.DataDir != "" {
				m.Dir = opts.DataDir
			}
			if opts.Name != "" {
				m.Name = opts.Name
			}
			if opts.PeerURL != "" {
				m.PeerURL = opts.PeerURL
			}
		}
		m.log = filepath.Join(t.TempDir(), m.Name+".log")
		initial = append(initial, m.Name+"="+m.PeerURL)
		c.Members = append(c.Members, m)
	}
	for _, m := range c.Members {
		m.args = []string{
			"--name", m.Name, "--data-dir", m.Dir,
			"--listen-client-urls", m.Endpoint, "--advertise-client-urls", m.Endpoint,
			"--listen-peer-urls", m.PeerURL, "--initial-advertise-peer-urls", m.PeerURL,
			"--initial-cluster", strings.Join(initial, ","),
			"--heartbeat-interval", "50", "--election-timeout", "500",
			"--log-level", "warn", "--log-outputs", m.log,
		}
		if opts.Token != "" {
			m.args = append(m.args, "--initial-cluster-token", opts.Token)
		}
		if !opts.Sync {
			m.args = append(m.args, "--unsafe-no-fsync")
		}
		if opts.TLS {
			server := func(ext string) string { return filepath.Join(pki, "server."+ext) }
			m.args = append(m.args,
				"--cert-file", server("crt"), "--key-file", server("key"), "--trusted-ca-file", c.CAFile, "--client-cert-auth",
				"--peer-cert-file", server("crt"), "--peer-key-file", server("key"), "--peer-trusted-ca-file", c.CAFile, "--peer-client-cert-auth")
		}
		m.args = append(m.args, opts.Args...)
		m.start()
		t.Cleanup(m.Kill)
	}
	for i := range c.Members {
		c.WaitHealthy(i)
	}
	return c
}

// Endpoints are the client URLs of all members.
func (c *Cluster) Endpoints() []string {
	var all []string
	for _, m := range c.Members {
		all = append(all, m.Endpoint)
	}
	return all
}

// Client connects to the given members, or to all. It is closed with the test.
func (c *Cluster) Client(members ...int) *clientv3.Client {
	c.t.Helper()
	endpoints := c.Endpoints()
	if len(members) > 0 {
		endpoints = nil
		for _, i := range members {
			endpoints = append(endpoints, c.Members[i].Endpoint)
		}
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 10 * time.Second, TLS: c.tls, Logger: zap.NewNop(),
	})
	if err != nil {
		c.t.Fatalf("connect to etcd: %v", err)
	}
	c.t.Cleanup(func() { client.Close() })
	return client
}

// TLS is a client's configuration; nil in plain text.
func (c *Cluster) TLS() *tls.Config { return c.tls }

// Settle waits until the members have written their storage version, which etcd
// does seconds after its first start from 3.6 on: a recorder asks for a full backup
// at each change of it.
func (c *Cluster) Settle() {
	c.t.Helper()
	for i := range c.Members {
		Settle(c.t, c.Client(i))
	}
}

// Settle is Cluster.Settle for the one member that a client is connected to.
func Settle(t testing.TB, client *clientv3.Client) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s, err := client.Status(t.Context(), client.Endpoints()[0])
		if err == nil && (strings.HasPrefix(s.Version, "3.5.") || strings.HasPrefix(s.Version, strings.TrimSuffix(s.StorageVersion, ".0")+".")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("wait for the storage version of %s: %+v, %v", client.Endpoints()[0], s, err)
		}
	}
}

// WaitHealthy waits until member i answers a linearizable read.
func (c *Cluster) WaitHealthy(i int) {
	c.t.Helper()
	client := c.Client(i)
	defer client.Close()
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, last = client.Get(ctx, "health")
		cancel()
		if last == nil {
			return
		}
		if !c.Members[i].Running() {
			break
		}
	}
	log, _ := os.ReadFile(c.Members[i].log)
	c.t.Fatalf("etcd %s member %s is not healthy: %v\n%s", c.Version, c.Members[i].Name, last, log)
}

// Kill ends member i as a power cut would.
func (c *Cluster) Kill(i int) { c.Members[i].Kill() }

// Stop ends member i in order.
func (c *Cluster) Stop(i int) { c.Members[i].Stop() }

// Restart starts member i again, after Kill or Stop, and waits until it is healthy.
func (c *Cluster) Restart(i int) {
	c.t.Helper()
	c.Members[i].Kill()
	c.Members[i].start()
	c.WaitHealthy(i)
}

// Launch starts member i again, after Kill or Stop, and does not wait.
func (c *Cluster) Launch(i int) { c.Members[i].start() }

// Pause stops member i's process without ending it; Resume lets it go on. When it
// returns no thread of it runs any more: on a busy machine that takes a while.
func (c *Cluster) Pause(i int) {
	m := c.Members[i]
	m.signal(syscall.SIGSTOP)
	for deadline := time.Now().Add(30 * time.Second); !m.stopped(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("member %s was not stopped within 30 s", m.Name)
		}
	}
}

// stopped says whether all threads of the process are stopped (proc(5)).
func (m *Member) stopped() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", m.PID()))
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if at := strings.LastIndexByte(string(text), ')'); at < 0 || at+2 >= len(text) || text[at+2] != 'T' {
			return false
		}
	}
	return len(threads) > 0
}

// Resume lets a paused member go on.
func (c *Cluster) Resume(i int) { c.Members[i].signal(syscall.SIGCONT) }

// DBFile is the path of the member's database file.
func (m *Member) DBFile() string { return filepath.Join(m.Dir, "member", "snap", "db") }

// LogFile is the path of the member's log.
func (m *Member) LogFile() string { return m.log }

// PID is the process id of the member as last started.
func (m *Member) PID() int { return m.cmd.Process.Pid }

// Running says whether the process is there.
func (m *Member) Running() bool {
	select {
	case <-m.done:
		return false
	default:
		return true
	}
}

// Kill ends the process at once and waits for it. A second call does nothing.
func (m *Member) Kill() {
	if m.Running() {
		m.signal(syscall.SIGKILL)
		<-m.done
	}
}

// Stop ends the process in order and waits for it.
func (m *Member) Stop() {
	if !m.Running() {
		return
	}
	m.signal(syscall.SIGTERM)
	select {
	case <-m.done:
	case <-time.After(15 * time.Second):
		m.t.Errorf("etcd member %s did not stop in 15 s", m.Name)
		m.Kill()
	}
}

func (m *Member) start() {
	m.t.Helper()
	m.cmd = exec.Command(m.bin, m.args...)
	m.cmd.Env = append(os.Environ(), "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH)
	out, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatalf("open the log of %s: %v", m.Name, err)
	}
	defer out.Close()
	m.cmd.Stdout, m.cmd.Stderr = out, out
	// A test binary that dies takes its servers with it. The kernel sends that
	// signal when the starting thread ends, so the goroutine keeps its thread.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd, done, started := m.cmd, make(chan struct{}), make(chan error)
	m.done = done
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
		close(done)
	}()
	if err := <-started; err != nil {
		m.t.Fatalf("start etcd member %s: %v", m.Name, err)
	}
}

func (m *Member) signal(s syscall.Signal) {
	if err := m.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.t.Errorf("send %v to etcd member %s: %v", s, m.Name, err)
	}
}

// clientTLS is the configuration of a client with the given files.
func clientTLS(t testing.TB, ca, cert, key string) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", ca)
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}
