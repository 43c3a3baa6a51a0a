package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/s3test"
	"lifeboat/internal/session"
	"lifeboat/storage"
	"lifeboat/storage/memory"
	"lifeboat/storage/s3"
)

// What an idle agent is measured with: the scrapes of a Prometheus, and the
// look at the stores that it takes every five minutes.
const (
	scrapeEvery = 15 * time.Second
	lookEvery   = 5 * time.Minute
	looks       = 10
	kept        = 300 // backups of etcd in the store, and as many manifests
	perNode     = 60
)

// BenchmarkIdleAgent runs the program beside a three-member etcd and an S3
// server with 300 backups, lets it take its first backups, and measures it
// while nothing is due. LIFEBOAT_IDLE says for how long; default one minute.
func BenchmarkIdleAgent(b *testing.B) {
	length := time.Minute
	if text := os.Getenv("LIFEBOAT_IDLE"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			b.Fatal(err)
		}
	}
	a := startAgent(b)
	a.settle(b)
	for b.Loop() {
		idle, most := a.idle(b, length)
		look := a.look(b)
		b.ReportMetric(100*(idle+look.Seconds()/lookEvery.Seconds()), "cpu-%")
		b.ReportMetric(100*idle, "cpu-%-between-looks")
		b.ReportMetric(look.Seconds()*1000, "cpu-ms/look")
		b.ReportMetric(float64(most)/(1<<20), "rss-MiB")
		b.ReportMetric(float64(a.memory(b, "RssAnon"))/(1<<20), "rss-anon-MiB")
	}
}

// runningAgent is a process of the program.
type runningAgent struct {
	cmd    *exec.Cmd
	listen string
	log    *bytes.Buffer
}

func startAgent(b *testing.B) *runningAgent {
	b.Helper()
	dir := b.TempDir()
	program := filepath.Join(dir, "lifeboat")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "lifeboat/cmd/lifeboat").CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	live := cluster.StartBinary(b, "3.6", cluster.Options{Members: 3, TLS: true})
	if _, err := etcdtest.Fill(b.Context(), live.Client(), etcdtest.FillOptions{Objects: 5000}); err != nil {
		b.Fatal(err)
	}
	server := s3test.Start(b, s3test.Options{TLS: true})
	url, keys := "s3://"+server.Bucket+"/backups", filepath.Join(dir, "keys")
	init := exec.Command(program, "init", "--cluster", "prod", "--store", url, "--out", keys, "--host-root", filepath.Join(dir, "root"), "--node", "cp1",
		"--etcd", strings.Join(live.Endpoints(), ","), "--etcd-cacert", live.CAFile, "--etcd-cert", live.CertFile, "--etcd-key", live.KeyFile)
	if err := os.MkdirAll(filepath.Join(dir, "root/etc/kubernetes"), 0o755); err != nil {
		b.Fatal(err)
	}
	if out, err := init.CombinedOutput(); err != nil {
		b.Fatalf("init: %v\n%s", err, out)
	}
	stock(b, server, url, keys)

	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	a := &runningAgent{listen: port.Addr().String(), log: &bytes.Buffer{}}
	port.Close()
	config := filepath.Join(keys, "config.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		b.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "stateDir:"):
			lines[i] = "stateDir: " + filepath.Join(dir, "state")
		case strings.HasPrefix(line, "  listen:"):
			lines[i] = "  listen: " + a.listen
		}
	}
	if err := os.WriteFile(config, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		b.Fatal(err)
	}
	a.cmd = exec.Command(program, "agent", "--config", config)
	a.cmd.Env, a.cmd.Stderr = append(os.Environ(), server.Env()...), a.log
	if err := a.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
		_ = a.cmd.Wait()
	})
	return a
}

