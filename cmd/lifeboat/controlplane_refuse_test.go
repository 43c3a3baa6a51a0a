package main

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/etcdtest"
	"lifeboat/restore/topology"
)

// wants runs a command and checks its exit code and what it says.
func (w *ward) wants(code int, words string, args ...string) (out string) {
	w.t.Helper()
	got, out, errs := w.run(w.t.Context(), "", args...)
	if got != code || !strings.Contains(errs, words) {
		w.t.Errorf("lifeboat %s: exit code %d, want %d and %q:\n%s%s", strings.Join(args, " "), got, code, words, out, errs)
	}
	return out
}

// tree is what lies below the machine's root, but for restores' own.
func (w *ward) tree() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	must(w.t, filepath.WalkDir(w.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() && strings.HasPrefix(e.Name(), ".lifeboat") {
			if e != nil && e.IsDir() {
				return fs.SkipDir
			}
			return err
		}
		info, err := e.Info()
		must(w.t, err)
		text := info.Mode().String()
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			must(w.t, err)
			text += string(content)
		}
		out[strings.TrimPrefix(path, w.root)] = text
		return nil
	}))
	return out
}

// old gives the machine an older control plane of the same cluster.
func (w *ward) old() map[string]string {
	w.t.Helper()
	ca, err := os.ReadFile(filepath.Join(w.work, "host/etc/kubernetes/pki/ca.crt"))
	must(w.t, err)
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: etcd, namespace: kube-system}\nspec: {hostNetwork: true, containers: [{name: etcd, image: old}]}\n"
	for name, text := range map[string]string{
		"etc/kubernetes/pki/ca.crt": string(ca), "etc/kubernetes/admin.conf": "of before", "etc/kubernetes/manifests/etcd.yaml": pod, "var/lib/etcd/member/snap/db": "the old database",
	} {
		path := filepath.Join(w.root, name)
		must(w.t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(w.t, os.WriteFile(path, []byte(text), 0o600))
	}
	return w.tree()
}

