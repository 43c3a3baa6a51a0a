package layers

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "lifeboat/"

// layers is the order of the packages, lowest first. A package imports only
// from lines above its own; packages on one line don't know each other. The
// levels are DESIGN's; a letter splits a level whose packages build on each
// other.
var layers = []struct {
	level    string
	packages []string
}{
	{"0 files, events", []string{"internal/durable", "internal/events", "internal/follow", "internal/chroot", "internal/status", "internal/schedule", "internal/when", "internal/freeport", "docs"}},
	{"1 formats and contracts", []string{"storage", "internal/manifest", "internal/segment", "internal/seal", "internal/config", "internal/retention", "internal/boltfile"}},
	{"1b backends", []string{"internal/hostfacts", "internal/oci", "storage/local", "storage/memory", "storage/s3", "storage/fault", "internal/witness", "internal/patience", "internal/spool"}},
	{"1c choosing a backend, etcd's settings on a host", []string{"storage/open", "internal/etcdhost"}},
	{"1d distributions on a host", []string{"internal/distro"}},
	{"2 chains, databases, fixtures", []string{"internal/repository", "internal/snapdb", "internal/etcdtest", "internal/kubefixture", "internal/realplane/image", "internal/realplane/pause", "internal/containerd"}},
	{"2b harnesses for tests", []string{"internal/durable/tinydisk", "storage/storetest", "internal/etcdtest/cluster", "internal/s3test", "internal/web/webtest", "internal/realplane"}},
	{"2c image stores for tests", []string{"internal/containerd/containerdtest"}},
	{"3 one source, one target", []string{"backup/etcd", "backup/host", "restore/datadir", "restore/files", "restore/materialize", "restore/journal", "restore/pki", "restore/node", "restore/readdress", "restore/reset", "restore/salvage"}},
	{"3a a source watched, a restore's surroundings", []string{"backup/watch", "restore/kubeapi", "restore/topology"}},
	{"3a a node's files for another machine", []string{"restore/nodefiles"}},
	{"3b whole backups and restores", []string{"backup", "restore"}},
	{"3c recording, a whole node", []string{"backup/record", "backup/images", "restore/images", "restore/plane"}},
	{"4 across them", []string{"internal/kit", "internal/recoverykit", "internal/doctor", "internal/session", "internal/pruning", "internal/transfer"}},
	{"4b what an agent shows", []string{"internal/web", "internal/metrics", "internal/deadman"}},
	{"5 whole stories and the daemon", []string{"internal/demo", "internal/bench", "internal/replay", "internal/agent/turns", "internal/agent", "internal/deploytest", "internal/realplane/e2e", "deploy/image"}},
	{"5b the agent's hands", []string{"internal/agent/work"}},
	{"6 command line", []string{"cmd/lifeboat", "internal/layers"}},
}

// apart lists packages that must not meet even where the order would allow it.
var apart = []struct{ from, to, why string }{
	{"restore", "backup", "backup and restore meet only through the repository"},
	{"backup", "restore", "backup and restore meet only through the repository"},
	{"internal/repository", "internal/seal", "a repository never sees plaintext"},
	{"storage", "internal/manifest", "a store is dumb: it knows nothing of manifests"},
	{"storage", "internal/seal", "a store is dumb: it knows nothing of encryption"},
}

// homes lists heavy or far-reaching dependencies with the only packages that
// may import them, in their tests too but for those in freeInTests.
var homes = []struct {
	dependency string
	packages   []string
	why        string
}{
	{"go.etcd.io/etcd/server/v3", []string{"restore/datadir", "restore/materialize", "restore/salvage", "internal/snapdb", "internal/etcdtest"}, "etcd's server is large, and its internals change"},
	{"go.etcd.io/etcd/etcdutl/v3", []string{"restore/datadir", "internal/snapdb", "internal/etcdtest"}, "etcdutl is a yardstick for tests"},
	{"go.etcd.io/bbolt", []string{"internal/boltfile", "restore/datadir", "restore/materialize", "restore/salvage", "internal/snapdb", "internal/etcdtest", "backup/etcd", "internal/replay"}, "bbolt panics on damaged pages: read with snapdb"},
	{"github.com/aws", []string{"storage/s3", "internal/s3test"}, "provider names and error types never leave a backend"},
	{"github.com/spf13", []string{"cmd/lifeboat"}, "flags are the command's business"},
	{"github.com/schollz/progressbar", []string{"cmd/lifeboat"}, "the core emits events; the command draws"},
	{"filippo.io/age", []string{"internal/seal", "internal/transfer", "backup", "backup/record", "restore", "restore/plane", "backup/images", "restore/images", "cmd/lifeboat", "internal/demo", "internal/kit"}, "sealing is seal's; others only pass keys along"},
	{"golang.org/x/mod/sumdb/note", []string{"internal/manifest"}, "signing is manifest's"},
	{"k8s.io", []string{"backup/host", "internal/kubefixture", "restore/node", "restore/images"}, "Kubernetes' types are needed for static pods, and the CRI's to stop and to test them, only"},
	{"github.com/robfig/cron", []string{"internal/schedule"}, "its parser panics on some expressions, and its runner catches nothing up"},
	{"github.com/yuin/goldmark", []string{"internal/recoverykit"}, "documents become a page in one place"},
	{"github.com/prometheus", []string{"internal/metrics"}, "etcd's client fills the default registry; one package keeps to its own"},
	{"github.com/containerd", []string{"internal/containerd"}, "its API module alone; its client would bring in all of a container's life"},
	{"log/slog", []string{"cmd/lifeboat", "internal/manifest"}, "libraries emit events and don't log; manifest only hides keys from logs"},
}

