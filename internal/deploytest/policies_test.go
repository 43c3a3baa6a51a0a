package deploytest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/s3test"
	"lifeboat/storage"
	"lifeboat/storage/s3"
)

// deploy is the folder under test.
func deploy(parts ...string) string {
	return filepath.Join(append([]string{"..", "..", "deploy"}, parts...)...)
}

// role is one account's store and the environment in which lifeboat finds it.
type role struct {
	store *s3.Store
	env   []string
}

func (r *role) use(t *testing.T) {
	for _, entry := range r.env {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
}

// become opens the server's bucket as an account, through a shared
// credentials file, as the pods do.
func become(t *testing.T, server *s3test.Server, a s3test.Account, lock s3.ObjectLock) *role {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", a.AccessKey, a.SecretKey)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &role{env: append(server.Env(), "AWS_SHARED_CREDENTIALS_FILE="+file, "AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=")}
	r.use(t)
	var err error
	r.store, err = s3.New(t.Context(), s3.Config{Bucket: server.Bucket, Prefix: "lifeboat", Endpoint: server.Endpoint, ObjectLock: lock})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// refused wants an answer that says no, not a failure of another kind.
func refused(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s succeeded", what)
	} else if !errors.Is(err, storage.ErrPermission) && !errors.Is(err, storage.ErrProtected) {
		t.Errorf("%s: %v, want a refusal for lack of rights", what, err)
	}
}

func TestEachRoleCanDoItsWorkAndNoMore(t *testing.T) {
	server := s3test.Start(t, s3test.Options{Accounts: true, Versioning: true})
	agent, prune, restore, stranger := server.AddAccount("lifeboat-agent"), server.AddAccount("lifeboat-prune"), server.AddAccount("lifeboat-restore"), server.AddAccount("stranger")
	server.GiveRoles("lifeboat", map[s3test.Account]string{agent: "agent.json", prune: "prune.json", restore: "restore.json"})
	none := s3.ObjectLock{}
	ctx := t.Context()
	create := storage.PutOptions{IfAbsent: true}
	large := bytes.Repeat([]byte("0123456789abcdef"), 40<<20/16) // several parts

	as := become(t, server, agent, none)
	if err := as.store.Put(ctx, "small", strings.NewReader("x"), create); err != nil {
		t.Errorf("the agent can't write: %v", err)
	}
	if err := as.store.Put(ctx, "large", bytes.NewReader(large), create); err != nil {
		t.Errorf("the agent can't write in parts: %v", err)
	}
	if got := names(t, as.store); len(got) != 2 {
		t.Errorf("the agent lists %v", got)
	}
	if got := read(t, as.store, "small"); got != "x" {
		t.Errorf("the agent reads %q", got)
	}
	refused(t, "deleting as the agent", as.store.Delete(ctx, "small"))

	as = become(t, server, restore, none)
	if got := read(t, as.store, "large"); got != string(large) {
		t.Errorf("restore reads %d bytes", len(got))
	}
	refused(t, "writing as restore", as.store.Put(ctx, "forged", strings.NewReader("x"), create))
	refused(t, "deleting as restore", as.store.Delete(ctx, "small"))

	as = become(t, server, prune, none)
	if err := as.store.Put(ctx, "manifest", strings.NewReader("pruned"), create); err != nil {
		t.Errorf("prune can't commit its manifest: %v", err)
	}
	if err := as.store.Delete(ctx, "large"); err != nil {
		t.Errorf("prune can't delete: %v", err)
	}
	if got := names(t, as.store); len(got) != 2 {
		t.Errorf("after the prune there are %v", got)
	}

	as = become(t, server, stranger, none)
	refused(t, "writing as a stranger", as.store.Put(ctx, "stranger", strings.NewReader("x"), create))
}

func TestTheLockingRoleLocksWhatItAdds(t *testing.T) {
	server := s3test.Start(t, s3test.Options{Accounts: true, ObjectLock: true})
	agent := server.AddAccount("lifeboat-agent")
	server.GiveRoles("lifeboat", map[s3test.Account]string{agent: "agent-object-lock.json"})
	as := become(t, server, agent, s3.ObjectLock{Mode: "governance", Days: 1})
	until := time.Now().Add(24 * time.Hour)
	if err := as.store.Put(t.Context(), "locked", strings.NewReader("x"), storage.PutOptions{IfAbsent: true, RetainUntil: until}); err != nil {
		t.Errorf("the agent can't lock what it writes: %v", err)
	}
	refused(t, "deleting a locked object as the agent", as.store.Delete(t.Context(), "locked"))

	// The role without these rights can't, which is why there are two.
	server.GiveRoles("lifeboat", map[s3test.Account]string{agent: "agent.json"})
	as = become(t, server, agent, s3.ObjectLock{Mode: "governance", Days: 1})
	refused(t, "locking without the right", as.store.Put(t.Context(), "another", strings.NewReader("x"), storage.PutOptions{IfAbsent: true, RetainUntil: until}))
}

func TestLifeboatWorksInTheRolesOfTheBucketPolicy(t *testing.T) {
	server := s3test.Start(t, s3test.Options{Accounts: true})
	text, err := os.ReadFile(deploy("policies", "bucket-policy-versitygw.json"))
	if err != nil {
		t.Fatal(err)
	}
	agent, restore := server.AddAccount("lifeboat-agent"), server.AddAccount("lifeboat-restore")
	prune := server.AddAccount("lifeboat-prune")
	server.SetPolicy(server.Bucket, strings.ReplaceAll(string(text), "my-bucket", server.Bucket))

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
	keys, store := filepath.Join(dir, "keys"), "s3://"+server.Bucket+"/lifeboat"
	lifeboat("", "init", "--cluster", "prod", "--store", store, "--out", keys, "--host-root", filepath.Join(dir, "root"), "--node", "cp1", "--etcd", member.Endpoint)
	config := filepath.Join(keys, "config.yaml")
	edit(t, config, "stateDir", filepath.Join(dir, "state"))

	become(t, server, agent, s3.ObjectLock{}).use(t)
	lifeboat("", "backup", "--config", config)
	lifeboat("", "verify", "--config", config)
	lifeboat("delete", "doctor", "--config", config)
	for range 4 { // more than retention.minimum, all in one hour
		lifeboat("", "backup", "--config", config, "--only", "files")
	}

	become(t, server, prune, s3.ObjectLock{}).use(t)
	lifeboat("", "prune", "--yes", "--config", config)
	lifeboat("", "verify", "--config", config)

	become(t, server, restore, s3.ObjectLock{}).use(t)
	reading := []string{"--store", store, "--cluster", "prod", "--trust", filepath.Join(keys, "trust"), "--identity", filepath.Join(keys, "recovery.key")}
	lifeboat("", append([]string{"verify", "--deep"}, reading...)...)
	to := filepath.Join(dir, "back")
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	lifeboat("", append([]string{"restore", "files", "--node", "cp1", "--root", to, "--yes"}, reading...)...)
	if _, err := os.Stat(filepath.Join(to, "etc/kubernetes/admin.conf")); err != nil {
		t.Error(err)
	}
	lifeboat("", append([]string{"export", "--out", filepath.Join(dir, "snapshot.db")}, reading...)...)
	lifeboat("credentials", "backup", "--config", config)
}

// binaries is where the real program is built, once.
var binaries string

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if binaries, err = os.MkdirTemp("", "lifeboat-deploytest-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(binaries) // a temporary folder; nothing depends on it
	os.Exit(code)
}

var compiled = sync.OnceValues(func() (string, error) {
	program := filepath.Join(binaries, "lifeboat")
	if out, err := exec.Command("go", "build", "-o", program, "lifeboat/cmd/lifeboat").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lifeboat: %w\n%s", err, out)
	}
	return program, nil
})

