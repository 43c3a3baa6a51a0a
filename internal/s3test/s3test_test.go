package s3test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

func TestServerKeepsObjectsAcrossARestart(t *testing.T) {
	for _, opts := range []Options{{}, {TLS: true}, {Versioning: true}, {TLS: true, ObjectLock: true}} {
		s := Start(t, opts)
		_, err := s.Client().PutObject(context.Background(), &awss3.PutObjectInput{
			Bucket: &s.Bucket, Key: aws.String("a/b"), Body: bytes.NewReader([]byte("content")),
		})
		if err != nil {
			t.Fatalf("%+v: put: %v", opts, err)
		}
		s.Restart()
		out, err := s.Client().GetObject(context.Background(), &awss3.GetObjectInput{Bucket: &s.Bucket, Key: aws.String("a/b")})
		if err != nil {
			t.Fatalf("%+v: get: %v", opts, err)
		}
		body, err := io.ReadAll(out.Body)
		_ = out.Body.Close()
		if err != nil || string(body) != "content" {
			t.Errorf("%+v: got %q, %v", opts, body, err)
		}
		if open := s.OpenUploads(s.Bucket); len(open) != 0 {
			t.Errorf("%+v: open uploads %v", opts, open)
		}
	}
}

func TestProxyPassesFaultsOnlyToTheirRequests(t *testing.T) {
	s := Start(t, Options{})
	p := NewProxy(t, s.Endpoint)
	p.Inject(Fault{Status: 503, Code: "SlowDown", Skip: 1, Times: 1, Match: func(r *http.Request) bool { return r.Method == http.MethodGet }})
	var got []int
	for range 3 {
		resp, err := http.Get(p.Endpoint + "/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		got = append(got, resp.StatusCode)
	}
	if got[0] == 503 || got[1] != 503 || got[2] == 503 {
		t.Errorf("statuses %v, want only the second to be 503", got)
	}
	if n := len(p.Requests()); n != 3 {
		t.Errorf("%d requests recorded, want 3", n)
	}
	p.Inject(Fault{LoseAnswer: true, Times: 1})
	if _, err := http.Get(p.Endpoint + "/"); err == nil {
		t.Error("a lost answer was answered")
	}
}