// stock fills the store with the manifests of earlier backups, whose data is a
// few bytes each.
func stock(b *testing.B, server *s3test.Server, url, keys string) {
	b.Helper()
	server.Setenv(b)
	store, err := s3.New(b.Context(), s3.Config{Bucket: server.Bucket, Prefix: "backups"})
	if err != nil {
		b.Fatal(err)
	}
	trust, err := session.LoadTrust(filepath.Join(keys, "trust"), "")
	if err != nil {
		b.Fatal(err)
	}
	signer, err := session.LoadSigner(filepath.Join(keys, "signing.key"))
	if err != nil {
		b.Fatal(err)
	}
	made := memory.New() // hundreds of commits, one after the other, are quick there
	group, ctx := errgroup.WithContext(b.Context())
	for chain, n := range map[manifest.Chain]int{"etcd/main": kept, "hosts/cp1": perNode, "hosts/cp2": perNode, "hosts/cp3": perNode} {
		group.Go(func() error {
			now := time.Now().Add(-time.Duration(n) * 6 * time.Hour)
			repo, err := repository.Open(made, repository.Options{Trust: trust, Signer: signer, Name: url, Now: func() time.Time { return now }})
			if err != nil {
				return err
			}
			for i := range n {
				now = now.Add(6 * time.Hour)
				if err := shelve(ctx, repo, chain, now, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	group, ctx = errgroup.WithContext(b.Context())
	group.SetLimit(16)
	for info, err := range made.List(ctx, "") {
		if err != nil {
			b.Fatal(err)
		}
		group.Go(func() error {
			body, _, err := made.Open(ctx, info.Name, storage.Range{})
			if err != nil {
				return err
			}
			defer body.Close()
			return store.Put(ctx, info.Name, body, storage.PutOptions{})
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
}

func shelve(ctx context.Context, repo *repository.Repository, chain manifest.Chain, at time.Time, i int) error {
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		return err
	}
	const body = "sealed"
	next := at.Add(12 * time.Hour).UTC().Truncate(time.Millisecond)
	m := &manifest.Manifest{
		Chain: chain, ID: id, Created: at.UTC().Truncate(time.Millisecond), Writer: manifest.Writer{Node: "cp1", Version: "bench"},
		Recipients: []string{"age1x"}, NextExpectedBy: &next,
	}
	file, role := "files.tar.zst.age", manifest.RoleFiles
	if m.Kind = manifest.KindFiles; strings.HasPrefix(string(chain), "etcd/") {
		m.Kind, file, role = manifest.KindFull, "snapshot.db.zst.age", manifest.RoleSnapshot
		m.Etcd = &manifest.Etcd{ClusterID: 1, MemberID: 1, Version: "3.6.0", Revision: manifest.Revision(10 + i), HashKV: 1, ComparedWith: []manifest.EtcdID{2}}
	} else {
		m.Host = &manifest.Host{Node: strings.TrimPrefix(string(chain), "hosts/"), Files: 1, Bytes: 1}
	}
	name := repository.ObjectName(chain, id, file)
	m.Objects = []manifest.Object{{Name: name, Role: role, Size: int64(len(body)), PlainSize: 1, SHA256: sha256.Sum256([]byte(body))}}
	if err := repo.PutObject(ctx, name, strings.NewReader(body), time.Time{}); err != nil {
		return err
	}
	_, err = repo.Commit(ctx, m)
	return err
}

func (a *runningAgent) get(b *testing.B, path string) string {
	b.Helper()
	answer, err := http.Get("http://" + a.listen + path)
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		b.Fatal(err)
	}
	return string(body)
}

// settle waits until nothing is running and nothing is due: the first backups
// have been taken, verified and pruned.
func (a *runningAgent) settle(b *testing.B) {
	b.Helper()
	quiet := 0 // seconds, long enough for the memory that they took to be given back
	for deadline := time.Now().Add(3 * time.Minute); quiet < 30; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			b.Fatalf("the agent does not come to rest:\n%s", a.log)
		}
		text := a.get(b, "/status.json")
		if quiet++; text == "" || strings.Contains(text, `"running":true`) || !strings.Contains(text, `"loaded":true`) {
			quiet = 0
		}
	}
}

// idle is the share of a core that the agent uses while it is scraped and
// nothing else happens, and the most memory that it had meanwhile.
func (a *runningAgent) idle(b *testing.B, length time.Duration) (share float64, most int64) {
	b.Helper()
	begin, start := time.Now(), a.cpu(b)
	for time.Since(begin) < length {
		time.Sleep(min(scrapeEvery, length-time.Since(begin)))
		a.get(b, "/metrics")
		most = max(most, a.rss(b))
	}
	return (a.cpu(b) - start).Seconds() / time.Since(begin).Seconds(), most
}

// look is what one look at the stores costs in CPU time, with the
// configuration read again and the certificates looked at, by SIGHUP.
func (a *runningAgent) look(b *testing.B) time.Duration {
	b.Helper()
	start := a.cpu(b)
	for range looks {
		if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			b.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	return (a.cpu(b) - start) / looks
}

// cpu is the time that the process has used, user's and system's.
func (a *runningAgent) cpu(b *testing.B) time.Duration {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
	if err != nil {
		b.Fatalf("%v\n%s", err, a.log)
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	ticks := int64(0)
	for _, field := range fields[11:13] { // utime and stime, proc(5)
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ
}

// rss is the memory of the process that is in RAM, its program included.
func (a *runningAgent) rss(b *testing.B) int64 { return a.memory(b, "VmRSS") }

// memory is a line of the process' status, proc(5), in bytes.
func (a *runningAgent) memory(b *testing.B, line string) int64 {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), line+":")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib << 10
}