func sameTree(t *testing.T, before, after map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if after[name] != before[name] {
			t.Errorf("%s was %.80q and is %.80q", name, before[name], after[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if _, known := before[name]; !known {
			t.Errorf("%s was not there", name)
		}
	}
}

// interrupt ends the command, as Ctrl-C does, when the patient is asked for
// something, and returns what it said.
func (w *ward) interrupt(at string, args ...string) (errs string) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	w.machine.failing = map[string]func() error{at: func() error {
		cancel()
		return context.Cause(ctx)
	}}
	code, out, errs := w.run(ctx, "", args...)
	w.machine.failing = nil
	if code != exitCanceled {
		w.t.Fatalf("interrupted: exit code %d\n%s%s", code, out, errs)
	}
	return errs
}

func TestWhatMustNotBeRestoredIsRefused(t *testing.T) {
	w := newWard(t)
	before := w.old()

	other, err := age.GenerateX25519Identity()
	must(t, err)
	wrong := filepath.Join(w.work, "wrong.key")
	must(t, os.WriteFile(wrong, []byte(other.String()+"\n"), 0o600))
	w.wants(exitFailed, "none of the keys given with --identity fits", "restore", "control-plane", "--config", w.config, "--root", w.root, "--yes", "--identity", wrong)

	w.wants(exitNothing, "there are those of cp1: name one with --node", w.flags("--yes", "--node", "cp9")...)
	w.wants(exitNothing, "there are those of cp1", w.flags("--yes", "--rename", "cp7=cp1")...) // this host is called cp1 now
	w.wants(exitUsage, "--members \"two\"", w.flags("--members", "two")...)
	w.wants(exitUsage, "bad mapping", w.flags("--address", "10.0.0.1")...)
	w.wants(exitUsage, "needs --members all", w.flags("--share", "x")...)
	w.wants(exitUsage, "if any flags in the group [with members] are set none of the others can be", w.flags("--with", "x", "--members", "all")...)
	nowhere := filepath.Join(w.work, "nowhere")
	w.wants(exitNothing, "nothing in "+nowhere, "restore", "abort", "--state-dir", nowhere, "--root", w.root, "--dry-run")
	if _, err := os.Stat(nowhere); err == nil {
		t.Error("looking for what can be aborted has made a folder")
	}
	for _, verb := range []string{"abort", "clean"} {
		w.wants(exitUsage, "--state-dir with the folder that it used", "restore", verb, "--config", filepath.Join(w.work, "missing.yaml"), "--root", w.root, "--dry-run")
	}
	must(t, os.WriteFile(filepath.Join(w.work, "broken.json"), []byte("{"), 0o600))
	w.wants(exitUsage, "the shared order of the restore can't be used", w.flags("--yes", "--with", filepath.Join(w.work, "broken.json"))...)
	w.machine.addresses = []string{"10.1.1.1/24"}
	w.wants(exitRefused, "this machine has no such address. Is it the right machine? To give the node the address of this one: --address 127.0.0.1=NEW", w.flags("--yes")...)
	w.machine.addresses = nil

	must(t, os.WriteFile(filepath.Join(w.root, "etc/kubernetes/pki/ca.crt"), []byte("another CA"), 0o600))
	w.wants(exitRefused, "belongs to another cluster", w.flags("--yes")...)
	w.old()

	// The cluster lives.
	etcd := w.start("lost", w.port)
	w.wants(exitRefused, "etcd needs no restore", w.flags("--yes")...)
	must(t, etcd.Close())
	// Another one does, where it was.
	other2, err := etcdtest.StartEmbedded(filepath.Join(w.work, "another"), etcdtest.EmbeddedOptions{Name: "other", NoSync: true, ClientPort: w.port})
	must(t, err)
	w.wants(exitRefused, "Find out whose etcd that is", w.flags("--yes")...)
	must(t, other2.Close())

	sameTree(t, before, w.tree())
	if len(w.machine.story) > 0 {
		t.Errorf("something was done: %v", w.machine.story)
	}
	w.wants(exitNothing, "no restore of a control plane is unfinished", "restore", "abort", "--config", w.config, "--root", w.root, "--yes")
}

func TestAnInterruptedRestoreGoesOnOrIsUndone(t *testing.T) {
	w := newWard(t)
	before := w.old()
	errs := w.interrupt("API", w.flags("--yes")...)
	for _, words := range []string{"the same command goes on from here", "lifeboat restore abort --config " + w.config, "interrupted: restore "} {
		if !strings.Contains(errs, words) {
			t.Errorf("interrupted, it does not say %q:\n%s", words, errs)
		}
	}
	w.wants(exitRefused, "another restore was begun here", w.flags("--yes", "--members", "all", "--share", filepath.Join(w.work, "restore.json"))...)
	w.wants(exitRefused, "another restore was begun here", w.flags("--yes", "--revision", "41")...)

	// Going on is announced, and does not do again what is done.
	text := w.must(w.flags("--dry-run")...)
	if !strings.Contains(text, "Go on with restore") || !strings.Contains(text, "5 of 9 changes are made") || !strings.Contains(text, "Put the new etcd member in place (done)") {
		t.Errorf("the plan of going on: %s", text)
	}
	plan := w.must("restore", "abort", "--config", w.config, "--root", w.root, "--dry-run")
	for _, words := range []string{"Abort restore ", " 1. Stop the restored static pods", "Put etcd's old member back", " 6. Start kubelet"} {
		if !strings.Contains(plan, words) {
			t.Errorf("the plan of undoing does not say %q:\n%s", words, plan)
		}
	}

	// What belongs to it is not removed meanwhile.
	clean := decode[[]keptJSON](t, w.must("restore", "clean", "--config", w.config, "--root", w.root, "--yes", "-o", "json"))
	if len(clean) < 2 || slices.ContainsFunc(clean, func(k keptJSON) bool { return k.Removed || k.Stays != "its restore is not finished" }) {
		t.Errorf("cleaned while it was not finished: %+v", clean)
	}

	aborted := decode[abortJSON](t, w.must("restore", "abort", "--config", w.config, "--root", w.root, "--yes", "-o", "json"))
	if !aborted.Aborted || len(aborted.Steps) != 6 || aborted.Node != "cp1" || len(aborted.Aside) == 0 {
		t.Errorf("%+v", aborted)
	}
	sameTree(t, before, w.tree())
	if !w.machine.running {
		t.Error("kubelet does not run")
	}

	// A new one, that is interrupted and goes on.
	w.machine.story = nil
	w.interrupt("start kubelet", w.flags("--yes")...)
	report := decode[planeReportJSON](t, w.must(w.flags("--yes", "-o", "json")...))
	if !report.Continued || report.RTO.Ready <= 0 || len(report.Backups) != 2 || len(report.Aside) == 0 || !strings.Contains(strings.Join(report.Left, "\n"), "lifeboat restore clean --config "+w.config) {
		t.Errorf("%+v", report)
	}
	if got := strings.Join(w.machine.story, ", "); got != "stop kubelet, start kubelet, stop kubelet, start kubelet, etcd, API, etcd, API, etcd, node, tidy" {
		t.Errorf("what happened: %s", got)
	}
	if r := w.revision(); r < 1_000_000_000 {
		t.Errorf("etcd is at revision %d", r)
	}
}

func TestWhatRestoresHaveLeftIsRemovedByAge(t *testing.T) {
	w := newWard(t)
	w.old()
	w.must(w.flags("--yes")...)
	clean := []string{"restore", "clean", "--config", w.config, "--root", w.root}
	w.wants(exitUsage, "--older-than", append(clean, "--older-than", "soon")...)
	if out := w.must(append(clean, "--older-than", "1h", "--yes", "-o", "json")...); strings.Contains(out, `"removed": true`) {
		t.Errorf("removed although it is young: %s", out)
	}
	w.later = 3 * time.Hour
	text := w.must(append(clean, "--older-than", "2h", "--dry-run")...)
	for _, words := range []string{"AGE", "3h", "aside", "journal", filepath.Join(w.state, "aside")} {
		if !strings.Contains(text, words) {
			t.Errorf("the list does not say %q:\n%s", words, text)
		}
	}
	if code, _, errs := w.run(t.Context(), "n\n", clean...); code != exitFailed || !strings.Contains(errs, "nothing was changed") {
		t.Errorf("a no: %d %s", code, errs)
	}
	old := filepath.Join(w.state, "aside")
	if kept, err := filepath.Glob(filepath.Join(old, "*", "member/snap/db")); err != nil || len(kept) != 1 {
		t.Fatalf("etcd's old member is not in %s: %v", old, err)
	}
	removed := decode[[]keptJSON](t, w.must(append(clean, "--older-than", "2h", "--yes", "-o", "json")...))
	if len(removed) != 2 || removed[0].Kind != "aside" || removed[1].Kind != "journal" || !removed[0].Removed || !removed[1].Removed || removed[0].Bytes == 0 || removed[0].RestoreID != removed[1].RestoreID {
		t.Errorf("%+v", removed)
	}
	for _, folder := range []string{"aside", "restores"} {
		if left, _ := filepath.Glob(filepath.Join(w.state, folder, "*", "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	if out := w.must(append(clean, "-o", "json")...); strings.TrimSpace(out) != "[]" {
		t.Errorf("nothing to remove: %s", out)
	}
}

func TestTheOrderForOtherNodesIsWrittenForTheirOwnerAlone(t *testing.T) {
	w := newWard(t)
	file := filepath.Join(w.work, "restore.json")
	text := w.must(w.flags("--dry-run", "--members", "all", "--share", file)...)
	if !strings.Contains(text, "lifeboat restore control-plane --identity FILE --with "+file+" --config "+w.config) {
		t.Errorf("the plan does not say the command for other nodes:\n%s", text)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	out := dropped(t, w.must(w.flags("--dry-run", "--with", file, "-o", "json")...), "clusterID", "continues", "filesBackup", "host", "members", "node", "notes", "point", "steps", "summary", "warnings")
	mine := decode[struct {
		RestoreID, Token string
		Bump             uint64
	}](t, out)
	order, err := os.ReadFile(file)
	must(t, err)
	if mine.Token == "" || !strings.Contains(string(order), mine.Token) || !strings.Contains(string(order), mine.RestoreID) {
		t.Errorf("a node with the order has %+v, the order is %s", mine, order)
	}
	rewrite(t, file, mine.Token, mine.Token+"x")
	w.wants(exitRefused, "it was changed, or not made from a backup of this cluster", w.flags("--yes", "--with", file)...)
}

func TestNodesAreOfferedToTheShell(t *testing.T) {
	w := newWard(t)
	out := w.must("__complete", "restore", "control-plane", "--config", w.config, "--node", "")
	if !strings.HasPrefix(out, "cp1\n") {
		t.Errorf("offered: %q", out)
	}
}

func TestDamagedDataComeFromAnotherStore(t *testing.T) {
	for _, what := range []string{"etcd/main/data/*/snapshot.db.zst.age", "hosts/cp1/data/*/files.tar.zst.age"} {
		w := newWard(t, "second")
		found, err := filepath.Glob(filepath.Join(w.work, "store/prod-*", what))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", what, found, err)
		}
		text, err := os.ReadFile(found[0])
		must(t, err)
		text[len(text)/2] ^= 1
		must(t, os.WriteFile(found[0], text, 0o600))

		code, out, errs := w.run(t.Context(), "", w.flags("--yes")...)
		if code != 0 || !strings.Contains(out, "The control plane of node cp1 is back") || !strings.Contains(errs, "from file://"+w.work+"/second") {
			t.Errorf("%s: exit code %d\n%s%s", what, code, out, errs)
		}

		// With no other copy it ends, before the first change.
		w = newWard(t)
		before := w.old()
		found, err = filepath.Glob(filepath.Join(w.work, "store/prod-*", what))
		must(t, err)
		must(t, os.WriteFile(found[0], text, 0o600))
		w.wants(exitVerify, "", w.flags("--yes")...)
		sameTree(t, before, w.tree())
		if len(w.machine.story) > 0 {
			t.Errorf("something was done: %v", w.machine.story)
		}
	}
}

func TestTheNewClustersMembersTellNothingOfWhatWasLost(t *testing.T) {
	h := &topology.Host{}
	h.Living.Members = []topology.Member{
		{Name: "cp1", State: topology.Answers, InBackup: true, Own: true, Revision: 1_000_000_041},
		{Name: "cp2", State: topology.Answers, InBackup: true, Revision: 57},
		{Name: "cp3", State: topology.Silent, InBackup: true, Revision: 99},
	}
	if revision, from := lastSeen(h); revision != 57 || !strings.Contains(from, "cp2") {
		t.Errorf("the last that was seen is %d, of %s", revision, from)
	}
}
