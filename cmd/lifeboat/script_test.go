package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // for scripts that name a zone

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/kubefixture"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lifeboat": main})
}

// TestScripts runs the stories in testdata/script: each is what a person types
// and sees. The commands besides testscript's own are listed in scriptCommands.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                scriptCommands,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "xdg"))
			return nil
		},
	})
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	// exits CODE COMMAND ARGS...: the command ends with that code.
	"exits": func(ts *testscript.TestScript, _ bool, args []string) {
		want, err := strconv.Atoi(args[0])
		ts.Check(err)
		got := 0
		var exit *exec.ExitError
		if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
			got = exit.ExitCode()
		} else if err != nil {
			ts.Fatalf("%v", err)
		}
		if got != want {
			ts.Fatalf("exit code %d, want %d", got, want)
		}
	},
	// etcd DIR ENV: starts an etcd with data in DIR, puts its URL into ENV, and
	// stops it with the script. Given again after stopetcd, it starts from there.
	"etcd": func(ts *testscript.TestScript, _ bool, args []string) {
		m, err := etcdtest.StartEmbedded(ts.MkAbs(args[0]), etcdtest.EmbeddedOptions{Name: "m", NoSync: true})
		ts.Check(err)
		ts.Setenv(args[1], m.Endpoint)
		members[ts.MkAbs(args[0])] = m
		ts.Defer(func() { _ = m.Close() })
	},
	"stopetcd": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Check(members[ts.MkAbs(args[0])].Close())
	},
	// fill URL FIRST N: puts N objects.
	"fill": func(ts *testscript.TestScript, _ bool, args []string) {
		client, err := etcdtest.NewClient(args[0])
		ts.Check(err)
		defer client.Close()
		first, err := strconv.Atoi(args[1])
		ts.Check(err)
		n, err := strconv.Atoi(args[2])
		ts.Check(err)
		_, err = etcdtest.Fill(context.Background(), client, etcdtest.FillOptions{First: first, Objects: n})
		ts.Check(err)
	},
	// put URL KEY VALUE: puts one value.
	"put": func(ts *testscript.TestScript, _ bool, args []string) {
		client, err := etcdtest.NewClient(args[0])
		ts.Check(err)
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err = client.Put(ctx, args[1], args[2])
		ts.Check(err)
	},
	// hashkv URL REVISION ENV: etcd's own hash of what it holds.
	"hashkv": func(ts *testscript.TestScript, _ bool, args []string) {
		client, err := etcdtest.NewClient(args[0])
		ts.Check(err)
		defer client.Close()
		revision, err := strconv.ParseInt(args[1], 10, 64)
		ts.Check(err)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		answer, err := client.HashKV(ctx, args[0], revision)
		ts.Check(err)
		ts.Setenv(args[2], fmt.Sprint(answer.Hash))
	},
	// revision URL ENV: etcd's revision now.
	"revision": func(ts *testscript.TestScript, _ bool, args []string) {
		client, err := etcdtest.NewClient(args[0])
		ts.Check(err)
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		answer, err := client.Get(ctx, "x")
		ts.Check(err)
		ts.Setenv(args[1], fmt.Sprint(answer.Header.Revision))
	},
	// localtime ENV: the clock on the wall, to the millisecond.
	"localtime": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Setenv(args[0], time.Now().Format("2006-01-02 15:04:05.000"))
	},
	// eventually SECONDS COMMAND ARGS...: the command succeeds within that time,
	// tried again and again.
	"eventually": func(ts *testscript.TestScript, _ bool, args []string) {
		seconds, err := strconv.Atoi(args[0])
		ts.Check(err)
		for end := time.Now().Add(time.Duration(seconds) * time.Second); ; time.Sleep(300 * time.Millisecond) {
			err := ts.Exec(args[1], args[2:]...)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				ts.Fatalf("%s: %v", strings.Join(args[1:], " "), err)
			}
		}
	},
	// node DIR KIND: lays out a control-plane node's files.
	"node": func(ts *testscript.TestScript, _ bool, args []string) {
		opts := kubefixture.Options{Node: "cp1"}
		if len(args) > 1 {
			opts.EtcdEndpoints = args[1:]
		}
		ts.Check(kubefixture.Build(ts.MkAbs(args[0]), opts))
	},
	// flip FILE OFFSET: flips a bit of one byte; a negative offset counts from the end.
	"flip": func(ts *testscript.TestScript, _ bool, args []string) {
		path := ts.MkAbs(args[0])
		text, err := os.ReadFile(path)
		ts.Check(err)
		offset, err := strconv.Atoi(args[1])
		ts.Check(err)
		if offset < 0 {
			offset += len(text)
		}
		text[offset] ^= 1
		ts.Check(os.WriteFile(path, text, 0o600))
	},
	// mode OCTAL FILE...: the files have that mode.
	"mode": func(ts *testscript.TestScript, _ bool, args []string) {
		want, err := strconv.ParseUint(args[0], 8, 32)
		ts.Check(err)
		for _, name := range args[1:] {
			info, err := os.Stat(ts.MkAbs(name))
			ts.Check(err)
			if got := info.Mode().Perm(); got != os.FileMode(want) {
				ts.Fatalf("%s has mode %v, want %v", name, got, os.FileMode(want))
			}
		}
	},
	// glob PATTERN ENV: the one file that matches.
	"glob": func(ts *testscript.TestScript, _ bool, args []string) {
		found, err := filepath.Glob(ts.MkAbs(args[0]))
		ts.Check(err)
		if len(found) != 1 {
			ts.Fatalf("%s matches %v, want one file", args[0], found)
		}
		ts.Setenv(args[1], found[0])
	},
	// jsonget PATH ENV: a value of the last output, such as 0.id.
	"jsonget": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Setenv(args[1], text(at(ts, args[0])))
	},
	// jsonis PATH VALUE
	"jsonis": func(ts *testscript.TestScript, neg bool, args []string) {
		if got := text(at(ts, args[0])); (got == args[1]) == neg {
			ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
		}
	},
	// jsonkeys PATH KEY...: the object there has exactly these keys.
	"jsonkeys": func(ts *testscript.TestScript, _ bool, args []string) {
		object, ok := at(ts, args[0]).(map[string]any)
		if !ok {
			ts.Fatalf("%s is not an object", args[0])
		}
		var got []string
		for key := range object {
			got = append(got, key)
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(args[1:]))
		if !slices.Equal(got, want) {
			ts.Fatalf("%s has keys %v, want %v", args[0], got, want)
		}
	},
	// jsonlen PATH N
	"jsonlen": func(ts *testscript.TestScript, _ bool, args []string) {
		list, ok := at(ts, args[0]).([]any)
		if !ok {
			ts.Fatalf("%s is not a list", args[0])
		}
		if fmt.Sprint(len(list)) != args[1] {
			ts.Fatalf("%s has %d entries, want %s", args[0], len(list), args[1])
		}
	},
}

// members are the etcds that scripts have started, by folder.
var members = map[string]*etcdtest.Member{}

// at finds a value in the last command's standard output.
func at(ts *testscript.TestScript, path string) any {
	decoder := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil {
		ts.Fatalf("standard output is not JSON: %v", err)
	}
	if path == "." {
		return v
	}
	for element := range strings.SplitSeq(path, ".") {
		switch container := v.(type) {
		case map[string]any:
			value, ok := container[element]
			if !ok {
				ts.Fatalf("no %s in %s", element, path)
			}
			v = value
		case []any:
			i, err := strconv.Atoi(element)
			ts.Check(err)
			if i >= len(container) {
				ts.Fatalf("%s: only %d entries", path, len(container))
			}
			v = container[i]
		default:
			ts.Fatalf("nothing at %s", path)
		}
	}
	return v
}

func text(v any) string {
	if v == nil {
		return "null"
	}
	return fmt.Sprint(v)
}
