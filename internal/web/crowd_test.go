package web

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/internal/status"
	"lifeboat/internal/web/webtest"
)

// lurk opens a connection, asks for the path and never reads the answer.
func lurk(t *testing.T, address, request string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.(*net.TCPConn).SetReadBuffer(4 << 10)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: agent\r\n\r\n" }

func TestAFloodOfConnectionsEndsTheOldestAndKeepsNobodyOut(t *testing.T) {
	address, _ := serve(t, Options{Status: webtest.Well})
	const more = 40
	var lurkers []net.Conn
	for range maxConnections + more {
		lurkers = append(lurkers, lurk(t, address, "GET /healthz HTTP/1.1\r\nHost: agent\r\n")) // and no end of it
	}
	client := http.Client{Timeout: 5 * time.Second}
	r, err := client.Get("http://" + address + "/healthz")
	if err != nil || r.StatusCode != 200 {
		t.Fatalf("a probe among the crowd: %v %v", r, err)
	}
	r.Body.Close()
	for i, c := range lurkers {
		oldest := i < more
		c.SetReadDeadline(time.Now().Add(map[bool]time.Duration{true: 3 * time.Second, false: time.Millisecond}[oldest]))
		_, err := c.Read(make([]byte, 1))
		if open := errors.Is(err, os.ErrDeadlineExceeded); open == oldest && i != more { // the probe ended one more
			t.Fatalf("connection %d of %d: %v", i, len(lurkers), err)
		}
	}
}

func TestConnectionsThatEndMakeRoom(t *testing.T) {
	address, _ := serve(t, Options{Status: webtest.Well})
	first := lurk(t, address, "GET /healthz HTTP/1.1\r\nHost: agent\r\n")
	for range 2 * maxConnections {
		c := lurk(t, address, "GET /healthz HTTP/1.0\r\n\r\n")
		io.Copy(io.Discard, c) // to its end
		c.Close()
	}
	first.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it was ended though there was room: %v", err)
	}
}

func TestWhoReadsTheMetricsSlowlyDoesNotHoldTheirHandler(t *testing.T) {
	done := make(chan struct{}, 1)
	address, _ := serve(t, Options{Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(make([]byte, 32<<20)) // more than the kernel's buffers take
		done <- struct{}{}
	})})
	lurk(t, address, get("/metrics"))
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("the handler waits for its reader")
	}
}

func TestFewTextsOfTheStatusAreInMemoryAtOnce(t *testing.T) {
	large := webtest.Well()
	large.Runs = make([]status.Run, 1)
	large.Runs[0].Message = string(make([]byte, 3<<20)) // six bytes each in JSON
	var asked atomic.Int32
	address, _ := serve(t, Options{Status: func() *status.Status {
		asked.Add(1)
		return large
	}})
	var lurkers []net.Conn
	for range 3 * maxTexts {
		lurkers = append(lurkers, lurk(t, address, get("/status.json")))
	}
	within(t, func() bool { return asked.Load() == maxTexts })
	time.Sleep(200 * time.Millisecond)
	if n := asked.Load(); n != maxTexts {
		t.Fatalf("%d texts at once, want %d", n, maxTexts)
	}
	for _, c := range lurkers {
		c.Close()
	}
	within(t, func() bool { // what they held is free again
		r, err := (&http.Client{Timeout: 5 * time.Second}).Get(fmt.Sprintf("http://%s/status.json", address))
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == 200
	})
}

func within(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time")
		}
	}
}

func TestWhoeverAsksForReadinessCostsLittle(t *testing.T) {
	asked := 0
	h := New(Options{Status: func() *status.Status { asked++; return webtest.Well() }}).Handler()
	for range 100 {
		if r := ask(h, "GET", "/readyz"); r.StatusCode != 200 {
			t.Fatal(r.Status)
		}
	}
	if asked > 3 {
		t.Errorf("the status was copied %d times for 100 probes", asked)
	}
}

func TestPanicsLeaveEveryPlaceFree(t *testing.T) {
	h := New(Options{Status: func() *status.Status { panic("a bug") }}).Handler()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 2 * max(maxRenders, maxTexts) {
			for _, path := range []string{"/", "/status.json", "/readyz"} {
				if r := ask(h, "GET", path); r.StatusCode != 500 {
					t.Errorf("%s: %s", path, r.Status)
				}
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("a request waits for a place that a panic kept")
	}
}