// build is the real program and a way to run it: where a complaint is given
// it must fail with it.
func build(t *testing.T) (program string, run func(complaint string, args ...string)) {
	t.Helper()
	program, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	return program, func(complaint string, args ...string) {
		t.Helper()
		out, err := exec.Command(program, args...).CombinedOutput()
		switch {
		case complaint == "" && err != nil:
			t.Fatalf("lifeboat %s: %v\n%s", strings.Join(args, " "), err, out)
		case complaint != "" && (err == nil || !strings.Contains(string(out), complaint)):
			t.Errorf("lifeboat %s: %v, want a failure about %s\n%s", strings.Join(args, " "), err, complaint, out)
		}
	}
}

// edit gives a key on the first level of a configuration another value.
func edit(t *testing.T, file, key, value string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, key+":") })
	if i < 0 {
		t.Fatalf("%s has no %s", file, key)
	}
	lines[i] = key + ": " + value
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, store storage.Store) (out []string) {
	t.Helper()
	for info, err := range store.List(t.Context(), "") {
		if err != nil {
			t.Errorf("list: %v", err)
			return nil
		}
		out = append(out, info.Name)
	}
	return out
}

func read(t *testing.T, store storage.Store, name string) string {
	t.Helper()
	r, _, err := store.Open(t.Context(), name, storage.Range{})
	if err != nil {
		t.Errorf("read %s: %v", name, err)
		return ""
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		t.Errorf("read %s: %v", name, err)
	}
	return b.String()
}

func TestPoliciesGiveNobodyWhatEmptiesABucket(t *testing.T) {
	never := []string{
		"s3:DeleteObjectVersion", "s3:BypassGovernanceRetention", "s3:PutLifecycleConfiguration", "s3:PutBucketVersioning",
		"s3:PutBucketPolicy", "s3:DeleteBucket", "s3:PutObjectLegalHold",
	}
	seen := 0
	err := fs.WalkDir(os.DirFS(deploy("policies")), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".json" {
			return err
		}
		seen++
		text, err := os.ReadFile(deploy("policies", path))
		if err != nil {
			return err
		}
		var policy struct {
			Version   string
			Statement []struct {
				Sid, Effect string
				Action      any
				Resource    any
			}
		}
		if err := json.Unmarshal(text, &policy); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, s := range policy.Statement {
			actions := fmt.Sprint(s.Action)
			for _, action := range never {
				if s.Effect == "Allow" && (strings.Contains(actions, action+" ") || strings.Contains(actions, action+"]") || strings.Contains(actions, "*")) {
					t.Errorf("%s: %s allows %s", path, s.Sid, action)
				}
			}
			if path != "prune.json" && !strings.HasPrefix(s.Sid, "Prune") && s.Effect == "Allow" && strings.Contains(actions, "s3:DeleteObject") {
				t.Errorf("%s: %s may delete", path, s.Sid)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen != 6 {
		t.Errorf("looked at %d policies, want 6", seen)
	}
}