// freeInTests are dependencies that any test may use, to make keys and
// forgeries.
var freeInTests = []string{"filippo.io/age", "golang.org/x/mod/sumdb/note"}

// harnesses are never part of the program: only tests import them.
var harnesses = []string{"internal/durable/tinydisk", "storage/storetest", "storage/fault", "internal/etcdtest/cluster", "internal/s3test", "internal/web/webtest", "internal/realplane", "internal/realplane/image", "internal/containerd/containerdtest"}

// pkg is one folder of Go files.
type pkg struct {
	imports, testImports map[string]string // import path -> a file that has it
}

func TestPackagesImportOnlyFromLayersBelow(t *testing.T) {
	packages := tree(t)
	level := map[string]int{}
	for i, layer := range layers {
		for _, p := range layer.packages {
			level[p] = i
			if packages[p] == nil {
				t.Errorf("the table lists %s, which does not exist", p)
			}
		}
	}
	for name, p := range packages {
		from, known := level[name]
		if !known {
			t.Errorf("%s is not in the table of layers: decide where it belongs and add it", name)
			continue
		}
		for imported, file := range p.imports {
			target, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			if to, ok := level[target]; ok && to >= from {
				t.Errorf("%s (layer %s) imports %s (layer %s): imports point only downwards", file, layers[from].level, target, layers[to].level)
			}
			if slices.Contains(harnesses, target) && !slices.Contains(harnesses, name) {
				t.Errorf("%s imports %s, which is for tests", file, target)
			}
			for _, rule := range apart {
				if within(name, rule.from) && within(target, rule.to) {
					t.Errorf("%s imports %s: %s", file, target, rule.why)
				}
			}
		}
	}
}

func TestHeavyDependenciesHaveOneHome(t *testing.T) {
	for name, p := range tree(t) {
		for _, imports := range []map[string]string{p.imports, p.testImports} {
			for imported, file := range imports {
				for _, home := range homes {
					if within(imported, home.dependency) && !slices.Contains(home.packages, name) &&
						!(strings.HasSuffix(file, "_test.go") && slices.Contains(freeInTests, home.dependency)) {
						t.Errorf("%s imports %s, whose home is %s: %s", file, imported, strings.Join(home.packages, ", "), home.why)
					}
				}
			}
		}
	}
}

func TestTestsDontImportTheCommandLine(t *testing.T) {
	for name, p := range tree(t) {
		for imported, file := range p.testImports {
			if name != "cmd/lifeboat" && within(imported, module+"cmd") {
				t.Errorf("%s imports %s", file, imported)
			}
		}
	}
}

// within reports whether name is the path or below it.
func within(name, path string) bool {
	return name == path || strings.HasPrefix(name, path+"/")
}

// tree parses the imports of every Go file of the module.
func tree(t *testing.T) map[string]*pkg {
	t.Helper()
	root := filepath.Join("..", "..")
	packages := map[string]*pkg{}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if entry.IsDir() {
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil && rel != "." {
				return fs.SkipDir // a module of its own
			}
			if rel != "." && (strings.HasPrefix(entry.Name(), ".") || rel == "bin" || entry.Name() == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		name := path.Dir(rel)
		if packages[name] == nil {
			packages[name] = &pkg{imports: map[string]string{}, testImports: map[string]string{}}
		}
		into := packages[name].imports
		if strings.HasSuffix(rel, "_test.go") {
			into = packages[name].testImports
		}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			into[imported] = rel
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) < 10 {
		t.Fatalf("found only %d packages below %s", len(packages), root)
	}
	return packages
}
