package pruning

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/s3"
)

// TestAnAgentThatMayNotDeletePromisesAndAnotherDeletes runs with the policies
// that are shipped for the agent and for the prune job.
func TestAnAgentThatMayNotDeletePromisesAndAnotherDeletes(t *testing.T) {
	server := s3test.Start(t, s3test.Options{Accounts: true})
	proxy := s3test.NewProxy(t, server.Endpoint)
	agent, pruner := server.AddAccount("agent"), server.AddAccount("pruner")
	server.GiveRoles("backups", map[s3test.Account]string{agent: "agent.json", pruner: "prune.json"})

	as := func(a s3test.Account) storage.Store {
		file := filepath.Join(t.TempDir(), "credentials")
		text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", a.AccessKey, a.SecretKey)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		server.Setenv(t)
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
		t.Setenv("AWS_ACCESS_KEY_ID", "")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		store, err := s3.New(t.Context(), s3.Config{Bucket: server.Bucket, Prefix: "backups", Endpoint: proxy.Endpoint})
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	w := newWorld(t, as(agent))
	shared := w.store.(*timed)
	for range 4 {
		w.backup(etcdMain)
	}
	if report := w.run(two); report.Chains[0].Removed != 2 || report.Chains[0].Committed != 5 || report.Swept.Waiting != 4 {
		t.Fatalf("%+v", report.Chains[0])
	}
	w.forward(8 * 24 * time.Hour)
	report, err := Run(t.Context(), w.open(), two)
	if !errors.Is(err, storage.ErrPermission) || report.Swept == nil || report.Swept.Objects+report.Swept.Manifests != 0 {
		t.Errorf("as the agent: %+v, %v", report.Swept, err)
	}
	deletions := 0
	for _, r := range proxy.Requests() {
		if r.Method == http.MethodDelete {
			deletions++
		}
	}
	if deletions == 0 || deletions > 4 {
		t.Errorf("%d requests to delete four objects", deletions)
	}
	w.listed()

	shared.Store = as(pruner)
	if report := w.run(two); report.Swept.Objects != 2 || report.Swept.Manifests != 2 {
		t.Errorf("as the pruner: %+v", report.Swept)
	}
	if len(w.listed()) != 2 {
		t.Errorf("%d are listed", len(w.listed()))
	}
}
