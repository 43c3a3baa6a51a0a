package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
)

// newStore opens a store on the server's bucket that retries without delay.
func newStore(t testing.TB, server *s3test.Server, change func(*Config)) *Store {
	t.Helper()
	server.Setenv(t)
	cfg := Config{Bucket: server.Bucket, Prefix: "some/prefix", MaxBackoff: 10 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeIdle(s) })
	return s
}

func closeIdle(s *Store) {
	if c, ok := s.client.Options().HTTPClient.(*watchedClient); ok {
		if idle, ok := c.next.(interface{ CloseIdleConnections() }); ok {
			idle.CloseIdleConnections()
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	_, _ = r.Read(b)
	return b
}

func mustPut(t testing.TB, s *Store, name string, content []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(content), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func get(s *Store, name string, rng storage.Range) ([]byte, storage.Info, error) {
	r, info, err := s.Open(context.Background(), name, rng)
	if err != nil {
		return nil, info, err
	}
	content, err := io.ReadAll(r)
	return content, info, errors.Join(err, r.Close())
}

func mustHold(t testing.TB, s *Store, name string, want []byte) {
	t.Helper()
	got, info, err := get(s, name, storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) || info.Size != int64(len(want)) {
		t.Fatalf("%s holds %d bytes, info says %d, want %d", name, len(got), info.Size, len(want))
	}
}

func mustBeAbsent(t testing.TB, s *Store, name string) {
	t.Helper()
	if _, _, err := get(s, name, storage.Range{}); !errors.Is(err, storage.ErrNotExist) {
		t.Fatalf("open %s: %v, want ErrNotExist", name, err)
	}
}

func names(t testing.TB, s *Store, prefix string) []string {
	t.Helper()
	var out []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.Name)
	}
	return out
}

// onlyReader hides that a reader can seek: a stream of unknown length.
type onlyReader struct{ io.Reader }

func TestObjectsOfEverySizeComeBack(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true})
	s := newStore(t, server, nil)
	for _, size := range []int{0, 1, smallObject - 1, smallObject, smallObject + 1, minPart - 1, minPart, minPart + 1, 2 * minPart, 3*minPart + 7} {
		for _, ifAbsent := range []bool{false, true} {
			name := fmt.Sprintf("sizes/%d-%v", size, ifAbsent)
			content := randomBytes(size)
			if err := s.Put(t.Context(), name, onlyReader{bytes.NewReader(content)}, storage.PutOptions{IfAbsent: ifAbsent}); err != nil {
				t.Fatal(err)
			}
			mustHold(t, s, name, content)
			if !ifAbsent {
				continue
			}
			err := s.Put(t.Context(), name, onlyReader{bytes.NewReader(randomBytes(size + 1))}, storage.PutOptions{IfAbsent: true})
			if !errors.Is(err, storage.ErrExist) {
				t.Errorf("second conditional put of %d bytes: %v, want ErrExist", size, err)
			}
			mustHold(t, s, name, content)
		}
	}
	if open := server.OpenUploads(server.Bucket); len(open) != 0 {
		t.Errorf("open multipart uploads: %v", open)
	}
}

func TestPartsKeepTheLargestObjectUnderTheLimit(t *testing.T) {
	var total, size int64
	for number := 1; number <= maxParts; number++ {
		if partSize(number) < size {
			t.Fatalf("part %d shrinks to %d", number, partSize(number))
		}
		size = partSize(number)
		total += size
	}
	if partSize(1) != 5<<20 || size > 5<<30 || total < 4_800_000<<20 {
		t.Errorf("first part %d, last %d, in all %d", partSize(1), size, total)
	}
}

func TestRanges(t *testing.T) {
	s := newStore(t, s3test.Start(t, s3test.Options{}), nil)
	content := []byte("0123456789")
	mustPut(t, s, "r", content)
	for _, c := range []struct {
		rng  storage.Range
		want string
	}{
		{storage.Range{}, "0123456789"},
		{storage.Range{Offset: 3}, "3456789"},
		{storage.Range{Offset: 3, Length: 4}, "3456"},
		{storage.Range{Length: 1}, "0"},
		{storage.Range{Offset: 8, Length: 100}, "89"},
		{storage.Range{Offset: 10}, ""},
	} {
		got, info, err := get(s, "r", c.rng)
		if err != nil || string(got) != c.want || info.Size != 10 {
			t.Errorf("range %+v: %q of %d, %v; want %q", c.rng, got, info.Size, err, c.want)
		}
	}
	if _, _, err := get(s, "r", storage.Range{Offset: -1}); err == nil {
		t.Error("a negative range is taken")
	}
}

