package main

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/demo"
)

// commands are the lifeboat command lines in a document: lines of indented or
// fenced code, continued lines joined, comments removed, $S filled in.
func commands(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	joined := regexp.MustCompile(`\\\n\s*`).ReplaceAllString(string(text), "")
	settings := ""
	var list []string
	fenced := false
	for line := range strings.Lines(joined) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if !fenced && !strings.HasPrefix(line, "    ") {
			continue
		}
		line = strings.TrimSpace(line)
		if value, ok := strings.CutPrefix(line, `S="`); ok {
			settings = strings.TrimSuffix(value, `"`)
		}
		if strings.HasPrefix(line, "lifeboat ") {
			line, _, _ = strings.Cut(line, " # ")
			list = append(list, strings.ReplaceAll(strings.TrimSpace(line), "$S", settings))
		}
	}
	return list
}

// arguments splits a command line as a shell would, as far as documents go.
func arguments(line string) []string {
	fields := strings.Fields(strings.TrimPrefix(line, "lifeboat "))
	for i := range fields {
		fields[i] = strings.ReplaceAll(fields[i], "'", "")
	}
	return fields
}

func TestEveryCommandInTheDocumentsExists(t *testing.T) {
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, path := range append(documents, "../../README.md") {
		for _, line := range commands(t, path) {
			if strings.ContainsAny(line, "|<>$") {
				continue
			}
			seen++
			root := newRoot(&app{})
			cmd, rest, err := root.Find(arguments(strings.ReplaceAll(line, " N", " 1")))
			if err == nil && cmd == root {
				t.Errorf("%s: %q names no verb", path, line)
			}
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			if err == nil && cmd.PreRunE != nil {
				err = cmd.PreRunE(cmd, cmd.Flags().Args())
			}
			if err == nil && cmd.Args != nil {
				err = cmd.Args(cmd, cmd.Flags().Args())
			}
			if err != nil && !strings.HasPrefix(line, "lifeboat VERB") {
				t.Errorf("%s: %q: %v", path, line, err)
			}
		}
	}
	if seen < 10 {
		t.Errorf("found only %d commands", seen)
	}
}

// TestWhatTheReadmeSaysForTheWorstDayWorks takes the README's chapter "When
// all is lost" at its word, with its names replaced by a demonstration's.
func TestWhatTheReadmeSaysForTheWorstDayWorks(t *testing.T) {
	t.Chdir(t.TempDir())
	dir := filepath.Join(t.TempDir(), "demo")
	if err := demo.Run(t.Context(), demo.Options{
		Out: new(bytes.Buffer), Keep: dir, Objects: 100, Version: "test", Now: time.Now, Rand: rand.Reader,
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"recovery.key", "trust"} {
		if err := os.Rename(filepath.Join(dir, "lifeboat", name), name); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("HOME", dir)
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "xdg"))
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	readme := commands(t, filepath.Join(testFolder, "../../README.md"))
	full, files := newest(t, dir, "etcd/main"), newest(t, dir, "hosts/cp1")
	names := strings.NewReplacer(
		"s3://my-bucket/lifeboat", "file://"+filepath.Join(dir, "store"),
		"--cluster prod-eu1", "--cluster demo",
		"--root /", "--root "+root,
		"/var/lib/etcd", filepath.Join(root, "var/lib/etcd"),
		"--backup ID", "--backup "+full, "ls ID", "ls "+files, "cat ID", "cat "+files,
		"TOKEN", "fresh-token", "--bump N", "--bump 1000000000",
	)
	// The two commands of the last lines leave out what the chapter has said.
	needs := " --store file://" + filepath.Join(dir, "store") + " --cluster demo --trust trust"
	ran := map[string]int{}
	for _, line := range readme {
		args := arguments(names.Replace(line))
		verb := args[0]
		switch verb {
		case "init", "doctor", "backup", "agent":
			continue // the first chapter, on a real node
		case "restore":
			args = append(args, "--yes")
			verb += " " + args[1]
		case "ls", "cat":
			if !strings.Contains(line, "--identity") {
				args = append(args, "--identity", "recovery.key")
			}
		}
		if !strings.Contains(line, "--store") {
			args = append(args, strings.Fields(needs)...)
		}
		args = append(args, "--state-dir", filepath.Join(dir, "elsewhere"))
		var out, errs bytes.Buffer
		code := run(t.Context(), args, streams{in: strings.NewReader(""), out: &out, err: &errs})
		if code != exitDone {
			t.Errorf("%q: exit code %d\n%s", line, code, errs.String())
		}
		ran[verb]++
	}
	for _, verb := range []string{"list", "verify", "restore files", "restore etcd"} {
		if ran[verb] == 0 {
			t.Errorf("the README has no %q", verb)
		}
	}
	for _, name := range []string{"etc/kubernetes/pki/ca.key", "etc/kubernetes/manifests/etcd.yaml", "var/lib/etcd/member/snap/db"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
}

// testFolder is this package's folder, for tests that change theirs.
var testFolder, _ = os.Getwd()

// newest is the id of a chain's only backup.
func newest(t *testing.T, dir, chain string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "store", "demo-*", filepath.FromSlash(chain), "data", "*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("data of %s: %v %v", chain, found, err)
	}
	return filepath.Base(found[0])
}
