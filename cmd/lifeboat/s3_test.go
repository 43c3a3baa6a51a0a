package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/doctor"
	"lifeboat/internal/s3test"
)

// edit replaces text in the site's configuration.
func (s *site) edit(pairs ...string) {
	s.t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(string(text), pairs[i]) {
			s.t.Fatalf("the configuration has no %q:\n%s", pairs[i], text)
		}
	}
	if err := os.WriteFile(s.config, []byte(strings.NewReplacer(pairs...).Replace(string(text))), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// story backs up, lists, verifies deeply and exports.
func (s *site) story() {
	s.t.Helper()
	s.run(exitDone, "backup", "--config", s.config)
	s.run(exitDone, "backup", "--config", s.config, "--only", "etcd")
	if got := len(s.ids("etcd/main")); got != 2 {
		s.t.Errorf("%d fulls are listed, want 2", got)
	}
	s.run(exitDone, "verify", "--config", s.config, "--deep", "--identity", s.identity)
	s.sound()
}

// findings are what doctor says, by check.
func (s *site) findings() map[string]doctor.Finding {
	s.t.Helper()
	var list []doctor.Finding
	if err := json.Unmarshal([]byte(s.run(exitDone, "doctor", "-o", "json", "--config", s.config)), &list); err != nil {
		s.t.Fatal(err)
	}
	by := map[string]doctor.Finding{}
	for _, f := range list {
		by[f.Check] = f
	}
	return by
}

func TestTheStoryOnS3WithASettingForEverything(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true, ObjectLock: true})
	s := newSite(t)
	ca := filepath.Join(s.dir, "keys", "s3-ca.crt") // named relative to the configuration
	text, err := os.ReadFile(server.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
	url := "s3://" + server.Bucket + "/backups/prod"
	s.edit("file://"+filepath.Join(s.dir, "store"), url, `endpoint: ""`, "endpoint: "+server.Endpoint, `region: ""`, "region: "+s3test.Region,
		"pathStyle: auto", `pathStyle: "true"`, "checksums: auto", `checksums: "on"`,
		`mode: ""`, "mode: compliance", "days: 0", "days: 1")
	s.edit(`caFile: "" # CA of the server's certificate`, "caFile: s3-ca.crt # CA of the server's certificate")

	found := s.findings()
	for _, check := range []string{"store " + url, "store " + url + " protection", "store " + url + " clock"} {
		if found[check].Level != doctor.OK {
			t.Errorf("%s: %+v", check, found[check])
		}
	}
	s.story()

	// Without the authority's certificate nothing is believed.
	s.edit("caFile: s3-ca.crt", `caFile: ""`)
	s.run(exitFailed, "list", "--config", s.config)
}

func TestAnS3StoreIsFoundByTheEnvironmentAlone(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true})
	s := newSite(t)
	server.Setenv(t)
	url := "s3://" + server.Bucket
	s.edit("file://"+filepath.Join(s.dir, "store"), url)
	s.story()
	// And without a configuration.
	out := s.run(exitDone, "list", "-o", "json", "--store", url, "--cluster", "prod", "--trust", filepath.Join(s.dir, "keys/trust"))
	if strings.Count(out, `"id"`) != 3 {
		t.Errorf("got %s", out)
	}

	// Wrong credentials: exit code 1, a hint, and no secret in sight.
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-at-all")
	cmd, errs := s.process("list")
	if err := cmd.Run(); err == nil || !strings.Contains(errs.String(), "hint: check the credentials") {
		t.Errorf("%v\n%s", err, errs)
	}
	if strings.Contains(errs.String(), "not-the-secret-at-all") || strings.Contains(errs.String(), server.SecretKey) {
		t.Errorf("a secret is shown: %s", errs)
	}
}

func TestDoctorEndsSoonThoughAnS3StoreHangs(t *testing.T) {
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	asked := make(chan struct{}, 100)
	go func() {
		for {
			c, err := deaf.Accept()
			if err != nil {
				return
			}
			defer c.Close() // and nothing else
			asked <- struct{}{}
		}
	}()
	s := newSite(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	s.edit("file://"+filepath.Join(s.dir, "store"), "s3://bucket/prod", `endpoint: ""`, "endpoint: http://"+deaf.Addr().String(), `region: ""`, "region: "+s3test.Region)
	cmd, errs := s.process("doctor")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		t.Fatalf("the store is not asked\n%s", errs)
	}
	began := time.Now()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if took := time.Since(began); took > 4*time.Second || cmd.ProcessState.ExitCode() != exitCanceled {
		t.Errorf("it ended after %s with %v\n%s", took, cmd.ProcessState, errs)
	}
}