func TestOneOfManyConditionalCreatesWins(t *testing.T) {
	for _, opts := range []s3test.Options{{}, {Versioning: true}} {
		s := newStore(t, s3test.Start(t, opts), nil)
		for _, size := range []int{100, minPart + 1} {
			name := fmt.Sprintf("race/%d", size)
			var group errgroup.Group
			won := make(chan int, 8)
			for i := range 8 {
				group.Go(func() error {
					err := s.Put(t.Context(), name, bytes.NewReader(randomBytes(size+i)), storage.PutOptions{IfAbsent: true})
					if err == nil {
						won <- i
					} else if !errors.Is(err, storage.ErrExist) {
						return err
					}
					return nil
				})
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			if len(won) != 1 {
				t.Fatalf("%+v, %d bytes: %d writers won", opts, size, len(won))
			}
			mustHold(t, s, name, randomBytes(size+<-won))
		}
	}
}

func TestListGoesOverPagesInNameOrder(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	s := newStore(t, server, nil)
	var group errgroup.Group
	group.SetLimit(8)
	const count = 1100
	for i := range count {
		group.Go(func() error {
			return s.Put(t.Context(), fmt.Sprintf("many/%05d", i), strings.NewReader("x"), storage.PutOptions{})
		})
	}
	for _, name := range []string{"order/a-b", "order/a/b", "order/a", "order/a.b", "order/ab", "order/A", "order/ä"} {
		if name != "order/a" { // a file and a folder of one name: not on this server's file system
			mustPut(t, s, name, nil)
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	got := names(t, s, "many/")
	if len(got) != count || got[0] != "many/00000" || got[count-1] != "many/01099" {
		t.Fatalf("%d names, from %s to %s", len(got), got[0], got[len(got)-1])
	}
	if got := names(t, s, "many/0000"); len(got) != 10 {
		t.Errorf("the prefix many/0000 lists %d names, want 10", len(got))
	}
	if got, want := strings.Join(names(t, s, "order/"), " "), "order/A order/a-b order/a.b order/a/b order/ab order/ä"; got != want {
		t.Errorf("order %q, want %q", got, want)
	}
	if got := names(t, s, "none"); len(got) != 0 {
		t.Errorf("an empty prefix lists %v", got)
	}
	// Lazily: who stops after the first name asks for one page.
	proxy := s3test.NewProxy(t, server.Endpoint)
	lazy := newStore(t, server, func(c *Config) { c.Endpoint = proxy.Endpoint })
	for _, err := range lazy.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if n := len(proxy.Requests()); n != 1 {
		t.Errorf("%d requests for one name", n)
	}
}

func TestForeignKeysAreLeftOut(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	s := newStore(t, server, nil)
	mustPut(t, s, "a", nil)
	for _, key := range []string{"some/prefix/folder/", "some/prefixed", "elsewhere"} {
		if _, err := server.Client().PutObject(t.Context(), &awss3.PutObjectInput{Bucket: &server.Bucket, Key: &key}); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, s, ""); len(got) != 1 || got[0] != "a" {
		t.Errorf("listed %v, want only a", got)
	}
}

func TestVersionsOutliveOverwritesAndDeletes(t *testing.T) {
	server := s3test.Start(t, s3test.Options{Versioning: true})
	s := newStore(t, server, nil)
	mustPut(t, s, "v", []byte("one"))
	mustPut(t, s, "v", []byte("two"))
	mustPut(t, s, "v2", []byte("a neighbour"))
	if err := s.Delete(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	mustBeAbsent(t, s, "v")
	if got := names(t, s, ""); len(got) != 1 || got[0] != "v2" {
		t.Errorf("listed %v after the delete", got)
	}
	var contents []string
	for v, err := range s.Versions(t.Context(), "v") {
		if err != nil {
			t.Fatal(err)
		}
		r, info, err := s.OpenVersion(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		if info.Size != int64(len(content)) || v.Size != info.Size || v.Name != "v" {
			t.Errorf("version %+v, info %+v, %d bytes", v, info, len(content))
		}
		contents = append(contents, string(content))
	}
	if got := strings.Join(contents, " "); got != "two one" {
		t.Errorf("versions %q, want the newest first", got)
	}
	// Over a delete marker a conditional create succeeds or is ErrExist, and
	// nothing in between.
	err := s.Put(t.Context(), "v", strings.NewReader("three"), storage.PutOptions{IfAbsent: true})
	if err == nil {
		mustHold(t, s, "v", []byte("three"))
	} else if !errors.Is(err, storage.ErrExist) {
		t.Errorf("conditional put over a delete marker: %v", err)
	} else {
		mustBeAbsent(t, s, "v")
	}
	for v := range s.Versions(t.Context(), "missing") {
		t.Errorf("version %+v of a missing object", v)
	}
}

func TestABucketWithoutVersionsHasNone(t *testing.T) {
	for _, opts := range []s3test.Options{{}, {Versioning: true}} {
		server := s3test.Start(t, opts)
		server.CreateBucket("plain-bucket", false)
		s := newStore(t, server, func(c *Config) { c.Bucket = "plain-bucket" })
		mustPut(t, s, "a", []byte("1"))
		mustPut(t, s, "a", []byte("2"))
		for v, err := range s.Versions(t.Context(), "a") {
			t.Errorf("%+v: version %+v, error %v", opts, v, err)
		}
	}
}

func TestDeleteOfAMissingObjectIsNoError(t *testing.T) {
	s := newStore(t, s3test.Start(t, s3test.Options{}), nil)
	if err := s.Delete(t.Context(), "nothing/here"); err != nil {
		t.Error(err)
	}
	mustPut(t, s, "a", nil)
	if err := errors.Join(s.Delete(t.Context(), "a"), s.Delete(t.Context(), "a")); err != nil {
		t.Error(err)
	}
	mustBeAbsent(t, s, "a")
}

func TestComplianceLockHoldsTheVersions(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true, ObjectLock: true})
	s := newStore(t, server, func(c *Config) { c.ObjectLock = ObjectLock{Mode: "compliance", Days: 2} })
	now := time.Now()
	until := s.RetainUntil(now)
	if d := until.Sub(now); d < 47*time.Hour || d > 49*time.Hour {
		t.Fatalf("retained for %v, want two days", d)
	}
	for _, size := range []int{10, minPart + 10} { // one request, and a multipart upload
		name := fmt.Sprintf("locked/%d", size)
		content := randomBytes(size)
		if err := s.Put(t.Context(), name, bytes.NewReader(content), storage.PutOptions{IfAbsent: true, RetainUntil: until}); err != nil {
			t.Fatal(err)
		}
		head, err := server.Client().HeadObject(t.Context(), &awss3.HeadObjectInput{Bucket: &server.Bucket, Key: s.key(name)})
		if err != nil {
			t.Fatal(err)
		}
		if head.ObjectLockMode != types.ObjectLockModeCompliance || head.ObjectLockRetainUntilDate.Sub(until).Abs() > time.Second {
			t.Errorf("%s is locked %q until %v, want until %v", name, head.ObjectLockMode, head.ObjectLockRetainUntilDate, until)
		}
		// Delete hides the object. Not even the server's root removes the bytes.
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("delete leaves no marker: %v", err)
		}
		mustBeAbsent(t, s, name)
		for v, err := range s.Versions(t.Context(), name) {
			if err != nil {
				t.Fatal(err)
			}
			_, err = server.Client().DeleteObject(t.Context(), &awss3.DeleteObjectInput{
				Bucket: &server.Bucket, Key: s.key(name), VersionId: &v.ID, BypassGovernanceRetention: aws.Bool(true),
			})
			if status, _ := statusOf(err); status != http.StatusForbidden {
				t.Errorf("the locked version was deleted: %v", err)
			}
			r, _, err := s.OpenVersion(t.Context(), v)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			_ = r.Close()
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("the locked version holds %d bytes, %v", len(got), err)
			}
		}
	}
	// What is put without RetainUntil is not locked.
	mustPut(t, s, "free", []byte("x"))
	head, err := server.Client().HeadObject(t.Context(), &awss3.HeadObjectInput{Bucket: &server.Bucket, Key: s.key("free")})
	if err != nil || head.ObjectLockMode != "" {
		t.Errorf("an object put without a wish is locked %q, %v", head.ObjectLockMode, err)
	}
}

func TestGovernanceLockAndNoLock(t *testing.T) {
	server := s3test.Start(t, s3test.Options{ObjectLock: true})
	until := time.Now().Add(time.Hour)
	for _, c := range []struct {
		mode string
		want types.ObjectLockMode
	}{{"governance", types.ObjectLockModeGovernance}, {"", ""}} {
		s := newStore(t, server, func(cfg *Config) { cfg.ObjectLock.Mode = c.mode })
		name := "lock-" + c.mode
		if err := s.Put(t.Context(), name, strings.NewReader("x"), storage.PutOptions{RetainUntil: until}); err != nil {
			t.Fatal(err)
		}
		head, err := server.Client().HeadObject(t.Context(), &awss3.HeadObjectInput{Bucket: &server.Bucket, Key: s.key(name)})
		if err != nil || head.ObjectLockMode != c.want {
			t.Errorf("mode %q: locked %q, %v", c.mode, head.ObjectLockMode, err)
		}
	}
}

func TestAServerThatRefusesToHideALockedObject(t *testing.T) {
	server := s3test.Start(t, s3test.Options{ObjectLock: true})
	proxy := s3test.NewProxy(t, server.Endpoint)
	s := newStore(t, server, func(c *Config) {
		c.Endpoint, c.ObjectLock = proxy.Endpoint, ObjectLock{Mode: "compliance", Days: 1}
	})
	if err := s.Put(t.Context(), "locked", strings.NewReader("x"), storage.PutOptions{RetainUntil: s.RetainUntil(time.Now())}); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "free", nil)
	proxy.Inject(s3test.Fault{Status: 403, Code: "AccessDenied", Match: func(r *http.Request) bool { return r.Method == http.MethodDelete }})
	if err := s.Delete(t.Context(), "locked"); !errors.Is(err, storage.ErrProtected) {
		t.Errorf("delete of a locked object: %v, want ErrProtected", err)
	}
	if err := s.Delete(t.Context(), "free"); !errors.Is(err, storage.ErrPermission) || errors.Is(err, storage.ErrProtected) {
		t.Errorf("refused delete of an object that is not locked: %v, want ErrPermission", err)
	}
}
