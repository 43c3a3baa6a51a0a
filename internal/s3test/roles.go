package s3test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// GiveRoles gives the bucket a policy of the identity policies that are shipped
// in deploy/policies, each for an account and below a prefix: versitygw has none
// but bucket policies.
func (s *Server) GiveRoles(prefix string, files map[Account]string) {
	s.t.Helper()
	var all []map[string]any
	for account, file := range files {
		var policy struct{ Statement []map[string]any }
		if err := json.Unmarshal([]byte(s.Shipped(prefix, file)), &policy); err != nil {
			s.t.Fatalf("%s: %v", file, err)
		}
		for _, statement := range policy.Statement {
			if statement["Principal"] != nil {
				s.t.Fatalf("%s: an identity policy names no principal", file)
			}
			statement["Sid"] = fmt.Sprint(account.AccessKey, statement["Sid"])
			statement["Principal"] = map[string]any{"AWS": []string{account.AccessKey}}
			all = append(all, statement)
		}
	}
	text, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": all})
	if err != nil {
		s.t.Fatal(err)
	}
	s.SetPolicy(s.Bucket, string(text))
}

// Shipped is a file of deploy/policies with this server's bucket and a prefix in
// it.
func (s *Server) Shipped(prefix, file string) string {
	s.t.Helper()
	_, self, _, ok := runtime.Caller(0)
	if !ok {
		s.t.Fatal("can't find the source folder")
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(self), "..", "..", "deploy", "policies", file))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.NewReplacer("my-bucket/lifeboat/", s.Bucket+"/"+prefix+"/", "my-bucket", s.Bucket).Replace(string(text))
}
