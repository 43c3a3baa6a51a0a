package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/backup/record"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/s3test"
)

func TestFullsForOneReasonDoNotFollowEachOther(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	taken := asked{"the spool is full", 1, now}
	for name, test := range map[string]struct {
		reason string
		epoch  uint64
		later  time.Duration
		want   bool
	}{
		"a minute later":                        {"the spool is full", 1, time.Minute, true},
		"later than the pause":                  {"the spool is full", 1, 10 * time.Minute, false},
		"for another reason":                    {"there is no full", 1, time.Minute, false},
		"for another history":                   {"the spool is full", 2, time.Minute, false},
		"when the clock was set back by a day":  {"the spool is full", 1, -24 * time.Hour, false},
		"when the clock was set back by little": {"the spool is full", 1, -time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := taken.holdsBack(test.reason, test.epoch, now.Add(test.later)); got != test.want {
				t.Errorf("held back: %v", got)
			}
		})
	}
	// One that is held back takes nothing: there is nothing here to take it with.
	r := &recording{app: &app{now: func() time.Time { return now.Add(time.Minute) }}, taken: taken}
	if r.full(context.Background(), "the spool is full", 1); r.running {
		t.Error("a full is taken")
	}
}

func TestAnOutageOfAStoreIsToldOnceAndItsEnd(t *testing.T) {
	noon := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	down, told := outages{}, []string{}
	for _, in := range []record.StoreStatus{
		{URL: "a"},
		{URL: "a", Err: "request 1: no route", Since: noon},
		{URL: "a", Err: "request 2: no route", Since: noon},
		{URL: "b", Err: "full", Since: noon},
		{URL: "a", Err: "request 3: timeout", Since: noon},
		{URL: "a"},
		{URL: "a"},
		{URL: "a", Err: "request 9: no route", Since: noon.Add(time.Hour)},
		{URL: "a", Err: "request 20: no route", Since: noon.Add(2 * time.Hour)}, // it worked between two looks
		{URL: "b", Err: "full", Since: noon},
	} {
		if news := down.news(in); news != "" {
			told = append(told, news)
		}
	}
	if want := []string{
		"a takes no segments now: request 1: no route",
		"b takes no segments now: full",
		"a takes segments again",
		"a takes no segments now: request 9: no route",
		"a takes no segments now: request 20: no route",
	}; !slices.Equal(told, want) {
		t.Errorf("told %q", told)
	}
}

func TestAnOutageOfAnS3StoreIsToldOnceByTheRecorder(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	proxy := s3test.NewProxy(t, server.Endpoint)
	s := newSite(t)
	server.Setenv(t)
	t.Setenv("AWS_ENDPOINT_URL_S3", proxy.Endpoint)
	s.edit("file://"+filepath.Join(s.dir, "store"), "s3://"+server.Bucket)
	s.run(exitDone, "backup", "--only", "etcd", "--config", s.config)
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	client, err := etcdtest.NewClient(string(regexp.MustCompile(`http://127[.0-9:]+`).Find(text)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	cluster.Settle(t, client) // each change would ask for a full backup, which would fail too

	stderr, err := os.Create(filepath.Join(s.dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd, _ := s.process("record")
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	said := func() string {
		text, err := os.ReadFile(stderr.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	change := func(d time.Duration, until string) {
		for end := time.Now().Add(d); time.Now().Before(end) && (until == "" || !strings.Contains(said(), until)); time.Sleep(300 * time.Millisecond) {
			if _, err := client.Put(t.Context(), "key", "value"); err != nil {
				t.Fatal(err)
			}
		}
	}
	change(30*time.Second, "etcd/main: recording")
	change(3*time.Second, "")
	for i := range 100 { // each try fails with another text
		proxy.Inject(s3test.Fault{Status: http.StatusForbidden, Code: fmt.Sprintf("Denied%d", i), Times: 1})
	}
	change(30*time.Second, "takes no segments now")
	change(5*time.Second, "")
	proxy.Clear()
	change(60*time.Second, "takes segments again")
	_ = cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	for _, line := range []string{"takes no segments now", "takes segments again"} {
		if n := strings.Count(said(), line); n != 1 {
			t.Errorf("%q is said %d times\n%s", line, n, said())
		}
	}
	if strings.Contains(said(), "a store did not take the backup") {
		t.Errorf("it is told in other words, too:\n%s", said())
	}
}
