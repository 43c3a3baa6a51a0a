package deploytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/s3"
)

// statement is one of a bucket's policy, with every field that it may have.
type statement struct {
	Sid, Effect, Principal string
	Action                 string
	Resource               any
	Condition              map[string]map[string]string
}

func amazonPolicy(t *testing.T, text string) []statement {
	t.Helper()
	var policy struct {
		Version   string
		Statement []statement
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&policy); err != nil {
		t.Fatal(err)
	}
	if policy.Version != "2012-10-17" {
		t.Errorf("version %s", policy.Version)
	}
	return policy.Statement
}

// The keys, operators and values of Amazon's user guide, in "Enforce conditional
// writes on Amazon S3 buckets" and for TLS: nothing at hand can evaluate the first
// statement, and a key or an operator that is misspelt never denies anything.
func TestTheAmazonPolicyIsWhatAmazonDocuments(t *testing.T) {
	text, err := os.ReadFile(deploy("policies", "bucket-policy-aws.json"))
	if err != nil {
		t.Fatal(err)
	}
	bucket, objects := "arn:aws:s3:::my-bucket", "arn:aws:s3:::my-bucket/lifeboat/*"
	want := []statement{
		{"NothingIsOverwritten", "Deny", "*", "s3:PutObject", objects, map[string]map[string]string{
			"Null": {"s3:if-none-match": "true"},
			// False where there is no such header: of creating an upload in parts, and of a part.
			"Bool": {"s3:ObjectCreationOperation": "true"},
		}},
		{"OnlyOverTLS", "Deny", "*", "s3:*", []any{bucket, objects}, map[string]map[string]string{"Bool": {"aws:SecureTransport": "false"}}},
	}
	if diff := cmp.Diff(want, amazonPolicy(t, string(text))); diff != "" {
		t.Error(diff)
	}
}

// denies evaluates a policy's conditions as they are documented, for a request
// that reaches Amazon over TLS. A key that the request lacks matches no operator
// but Null.
func denies(t *testing.T, policy []statement, r *http.Request) bool {
	query := r.URL.Query()
	writes := strings.Count(strings.Trim(r.URL.Path, "/"), "/") > 0 && (r.Method == http.MethodPut || r.Method == http.MethodPost) && !query.Has("retention") && !query.Has("legal-hold")
	if !writes {
		return false
	}
	keys := map[string]string{
		"aws:SecureTransport":        "true",
		"s3:ObjectCreationOperation": fmt.Sprint(!query.Has("partNumber") && !query.Has("uploads")),
	}
	if header := r.Header.Get("If-None-Match"); header != "" {
		keys["s3:if-none-match"] = header
	}
	for _, s := range policy {
		matches := s.Effect == "Deny" && (s.Action == "s3:PutObject" || s.Action == "s3:*")
		for operator, conditions := range s.Condition {
			for key, want := range conditions {
				got, there := keys[key]
				switch operator {
				case "Null":
					matches = matches && fmt.Sprint(!there) == want
				case "Bool":
					matches = matches && there && got == want
				default:
					t.Errorf("no such operator: %s", operator)
				}
			}
		}
		if matches {
			return true
		}
	}
	return false
}

