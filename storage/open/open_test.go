package open

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/s3"
)

func TestURLsThatAreNoStore(t *testing.T) {
	for rawURL, want := range map[string]string{
		"":                                        "no scheme",
		"/var/backups":                            "no scheme",
		"var/backups":                             "no scheme",
		"file:var/backups":                        "three slashes",
		"file://var/backups":                      "three slashes",
		"file://localhost/var/backups":            "three slashes",
		"file:":                                   "three slashes",
		"file:///var%00/x":                        "NUL",
		"s3:":                                     "no bucket",
		"s3:bucket":                               "no bucket",
		"s3:///prefix":                            "no bucket",
		"s3://bucket:9000/x":                      "has a port",
		"s3://AKIA:hunter2@bucket/x":              "holds credentials",
		"file://me:hunter2@host/x":                "holds credentials",
		"s3://bucket/x?secret=hunter2":            "query",
		"s3://bucket/x#hunter2":                   "fragment",
		"https://me:hunter2@host/x":               "holds credentials",
		"https://host/x":                          "unknown scheme",
		"s3://hunter2%zz@bucket/":                 "can't be parsed",
		"s3://bucket/" + "a/../../b":              "clean relative path",
		"gs://bucket/x":                           "unknown scheme",
		"s3://bucket/x\nhunter2":                  "can't be parsed",
		"S3://AKIA:hunter2@bucket/x?y#z":          "holds credentials",
		"s3://bucket/" + strings.Repeat("p", 200): "limit 123",
	} {
		store, err := Store(t.Context(), rawURL, s3.Config{Region: "us-east-1"})
		if err == nil || !strings.Contains(err.Error(), want) || store != nil {
			t.Errorf("%q: error %v, want one that says %q", rawURL, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the secret is repeated: %v", rawURL, err)
		}
	}
}

func TestBothKindsOfStoreKeepObjects(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	server.Setenv(t)
	for _, rawURL := range []string{
		"file://" + filepath.Join(t.TempDir(), "with a space"),
		"s3://" + server.Bucket + "/some/prefix/",
		"s3://" + server.Bucket,
	} {
		store, err := Store(t.Context(), rawURL, s3.Config{Bucket: "ignored", Prefix: "ignored"})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Put(t.Context(), "a/b", strings.NewReader("content"), storage.PutOptions{IfAbsent: true}); err != nil {
			t.Fatal(err)
		}
		r, _, err := store.Open(t.Context(), "a/b", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil || string(content) != "content" {
			t.Errorf("%s: %q, %v", rawURL, content, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"file:///var/backups", "s3://bucket/prefix", "s3://u:p@b/", "file://x", "s3:b", "://", "file:///%00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, rawURL string) {
		u, err := Parse(rawURL)
		if err != nil {
			return
		}
		if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			t.Errorf("%q is taken with credentials or settings", rawURL)
		}
		if u.Scheme == "file" && !filepath.IsAbs(u.Path) || u.Scheme == "s3" && u.Host == "" {
			t.Errorf("%q is taken as %+v", rawURL, u)
		}
	})
}

func ExampleStore() {
	ctx := context.Background()
	_, err := Store(ctx, "s3://key:secret@bucket/prefix", s3.Config{})
	fmt.Println(err)
	// Output: the store's URL holds credentials: they belong into the environment or a credentials file
}
