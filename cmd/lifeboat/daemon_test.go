package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/events"
	"lifeboat/internal/status"
)

// SIGHUP while the API server's manifest is away, as in a repair, stops no
// backup of the etcd clusters that it named.
func TestAReloadKeepsTheEtcdClustersThatWereDiscovered(t *testing.T) {
	dir := t.TempDir()
	pod := filepath.Join(dir, "etc/kubernetes/manifests/kube-apiserver.yaml")
	if err := os.MkdirAll(filepath.Dir(pod), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver}\nspec:\n  containers:\n  - name: kube-apiserver\n    image: x\n" +
		"    command: [kube-apiserver, --etcd-servers=http://127.0.0.1:2379, '--etcd-servers-overrides=/events#http://127.0.0.1:2479']\n"
	if err := os.WriteFile(pod, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.yaml")
	configure := func(named string) {
		t.Helper()
		text := fmt.Sprintf("cluster: test\nnode: cp1\ndiscover: true\netcd: [{name: %s, endpoints: ['http://127.0.0.1:2579']}]\n"+
			"host: {root: %s}\nstores: [{url: 'file://%s/store'}]\nrecipients: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p]\n"+
			"signing: {keyFile: key, trustFile: trust}\nstateDir: state\n", named, dir, dir)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := &daemon{app: &app{configPath: path}, log: slog.New(slog.DiscardHandler)}
	read := func() []string {
		t.Helper()
		file, c, err := d.read()
		if err != nil {
			t.Fatal(err)
		}
		d.file = file
		d.config.Store(c)
		return names(c)
	}
	configure("by-hand")
	if got := read(); !slices.Equal(got, []string{"by-hand", "main", "events"}) {
		t.Fatalf("at the start: %q", got)
	}
	if err := os.Remove(pod); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := read(); !slices.Equal(got, []string{"by-hand", "main", "events"}) {
			t.Errorf("without the manifest: %q", got)
		}
	}
	// The etcd beside it is still there, and tells nothing of the others.
	etcd := "apiVersion: v1\nkind: Pod\nmetadata: {name: etcd}\nspec:\n  containers:\n  - name: etcd\n    image: x\n" +
		"    command: [etcd, --data-dir=/var/lib/etcd, '--listen-client-urls=http://127.0.0.1:2379']\n"
	if err := os.WriteFile(filepath.Join(filepath.Dir(pod), "etcd.yaml"), []byte(etcd), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(); !slices.Equal(got, []string{"by-hand", "main", "events"}) {
		t.Errorf("without the API server's manifest: %q", got)
	}
	// What the file itself names no more was dropped on purpose.
	configure("other")
	if got := read(); !slices.Equal(got, []string{"other", "main", "events"}) {
		t.Errorf("after a change by hand: %q", got)
	}
}

// An etcd that the API server is told of while the agent runs, as when events move
// into one of their own, is backed up without a signal.
func TestAnEtcdThatAppearsIsTakenUpByItself(t *testing.T) {
	t.Parallel()
	main, events := cluster.StartBinary(t, "3.6", cluster.Options{}), cluster.StartBinary(t, "3.6", cluster.Options{})
	c := newCrew(t, "", main, nil, "files:", `files: ""`, "discover:", "discover: true")
	pod := func(flags string) {
		t.Helper()
		path := filepath.Join(c.dir, "root/etc/kubernetes/manifests/kube-apiserver.yaml")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		replace(t, path, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver}\nspec:\n  containers:\n  - name: kube-apiserver\n    image: x\n"+
			"    command: [kube-apiserver, --etcd-servers="+main.Endpoints()[0]+flags+"]\n"))
	}
	pod("")
	a := &app{configPath: c.agents[0].config, now: time.Now, rand: rand.Reader}
	d, err := a.newDaemon(slog.New(slog.DiscardHandler), "")
	if err != nil {
		t.Fatal(err)
	}
	if d.again != rediscover {
		t.Errorf("it looks for etcd clusters every %s, want %s", d.again, rediscover)
	}
	d.again = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx, make(chan os.Signal)) }() // no signal comes
	defer func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	manifests := func(name string) int {
		found, _ := filepath.Glob(filepath.Join(c.dir, "store/*/etcd", name, "manifests/*1"))
		return len(found)
	}
	c.until(60*time.Second, "the first etcd is backed up", func() bool { return manifests("main") == 1 })
	if got := names(d.config.Load()); !slices.Equal(got, []string{"main"}) {
		t.Errorf("before: %q", got)
	}
	pod(", '--etcd-servers-overrides=/events#" + events.Endpoints()[0] + "'")
	c.until(60*time.Second, "the second one is backed up", func() bool { return manifests("events") == 1 })
	if got := names(d.config.Load()); !slices.Equal(got, []string{"main", "events"}) {
		t.Errorf("after: %q", got)
	}
}

