package s3test

import (
	"context"
	"crypto/rand"
	"os"
	"os/exec"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// Account is a user of a server. It may do what a bucket's policy allows it.
type Account struct{ AccessKey, SecretKey string }

// AddAccount makes a user without any right. The server must have been
// started with Options.Accounts.
func (s *Server) AddAccount(name string) Account {
	s.t.Helper()
	a := Account{AccessKey: name, SecretKey: rand.Text()}
	args := []string{
		"admin", "--access", s.AccessKey, "--secret", s.SecretKey, "--region", Region, "--endpoint-url", s.Endpoint, "--allow-insecure",
		"create-user", "--access", a.AccessKey, "--secret", a.SecretKey, "--role", "user",
	}
	cmd := exec.Command(binary(s.t), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("make account %s: %v\n%s", name, err, out)
	}
	return a
}

// OfferPolicy gives a bucket a policy that the server may refuse.
func (s *Server) OfferPolicy(bucket, policy string) error {
	_, err := s.Client().PutBucketPolicy(context.Background(), &awss3.PutBucketPolicyInput{Bucket: &bucket, Policy: &policy})
	return err
}

// SetPolicy gives a bucket its policy, as JSON.
func (s *Server) SetPolicy(bucket, policy string) {
	s.t.Helper()
	if err := s.OfferPolicy(bucket, policy); err != nil {
		s.t.Fatalf("set the policy of %s: %v\n%s", bucket, err, policy)
	}
}
