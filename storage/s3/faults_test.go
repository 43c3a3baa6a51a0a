package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
)

// busy is what a machine with other work may add to any wait.
const busy = 10 * time.Second

// behindProxy is a store whose requests go over a fault proxy.
func behindProxy(t testing.TB, opts s3test.Options, change func(*Config)) (*Store, *s3test.Server, *s3test.Proxy) {
	t.Helper()
	server := s3test.Start(t, opts)
	proxy := s3test.NewProxy(t, server.Endpoint)
	s := newStore(t, server, func(c *Config) {
		c.Endpoint = proxy.Endpoint
		if change != nil {
			change(c)
		}
	})
	return s, server, proxy
}

func isMethod(method string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == method }
}

func isPart(r *http.Request) bool { return r.URL.Query().Has("partNumber") }

func isCreateUpload(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploads")
}

func isComplete(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
}

func isAbort(r *http.Request) bool { return r.Method == http.MethodDelete }

func mustHaveNoUploads(t *testing.T, server *s3test.Server) {
	t.Helper()
	if open := server.OpenUploads(server.Bucket); len(open) != 0 {
		t.Errorf("open multipart uploads are left: %v", open)
	}
}

// Faults that pass, at each kind of request: the operation succeeds, once.
func TestPassingFaultsAreRetried(t *testing.T) {
	s, server, proxy := behindProxy(t, s3test.Options{}, nil)
	big := randomBytes(minPart + 100)
	faults := map[string]s3test.Fault{
		"a burst of 503":           {Status: 503, Code: "SlowDown", Times: 3},
		"a 500, without any sense": {Status: 500, Times: 2},
		"a 429":                    {Status: 429, Code: "TooManyRequests", Times: 1},
		"a reset at once":          {ResetUpload: true, Times: 2},
		"a reset mid-upload":       {ResetUpload: true, UploadBytes: 1 << 20, Times: 2},
		"a conflict of versions":   {Status: 409, Code: "ConditionalRequestConflict", Times: 1},
		"a lost answer":            {LoseAnswer: true, Times: 1},
	}
	matches := map[string]func(*http.Request) bool{
		"the put of a small object": func(r *http.Request) bool { return r.Method == http.MethodPut && !isPart(r) },
		"a part":                    isPart,
		"the create of an upload":   isCreateUpload,
		"the completion":            isComplete,
		"the listing":               func(r *http.Request) bool { return r.Method == http.MethodGet && r.URL.Query().Has("list-type") },
		"the read":                  func(r *http.Request) bool { return r.Method == http.MethodGet && r.URL.Query().Has("x-id") },
		"the delete":                isMethod(http.MethodDelete),
	}
	i := 0
	for faultName, fault := range faults {
		for requestName, match := range matches {
			t.Run(faultName+" at "+requestName, func(t *testing.T) {
				i++
				opts := storage.PutOptions{IfAbsent: i%3 != 0}
				small, large := fmt.Sprintf("n%d/small", i), fmt.Sprintf("n%d/large", i)
				proxy.Clear()
				fault.Match = match
				proxy.Inject(fault)
				if err := s.Put(t.Context(), small, strings.NewReader("small"), opts); err != nil {
					t.Fatal(err)
				}
				if err := s.Put(t.Context(), large, onlyReader{bytes.NewReader(big)}, opts); err != nil {
					t.Fatal(err)
				}
				if got := names(t, s, fmt.Sprintf("n%d/", i)); len(got) != 2 {
					t.Errorf("listed %v", got)
				}
				mustHold(t, s, small, []byte("small"))
				mustHold(t, s, large, big)
				if err := errors.Join(s.Delete(t.Context(), small), s.Delete(t.Context(), large)); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	mustHaveNoUploads(t, server)
}

// Faults that last: the operation reports them, and leaves nothing.
func TestLastingFaultsAreReported(t *testing.T) {
	s, server, proxy := behindProxy(t, s3test.Options{}, func(c *Config) { c.MaxAttempts = 3 })
	big := randomBytes(2*minPart + 100)
	for _, c := range []struct {
		name  string
		fault s3test.Fault
		want  error
	}{
		{"parts are answered 503", s3test.Fault{Status: 503, Code: "SlowDown", Match: isPart}, nil},
		{"parts are reset", s3test.Fault{ResetUpload: true, UploadBytes: 100_000, Match: isPart}, nil},
		{"parts are refused", s3test.Fault{Status: 403, Code: "AccessDenied", Match: isPart}, storage.ErrPermission},
		{"the store is full", s3test.Fault{Status: 507, Code: "InsufficientStorage", Match: isPart}, storage.ErrFull},
		{"the store is full, by another name", s3test.Fault{Status: 403, Code: "QuotaExceeded", Match: isPart}, storage.ErrFull},
		{"the last of several parts fails", s3test.Fault{Status: 500, Code: "InternalError", Skip: 2, Match: isPart}, nil},
		{"creating fails", s3test.Fault{Status: 500, Code: "InternalError", Match: isCreateUpload}, nil},
		{"creating is never answered", s3test.Fault{LoseAnswer: true, Match: isCreateUpload}, nil},
		{"completing fails", s3test.Fault{Status: 500, Code: "InternalError", Match: isComplete}, nil},
		{"completing meets a conflict", s3test.Fault{Status: 409, Code: "ConditionalRequestConflict", Match: isComplete}, nil},
		{"completing is refused as existing", s3test.Fault{Status: 412, Code: "PreconditionFailed", Match: isComplete}, storage.ErrExist},
		{"the server does not know conditions", s3test.Fault{Status: 501, Code: "NotImplemented", Match: isComplete}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			proxy.Clear()
			proxy.Inject(c.fault)
			err := s.Put(t.Context(), "lasting", onlyReader{bytes.NewReader(big)}, storage.PutOptions{IfAbsent: true})
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			mustBeAbsent(t, s, "lasting")
			mustHaveNoUploads(t, server)
		})
	}
}

func TestACompletionOfWhichAllAnswersAreLostCountsAsDone(t *testing.T) {
	s, server, proxy := behindProxy(t, s3test.Options{}, func(c *Config) { c.MaxAttempts = 2 })
	big := randomBytes(minPart + 100)
	proxy.Inject(s3test.Fault{LoseAnswer: true, Match: isComplete})
	for _, ifAbsent := range []bool{false, true} {
		name := fmt.Sprintf("lost-%v", ifAbsent)
		if err := s.Put(t.Context(), name, bytes.NewReader(big), storage.PutOptions{IfAbsent: ifAbsent}); err != nil {
			t.Error(err)
		}
		mustHold(t, s, name, big)
	}
	mustHaveNoUploads(t, server)
}

func TestALostAnswerIsNotTakenForAnotherWritersObject(t *testing.T) {
	s, _, proxy := behindProxy(t, s3test.Options{}, nil)
	put := func(name string) error {
		return s.Put(t.Context(), name, strings.NewReader("the same content"), storage.PutOptions{IfAbsent: true})
	}
	proxy.Inject(s3test.Fault{LoseAnswer: true, Times: 1, Match: isMethod(http.MethodPut)})
	if err := put("mine"); err != nil {
		t.Errorf("our own create is reported as failed: %v", err)
	}
	// Even of equal content, another Put is another writer.
	if err := put("mine"); !errors.Is(err, storage.ErrExist) {
		t.Errorf("second create: %v, want ErrExist", err)
	}
	// When it can't be told, it is not ErrExist: that means "not written".
	proxy.Clear()
	proxy.Inject(s3test.Fault{LoseAnswer: true, Times: 1, Match: isMethod(http.MethodPut)})
	proxy.Inject(s3test.Fault{Status: 403, Match: isMethod(http.MethodHead)})
	if err := put("unclear"); err == nil || errors.Is(err, storage.ErrExist) {
		t.Errorf("a create of unknown outcome: %v", err)
	}
}

func TestAnErrorOfTheSourceLeavesNothing(t *testing.T) {
	s, server, _ := behindProxy(t, s3test.Options{}, nil)
	broken := errors.New("the source broke")
	for _, size := range []int{0, 10, smallObject, minPart, minPart + 1, 3 * minPart} {
		r := io.MultiReader(bytes.NewReader(randomBytes(size)), errReader{broken})
		if err := s.Put(t.Context(), "broken", r, storage.PutOptions{}); !errors.Is(err, broken) {
			t.Errorf("%d bytes: %v", size, err)
		}
		mustBeAbsent(t, s, "broken")
		mustHaveNoUploads(t, server)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type funcReader func([]byte) (int, error)

func (f funcReader) Read(p []byte) (int, error) { return f(p) }

func TestACancelledPutLeavesNothing(t *testing.T) {
	s, server, proxy := behindProxy(t, s3test.Options{}, nil)
	cause := errors.New("the caller has its reasons")
	for _, at := range []int{0, smallObject, minPart, 2*minPart + 1, 4 * minPart} {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := io.MultiReader(bytes.NewReader(randomBytes(at)), funcReader(func(p []byte) (int, error) {
			cancel(cause)
			return len(p), nil
		}))
		err := s.Put(ctx, "cancelled", r, storage.PutOptions{})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled after %d bytes: %v", at, err)
		}
		mustBeAbsent(t, s, "cancelled")
		mustHaveNoUploads(t, server)
	}
	// While the server does not answer: at each kind of request.
	for name, match := range map[string]func(*http.Request) bool{"create": isCreateUpload, "part": isPart, "complete": isComplete} {
		proxy.Clear()
		ctx, cancel := context.WithCancelCause(t.Context())
		proxy.Inject(s3test.Fault{Stall: true, Match: func(r *http.Request) bool {
			if match(r) {
				time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
				return true
			}
			return false
		}})
		start := time.Now()
		err := s.Put(ctx, "cancelled", bytes.NewReader(randomBytes(minPart*2)), storage.PutOptions{})
		if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
			t.Errorf("cancelled at %s: %v", name, err)
		}
		if d := time.Since(start); d > busy {
			t.Errorf("cancelled at %s: took %v", name, d)
		}
		mustBeAbsent(t, s, "cancelled")
		mustHaveNoUploads(t, server)
	}
}

func TestAnAbortThatFailsIsSaid(t *testing.T) {
	s, server, proxy := behindProxy(t, s3test.Options{}, func(c *Config) { c.MaxAttempts = 2 })
	proxy.Inject(s3test.Fault{Status: 500, Code: "InternalError", Match: isAbort})
	err := s.Put(t.Context(), "x", io.MultiReader(bytes.NewReader(randomBytes(minPart)), errReader{io.ErrClosedPipe}), storage.PutOptions{})
	open := server.OpenUploads(server.Bucket)
	if len(open) != 1 || !errors.Is(err, io.ErrClosedPipe) || !strings.Contains(err.Error(), strings.Fields(open[0])[1]) {
		t.Errorf("error %v does not name the upload that is left: %v", err, open)
	}
}

func TestASlowSourceIsNoStall(t *testing.T) {
	s, _, _ := behindProxy(t, s3test.Options{}, func(c *Config) { c.StallTimeout = 2 * time.Second })
	slow := funcReader(func([]byte) (int, error) { // holds back its end
		time.Sleep(2500 * time.Millisecond)
		return 0, io.EOF
	})
	sizes := []int{100, minPart, minPart + 100}
	name := func(size int) string { return fmt.Sprintf("slow-%d", size) }
	var group errgroup.Group
	for _, size := range sizes {
		group.Go(func() error {
			return s.Put(t.Context(), name(size), io.MultiReader(bytes.NewReader(randomBytes(size)), slow), storage.PutOptions{})
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, size := range sizes {
		mustHold(t, s, name(size), randomBytes(size))
	}
	// Nor is a slow taker.
	content := randomBytes(3 << 20)
	mustPut(t, s, "taken", content)
	r, _, err := s.Open(t.Context(), "taken", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond)
	if rest, err := io.ReadAll(r); err != nil || len(rest) != len(content)-10 {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
}

func TestAStalledServerIsReportedWithinTheLimit(t *testing.T) {
	const limit = 3 * time.Second // a live server is given half of it
	server := s3test.Start(t, s3test.Options{})
	s := newStore(t, server, func(c *Config) { c.StallTimeout = limit })
	content := randomBytes(4 * minPart)
	mustPut(t, s, "there", content)
	r, _, err := s.Open(t.Context(), "there", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	server.Stall()
	var checks sync.WaitGroup
	check := func(what string, f func() error) {
		checks.Go(func() {
			start := time.Now()
			err := f()
			if !errors.Is(err, storage.ErrStalled) {
				t.Errorf("%s: %v, want a stall", what, err)
			}
			if d := time.Since(start); d < limit/2 || d > limit+busy {
				t.Errorf("%s: reported after %v, limit %v", what, d, limit)
			}
		})
	}
	check("put of a small object", func() error { return s.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{}) })
	check("open", func() error { _, _, err := get(s, "there", storage.Range{}); return err })
	check("a read under way", func() error { _, err := io.ReadAll(r); return err })
	check("list", func() error {
		for _, err := range s.List(t.Context(), "") {
			return err
		}
		return nil
	})
	checks.Wait()
	server.Resume()

	// In the middle of a large upload: the parts that follow can't arrive.
	stalling := io.MultiReader(bytes.NewReader(content[:2*minPart]), funcReader(func([]byte) (int, error) {
		server.Stall()
		return 0, io.EOF
	}), bytes.NewReader(content[2*minPart:]))
	err = s.Put(t.Context(), "stalled", stalling, storage.PutOptions{})
	server.Resume()
	if !errors.Is(err, storage.ErrStalled) || !strings.Contains(err.Error(), "open multipart upload") {
		t.Errorf("put of a large object: %v, want a stall, and what is left where no abort could arrive", err)
	}
	mustBeAbsent(t, s, "stalled")
}

func TestAServerMayTakeItsTimeToAssembleAnObject(t *testing.T) {
	s, _, proxy := behindProxy(t, s3test.Options{}, func(c *Config) { c.StallTimeout = 2 * time.Second })
	proxy.Inject(s3test.Fault{Delay: 4 * time.Second, Match: isComplete})
	content := randomBytes(minPart + 1)
	mustPut(t, s, "x", content)
	mustHold(t, s, "x", content)
}

func TestAStalledPartIsReported(t *testing.T) {
	const limit = 3 * time.Second
	s, server, proxy := behindProxy(t, s3test.Options{}, func(c *Config) { c.StallTimeout = limit })
	proxy.Inject(s3test.Fault{Stall: true, Skip: 1, Match: isPart})
	start := time.Now()
	err := s.Put(t.Context(), "x", bytes.NewReader(randomBytes(4*minPart)), storage.PutOptions{})
	if !errors.Is(err, storage.ErrStalled) || time.Since(start) > limit+busy {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	mustBeAbsent(t, s, "x")
	mustHaveNoUploads(t, server)

	proxy.Clear() // one stalled connection, then a good one
	proxy.Inject(s3test.Fault{Stall: true, Times: 1, Match: isPart})
	content := randomBytes(2 * minPart)
	mustPut(t, s, "y", content)
	mustHold(t, s, "y", content)
}

func TestABrokenDownloadIsTakenUpAgain(t *testing.T) {
	// Longer than a busy machine takes for a megabyte with the race detector.
	s, _, proxy := behindProxy(t, s3test.Options{}, func(c *Config) { c.StallTimeout = 5 * time.Second })
	content := randomBytes(3 << 20)
	mustPut(t, s, "d", content)
	for name, f := range map[string]s3test.Fault{
		"cut thrice":              {CutAnswer: true, AnswerBytes: 300_000, Times: 3},
		"cut before the first":    {CutAnswer: true, Times: 2},
		"stalled once":            {StallAnswer: true, AnswerBytes: 1_000_000, Times: 1},
		"a burst of 503 at first": {Status: 503, Code: "SlowDown", Times: 2},
	} {
		t.Run(name, func(t *testing.T) {
			proxy.Clear()
			f.Match = isMethod(http.MethodGet)
			proxy.Inject(f)
			mustHold(t, s, "d", content)
			got, info, err := get(s, "d", storage.Range{Offset: 100, Length: 2_000_000})
			if err != nil || !bytes.Equal(got, content[100:2_000_100]) || info.Size != int64(len(content)) {
				t.Errorf("range: %d bytes of %d, %v", len(got), info.Size, err)
			}
		})
	}
	t.Run("cut for ever", func(t *testing.T) {
		proxy.Clear()
		proxy.Inject(s3test.Fault{CutAnswer: true, Match: isMethod(http.MethodGet)})
		if _, _, err := get(s, "d", storage.Range{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error %v, want ErrUnexpectedEOF", err)
		}
	})
	t.Run("replaced meanwhile", func(t *testing.T) {
		proxy.Clear()
		proxy.Inject(s3test.Fault{CutAnswer: true, AnswerBytes: 300_000, Times: 1, Match: isMethod(http.MethodGet)})
		r, _, err := s.Open(t.Context(), "d", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		mustPut(t, s, "d", randomBytes(3<<20+1))
		if _, err := io.ReadAll(r); err == nil || !strings.Contains(err.Error(), "replaced") {
			t.Errorf("two objects were mixed: %v", err)
		}
	})
}

func TestAReadEndsWithItsContext(t *testing.T) {
	s, _, proxy := behindProxy(t, s3test.Options{}, nil)
	mustPut(t, s, "d", randomBytes(1<<20))
	proxy.Inject(s3test.Fault{StallAnswer: true, AnswerBytes: 1000, Match: isMethod(http.MethodGet)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, _, err := s.Open(ctx, "d", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestTheServerDiesMidUpload(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	s := newStore(t, server, func(c *Config) { c.MaxAttempts = 2 })
	r := io.MultiReader(bytes.NewReader(randomBytes(minPart+1)), funcReader(func([]byte) (int, error) {
		server.Kill()
		return 0, io.EOF
	}))
	if err := s.Put(t.Context(), "x", r, storage.PutOptions{}); err == nil {
		t.Error("a put to a dead server succeeded")
	}
	server.Restart()
	mustBeAbsent(t, s, "x")
	mustPut(t, s, "x", []byte("alive"))
	mustHold(t, s, "x", []byte("alive"))
}
