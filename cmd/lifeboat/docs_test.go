package main

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
	var fields []string
	for i, part := range strings.Split(strings.TrimPrefix(line, "lifeboat "), `"`) {
		if i%2 == 1 { // between quotes
			fields = append(fields, part)
			continue
		}
		for _, field := range strings.Fields(part) {
			fields = append(fields, strings.ReplaceAll(field, "'", ""))
		}
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
		seen += parseCommands(t, path)
	}
	if seen < 10 {
		t.Errorf("found only %d commands", seen)
	}
}

// Somebody who is not sure is sent to a page's first command: it must change nothing.
func TestThePagesThatBeginWithADryRunAreThoseThatAreNamed(t *testing.T) {
	text, err := os.ReadFile("../../docs/restore.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`The first command of pages ([A-Z, and]+) ends in`).FindStringSubmatch(string(text))
	if named == nil {
		t.Fatal("no pages are named")
	}
	var got []string
	for _, page := range strings.Split(string(text), "\n## ") {
		title, body, _ := strings.Cut(page, "\n")
		letter, _, lettered := strings.Cut(title, ". ")
		if !lettered || len(letter) != 1 {
			continue
		}
		first := regexp.MustCompile(`(?m)^ {4,}\S.*$`).FindString(body)
		if strings.HasSuffix(first, "--dry-run") {
			got = append(got, letter)
		}
	}
	if want := regexp.MustCompile(`[A-Z]`).FindAllString(named[1], -1); !slices.Equal(got, want) {
		t.Errorf("pages that begin with a dry run: %q, named are %q", got, want)
	}
}

// filledIn are the words that a reader of a document puts something in place of,
// where a flag takes only what has the right form.
var filledIn = strings.NewReplacer(
	" N", " 1", "NEW-NAME", "cp4", "NEW-ADDRESS", "10.0.0.44",
	"ADDRESS-1", "10.0.0.1", "ADDRESS-2", "10.0.0.2", "ADDRESS-3", "10.0.0.3",
	"NODE-1", "n1", "NODE-2", "n2", "NODE-3", "n3",
)

// parseCommands checks each command of a document against the real ones, and
// returns how many there are.
func parseCommands(t *testing.T, path string) (seen int) {
	t.Helper()
	for _, line := range commands(t, path) {
		if strings.ContainsAny(line, "|<>$") {
			continue
		}
		seen++
		root := newRoot(&app{now: time.Now})
		cmd, rest, err := root.Find(arguments(filledIn.Replace(line)))
		if err == nil && cmd == root {
			t.Errorf("%s: %q names no verb", path, line)
		}
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil && cmd.PreRunE != nil {
			err = cmd.PreRunE(cmd, cmd.Flags().Args())
		}
		if err == nil {
			err = cmd.ValidateFlagGroups()
		}
		if err == nil && cmd.Args != nil {
			err = cmd.Args(cmd, cmd.Flags().Args())
		}
		if err != nil && !strings.HasPrefix(line, "lifeboat VERB") {
			t.Errorf("%s: %q: %v", path, line, err)
		}
	}
	return seen
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
	full, files := only(t, dir, "etcd/main/data/*/snapshot.db.zst.age"), only(t, dir, "hosts/cp1/data/*/files.tar.zst.age")
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
		if strings.Contains(line, "--at ") || strings.Contains(line, "--revision ") {
			continue // their points are not the demonstration's: testdata/script/record.txtar has these
		}
		switch verb {
		case "init", "doctor", "backup", "agent":
			continue // the first chapter, on a real node
		case "restore":
			if args[1] != "etcd" && args[1] != "files" {
				continue // on a real machine: internal/realplane/e2e
			}
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

// only is the id of the demonstration's one backup of a kind.
func only(t *testing.T, dir, data string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "store", "demo-*", filepath.FromSlash(data)))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v %v", data, found, err)
	}
	return filepath.Base(filepath.Dir(found[0]))
}