// The second thing that is wrong with a chain is told too, and neither every
// ten seconds.
func TestEachProblemIsLoggedOnce(t *testing.T) {
	p := func(message string) status.Problem {
		return status.Problem{Severity: status.Critical, Subject: "etcd/main", Message: message}
	}
	overdue := problemKey(p("the newest backup is of 2026-03-01T06:00:03Z and a later one is overdue"))
	if overdue == problemKey(p("the chain in s3://a does not verify: manifest 7 is gone")) {
		t.Error("two problems of one subject are taken for one")
	}
	if overdue != problemKey(p("the newest backup is of 2026-03-02T12:00:04Z and a later one is overdue")) {
		t.Error("the same with another time is taken for another")
	}
	if problemKey(p("the chain in s3://eu1/b does not verify")) == problemKey(p("the chain in s3://us2/b does not verify")) {
		t.Error("problems of two stores are taken for one")
	}
	if problemKey(p("c-1/etcd/main/manifests/000041: it is gone")) != problemKey(p("c-1/etcd/main/manifests/000042: it is gone")) {
		t.Error("the same with another manifest is taken for another")
	}
	refused := problemKey(p("does not answer (it last did at 2026-03-01T06:00:03Z): s3: status 503, code SlowDown, request 4442587FB7D0A2F9"))
	if refused != problemKey(p("does not answer (it last did at 2026-03-01T06:00:03Z): s3: status 503, code SlowDown, request 9F11A6C2E09B7D38")) {
		t.Error("the same with another request id is taken for another")
	}
	if problemKey(p("its clock and this node's differ by 5m1s: correct it")) != problemKey(p("its clock and this node's differ by 1h0m0s: correct it")) {
		t.Error("the same with another span is taken for another")
	}
}

func TestThousandsOfProblemsDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	d := &daemon{log: slog.New(slog.NewTextHandler(&log, nil))}
	problems := []status.Problem{{Severity: status.Critical, Subject: "etcd/main", Message: "there is no backup at all"}}
	for i := range 10_000 {
		problems = append(problems, status.Problem{Severity: status.Critical, Subject: fmt.Sprintf("hosts/forged%d", i), Message: "damaged"})
	}
	lines := func() int {
		n := bytes.Count(log.Bytes(), []byte("\n"))
		log.Reset()
		return n
	}
	told := d.tellOnce(nil, problems)
	if text := log.String(); !strings.Contains(text, "subject=etcd/main") || !strings.Contains(text, "more=9951") {
		t.Errorf("logged %.2000s", text)
	}
	if n := lines(); n != tellMost+1 {
		t.Errorf("%d lines for %d problems", n, len(problems))
	}
	told = d.tellOnce(told, problems)
	if n := lines(); n != 0 {
		t.Errorf("%d lines for nothing new", n)
	}
	told = d.tellOnce(told, problems[:1])
	if n := lines(); n != tellMost+1 {
		t.Errorf("%d lines for problems that are gone", n)
	}
	d.tellOnce(told, nil)
	if n := lines(); n != 1 {
		t.Errorf("%d lines for the last one", n)
	}
}

func TestTheLogSaysWhoRecordsAndThatAStoreIsBack(t *testing.T) {
	var log bytes.Buffer
	d := &daemon{log: slog.New(slog.NewTextHandler(&log, nil))}
	said := func(want ...string) {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if log.Len() == 0 {
			lines = nil
		}
		log.Reset()
		if len(lines) != len(want) {
			t.Fatalf("%q, want %q", lines, want)
		}
		for i := range want {
			if !strings.Contains(lines[i], want[i]) {
				t.Errorf("%q, want %q", lines[i], want[i])
			}
		}
	}
	r := status.Recorder{Chain: "etcd/main"}
	told := d.tellRecorders(nil, []status.Recorder{r})
	said() // it does nothing yet
	r.Why = "standing by: cp2 records"
	told = d.tellRecorders(told, []status.Recorder{r})
	said(`level=INFO msg="not recording" chain=etcd/main why="standing by: cp2 records"`)
	r.Why = "standing by: cp2 records, and nothing changes"
	told = d.tellRecorders(told, []status.Recorder{r})
	said()
	r.Active, r.Why, r.Revision = true, "recording", 17
	told = d.tellRecorders(told, []status.Recorder{r})
	told = d.tellRecorders(told, []status.Recorder{r})
	said("level=INFO msg=recording chain=etcd/main revision=17")

	committed := events.Committed{Store: "s3://a", Chain: "etcd/main", Segment: true}
	failed := events.StoreFailed{Store: "s3://a", Chain: "etcd/main", Err: errors.New("no route")}
	d.event(committed)
	said()
	d.event(failed)
	d.event(events.Committed{Store: "s3://b", Chain: "etcd/main", Segment: true})
	said("does not take part")
	d.event(committed)
	d.event(committed)
	said(`level=INFO msg="a store takes part again" store=s3://a chain=etcd/main`)

	// One that stands by commits nothing, and is answered again all the same.
	d.event(failed)
	r.Stores = []status.RecorderStore{{Store: "s3://a", Error: "no route"}}
	told = d.tellRecorders(told, []status.Recorder{r})
	said("does not take part")
	r.Stores = []status.RecorderStore{{Store: "s3://a"}}
	told = d.tellRecorders(told, []status.Recorder{r})
	d.tellRecorders(told, []status.Recorder{r})
	said("a store takes part again")
}