// The program does all its work in a bucket that refuses what the policy denies;
// here a proxy refuses it.
func TestLifeboatWorksUnderTheAmazonPolicy(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	proxy := s3test.NewProxy(t, server.Endpoint)
	policy := amazonPolicy(t, server.Shipped("lifeboat", "bucket-policy-aws.json"))
	proxy.Inject(s3test.Fault{Status: http.StatusForbidden, Code: "AccessDenied", Match: func(r *http.Request) bool { return denies(t, policy, r) }})
	server.Setenv(t)
	t.Setenv("AWS_ENDPOINT_URL", proxy.Endpoint)
	store, err := s3.New(t.Context(), s3.Config{Bucket: server.Bucket, Prefix: "lifeboat", Endpoint: proxy.Endpoint})
	if err != nil {
		t.Fatal(err)
	}
	ctx, large := t.Context(), bytes.Repeat([]byte("0123456789abcdef"), 40<<20/16) // several parts
	for name, data := range map[string][]byte{"one": []byte("x"), "parts": large} {
		if err := store.Put(ctx, name, bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); err != nil {
			t.Errorf("create %s: %v", name, err)
		}
		refused(t, "overwriting "+name, store.Put(ctx, name, bytes.NewReader(data), storage.PutOptions{}))
	}

	dir := t.TempDir()
	member, err := etcdtest.StartEmbedded(filepath.Join(dir, "etcd"), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = member.Close() })
	root := filepath.Join(dir, "root", "etc", "kubernetes")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "admin.conf"), []byte("apiVersion: v1\nkind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, lifeboat := build(t)
	keys := filepath.Join(dir, "keys")
	lifeboat("", "init", "--cluster", "prod", "--store", "s3://"+server.Bucket+"/lifeboat", "--out", keys, "--host-root", filepath.Join(dir, "root"), "--node", "cp1", "--etcd", member.Endpoint)
	config := filepath.Join(keys, "config.yaml")
	edit(t, config, "stateDir", filepath.Join(dir, "state"))
	before := len(proxy.Requests())
	lifeboat("", "backup", "--config", config)
	for range 4 { // more than retention.minimum, all in one hour
		lifeboat("", "backup", "--config", config, "--only", "files")
	}
	lifeboat("", "doctor", "--config", config)
	lifeboat("", "prune", "--yes", "--config", config)
	lifeboat("", "verify", "--config", config)
	writes := 0
	for _, r := range proxy.Requests()[before:] {
		if r.Method == http.MethodPut {
			writes++
		}
	}
	if writes < 12 {
		t.Errorf("only %d writes went through the proxy", writes)
	}
}

// versitygw knows the second condition. The first it refuses to take; once it
// does not, it can be tried here, too.
func TestTheAmazonPolicyOnAnotherServer(t *testing.T) {
	for _, tls := range []bool{true, false} {
		t.Run(fmt.Sprint("TLS ", tls), func(t *testing.T) {
			server := s3test.Start(t, s3test.Options{Accounts: true, TLS: tls})
			agent := server.AddAccount("lifeboat-agent")
			server.SetPolicy(server.Bucket, amazonsBeside(t, server, agent, func(sid string) bool { return sid == "OnlyOverTLS" }))
			err := become(t, server, agent, s3.ObjectLock{}).store.Put(t.Context(), "small", strings.NewReader("x"), storage.PutOptions{IfAbsent: true})
			if !tls {
				refused(t, "writing without TLS", err)
			} else if err != nil {
				t.Errorf("over TLS: %v", err)
			}
			err = server.OfferPolicy(server.Bucket, amazonsBeside(t, server, agent, func(string) bool { return true }))
			if err == nil || !strings.Contains(err.Error(), "condition key") {
				t.Errorf("versitygw takes s3:if-none-match now (%v): try it here and say so in deploy/policies/README.md", err)
			}
		})
	}
}

// amazonsBeside is the agent's rights and some statements of the policy for
// Amazon.
func amazonsBeside(t *testing.T, server *s3test.Server, agent s3test.Account, which func(sid string) bool) string {
	t.Helper()
	all := []any{
		map[string]any{"Effect": "Allow", "Principal": map[string]any{"AWS": []string{agent.AccessKey}}, "Action": "s3:*", "Resource": []string{"arn:aws:s3:::" + server.Bucket, "arn:aws:s3:::" + server.Bucket + "/*"}},
	}
	for _, s := range amazonPolicy(t, server.Shipped("lifeboat", "bucket-policy-aws.json")) {
		if which(s.Sid) {
			all = append(all, s)
		}
	}
	text, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": all})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
