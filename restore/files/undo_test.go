package files

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/seal"
)

func TestUndoGivesBackWhatWasThere(t *testing.T) {
	for _, place := range places {
		t.Run("aside on the "+place, func(t *testing.T) {
			m := newMachine(t, place)
			m.mustApply()
			restored := m.looks()
			got := m.mustUndo()
			m.mustBeAsBefore("after the undo")
			want := Undone{PutBack: 4, Moved: 4, Removed: 1, Adjusted: got.Adjusted, Dir: filepath.Join(m.aside, "r1.undone")}
			if fmt.Sprint(*got) != fmt.Sprint(want) || got.Adjusted < 3 {
				t.Errorf("undone %+v, want %+v", *got, want)
			}
			if diff := m.undone(); !maps.Equal(diff, map[string]string{
				"etc/kubernetes/admin.conf": "admin", "etc/kubernetes/pki/ca.key": "key",
				"etc/kubernetes/pki/current": "-> /etc/kubernetes/pki/ca.key", "etc/kubernetes/was-file/new": "new",
			}) {
				t.Errorf("moved away: %q", diff)
			}
			_, steps, err := m.undo(0)
			if err != nil || steps != 0 {
				t.Errorf("a second undo takes %d steps, %v", steps, err)
			}
			// The same restore can be done and undone again.
			m.mustApply()
			if again := m.looks(); again != restored {
				t.Errorf("restored again:\n%s\nthe first time:\n%s", again, restored)
			}
			m.mustUndo()
			m.mustBeAsBefore("after the second undo")
			if got := m.undone(); len(got) != 4 {
				t.Errorf("moved away: %q", got)
			}
		})
	}
}

func TestWhatSomebodyWroteSinceIsKept(t *testing.T) {
	for _, place := range places {
		t.Run("aside on the "+place, func(t *testing.T) {
			m := newMachine(t, place)
			m.mustApply()
			m.write("etc/kubernetes/admin.conf", "somebody's")
			m.write("etc/kubernetes/was-file/new", "somebody's new")
			if err := os.Remove(m.path("etc/kubernetes/pki/current")); err != nil {
				t.Fatal(err)
			}
			got := m.mustUndo()
			m.mustBeAsBefore("after the undo")
			if len(got.Left) != 0 {
				t.Errorf("left %q", got.Left)
			}
			if got := m.undone(); !maps.Equal(got, map[string]string{
				"etc/kubernetes/admin.conf": "somebody's", "etc/kubernetes/pki/ca.key": "key", "etc/kubernetes/was-file/new": "somebody's new",
			}) {
				t.Errorf("moved away: %q", got)
			}
		})
	}
}

func TestWhatSomebodyWroteBetweenTwoRunsOfTheRestoreIsKept(t *testing.T) {
	for _, place := range places {
		t.Run("aside on the "+place, func(t *testing.T) {
			m := newMachine(t, place)
			m.mustApply()
			for _, name := range []string{"etc/kubernetes/admin.conf", "etc/kubernetes/pki/same"} {
				m.write(name, "somebody's")
			}
			m.mustApply() // sets them aside, beside the originals
			m.mustUndo()
			m.mustBeAsBefore("after the undo")
			for _, kept := range []string{"etc/kubernetes/admin.conf.1", "etc/kubernetes/pki/same"} {
				if body, err := os.ReadFile(filepath.Join(m.aside, "r1", kept)); err != nil || string(body) != "somebody's" {
					t.Errorf("%s: %q, %v", kept, body, err)
				}
			}
		})
	}
}

func TestAFileThatWasNotReachedStaysAsSomebodyLeftIt(t *testing.T) {
	m := newMachine(t, places[0])
	if _, err := m.apply(1); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	m.write("etc/kubernetes/admin.conf", "somebody's")
	m.mustUndo()
	if body, err := os.ReadFile(m.path("etc/kubernetes/admin.conf")); err != nil || string(body) != "somebody's" {
		t.Errorf("%q, %v", body, err)
	}
}

func TestAFileThatChangedBeforeItWasReplacedComesBackAsItWasThen(t *testing.T) {
	for _, place := range places {
		t.Run("aside on the "+place, func(t *testing.T) {
			m := newMachine(t, place)
			if _, err := m.apply(1); !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			m.write("etc/kubernetes/admin.conf", "somebody's")
			m.mustApply()
			m.mustUndo()
			if body, err := os.ReadFile(m.path("etc/kubernetes/admin.conf")); err != nil || string(body) != "somebody's" {
				t.Errorf("%q, %v", body, err)
			}
			if _, steps, err := m.undo(0); err != nil || steps != 0 {
				t.Errorf("a second undo takes %d steps, %v", steps, err)
			}
		})
	}
}

func TestAFolderThatWasAsStoredGetsItsTimeBack(t *testing.T) {
	m := newMachine(t, places[0])
	m.mustApply()
	pki := m.path("etc/kubernetes/pki")
	info, err := os.Stat(pki)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(pki, "ca.key")), os.Chtimes(pki, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
	m.before, m.was = Before{}, m.looks()
	m.mustApply()
	m.mustUndo()
	m.mustBeAsBefore("after the undo")
}

func TestFoldersWithSomebodysFilesStay(t *testing.T) {
	m := newMachine(t, places[0])
	if err := os.RemoveAll(m.path("etc/kubernetes/pki")); err != nil {
		t.Fatal(err)
	}
	m.mustApply()
	m.write("etc/kubernetes/pki/mine", "mine")
	got := m.mustUndo()
	if len(got.Left) != 1 || !strings.HasPrefix(got.Left[0], "etc/kubernetes/pki: ") {
		t.Errorf("left %q", got.Left)
	}
	if entries, err := os.ReadDir(m.path("etc/kubernetes/pki")); err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

func TestAFolderInAnOriginalsPlaceMakesWay(t *testing.T) {
	for _, place := range places {
		t.Run("aside on the "+place, func(t *testing.T) {
			m := newMachine(t, place)
			m.mustApply()
			m.write("etc/kubernetes/was-file/mine", "mine") // in the folder that took a file's place
			result, _, err := m.undo(0)
			if place == places[1] {
				// A folder is not copied: all else is undone, and this waits for somebody.
				if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), filepath.Join(m.aside, "r1/etc/kubernetes/was-file")) {
					t.Fatalf("%+v, %v", result, err)
				}
				if body, err := os.ReadFile(m.path("etc/kubernetes/admin.conf")); err != nil || string(body) != "old admin" {
					t.Errorf("%q, %v", body, err)
				}
				if err := os.Remove(m.path("etc/kubernetes/was-file/mine")); err != nil {
					t.Fatal(err)
				}
				m.mustUndo()
			} else if err != nil || m.undone()["etc/kubernetes/was-file.1/mine"] != "mine" {
				t.Fatalf("%v, moved away: %q", err, m.undone())
			}
			m.mustBeAsBefore("after the undo")
		})
	}
}

func TestAnAdjustedFileThatSomebodyRewroteKeepsItsMode(t *testing.T) {
	m := newMachine(t, places[0])
	m.mustApply()
	m.write("etc/kubernetes/pki/same", "a new secret")
	if err := os.Chmod(m.path("etc/kubernetes/pki/same"), 0o400); err != nil {
		t.Fatal(err)
	}
	got := m.mustUndo()
	info, err := os.Lstat(m.path("etc/kubernetes/pki/same"))
	if err != nil || info.Mode() != 0o400 || len(got.Left) != 1 || !strings.HasPrefix(got.Left[0], "etc/kubernetes/pki/same: ") {
		t.Errorf("%v, %v, left %q", info, err, got.Left)
	}
}

func TestAFolderThatSomebodyRemovedComesBackWithItsFiles(t *testing.T) {
	m := newMachine(t, places[1])
	m.mustApply()
	if err := os.RemoveAll(m.path("etc/kubernetes/pki")); err != nil {
		t.Fatal(err)
	}
	m.mustUndo()
	for name, body := range old {
		if got, err := os.ReadFile(m.path(name)); err != nil || string(got) != body {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if info, err := os.Lstat(m.path("etc/kubernetes/pki")); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("the folder: %v, %v", info, err)
	}
}

func TestUndoFollowsNoLinkOutOfTheRoot(t *testing.T) {
	for _, place := range places {
		t.Run("aside on the "+place, func(t *testing.T) {
			m := newMachine(t, place)
			m.mustApply()
			outside := t.TempDir()
			for _, dir := range []string{"etc/kubernetes/pki", "etc/kubernetes/was-file"} {
				to := filepath.Join(outside, filepath.Base(dir))
				if err := errors.Join(os.CopyFS(to, os.DirFS(m.path(dir))), os.RemoveAll(m.path(dir)), os.Symlink(to, m.path(dir))); err != nil {
					t.Fatal(err)
				}
			}
			was := looks(t, outside)
			_, _, err := m.undo(0)
			if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "etc/kubernetes/pki/ca.key") {
				t.Errorf("error %v", err)
			}
			if got := looks(t, outside); got != was {
				t.Errorf("outside:\n%s\nbefore:\n%s", got, was)
			}
			for _, name := range []string{"etc/kubernetes/admin.conf", "etc/kubernetes/was-file"} {
				if body, err := os.ReadFile(m.path(name)); err != nil || string(body) != old[name] {
					t.Errorf("%s: %q, %v", name, body, err)
				}
			}
		})
	}
}

// archiveOf holds files in etc: names and bodies by turns.
func archiveOf(t *testing.T, pairs ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := seal.NewArchiveWriter(&out)
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	if err := w.AddDir(seal.Header{Name: "etc", Mode: 0o755, ModTime: at}); err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(pairs, 2) {
		h := seal.Header{Name: pair[0], Mode: 0o600, ModTime: at, Size: int64(len(pair[1]))}
		if err := w.AddFile(h, strings.NewReader(pair[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestNamesThatLookLikeNumberedOnesAreToldApart(t *testing.T) {
	m := newMachine(t, places[0])
	m.archive = archiveOf(t, "etc/a", "new a", "etc/a.1", "new a.1")
	m.write("etc/a", "old a")
	m.write("etc/a.1", "old a.1")
	if _, err := m.apply(4); !errors.Is(err, errKilled) { // etc/a is in place
		t.Fatal(err)
	}
	m.write("etc/a", "somebody's")
	if _, err := m.apply(4); !errors.Is(err, errKilled) { // and again, its second original as a.1
		t.Fatal(err)
	}
	m.mustUndo()
	if body, err := os.ReadFile(m.path("etc/a.1")); err != nil || string(body) != "old a.1" {
		t.Errorf("stopped before a.1 was reached: %q, %v", body, err)
	}
	m.mustApply()
	m.mustUndo()
	for name, body := range map[string]string{"etc/a": "old a", "etc/a.1": "old a.1"} {
		if got, err := os.ReadFile(m.path(name)); err != nil || string(got) != body {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestUndoRefusesWhatIsNoBeforeAndMeetsNoRestore(t *testing.T) {
	m := newMachine(t, places[0])
	for _, bad := range []string{"../etc/shadow", "/etc/shadow", "", "."} {
		for _, b := range []Before{{Created: []Created{{Name: bad}}}, {Replaced: []Former{{Name: bad}}}, {Adjusted: []Former{{Name: bad}}}} {
			if _, err := Undo(t.Context(), m.root, m.aside, "r1", b); !errors.Is(err, ErrInvalid) {
				t.Errorf("%q: error %v", bad, err)
			}
		}
	}
	for _, names := range [][2]string{{"relative", "r1"}, {m.aside, "../x"}, {m.aside, ""}} {
		if _, err := Undo(t.Context(), m.root, names[0], names[1], Before{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: error %v", names, err)
		}
	}
	d, err := openDisk(m.root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.root.Close()
	unlock, err := d.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Undo(t.Context(), m.root, m.aside, "r1", Before{}); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v, want in use", err)
	}
	unlock()
	if got, err := Undo(t.Context(), m.root, m.aside, "r1", Before{}); err != nil || got.PutBack+got.Moved+got.Removed+got.Adjusted != 0 {
		t.Errorf("an empty undo: %+v, %v", got, err)
	}
	m.mustBeAsBefore("after nothing")
	if _, err := os.Lstat(m.aside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an undo of nothing made the aside folder: %v", err)
	}
}

func TestBeforeSaysWhatAnApplyWillChange(t *testing.T) {
	m := newMachine(t, places[0])
	if _, err := m.apply(1); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	var created, replaced, adjusted []string
	for _, c := range m.before.Created {
		created = append(created, c.Name)
	}
	for _, f := range m.before.Replaced {
		replaced = append(replaced, f.Name)
		if (f.SHA256 == "") == (f.Link == "") {
			t.Errorf("%+v can't be told from others", f)
		}
	}
	for _, f := range m.before.Adjusted {
		adjusted = append(adjusted, f.Name)
	}
	if !slices.Equal(created, []string{"etc/kubernetes/was-file/new"}) {
		t.Errorf("created %q", created)
	}
	if want := []string{"etc/kubernetes/admin.conf", "etc/kubernetes/pki/ca.key", "etc/kubernetes/pki/current", "etc/kubernetes/was-file"}; !slices.Equal(replaced, want) {
		t.Errorf("replaced %q", replaced)
	}
	if want := []string{"etc", "etc/kubernetes", "etc/kubernetes/pki", "etc/kubernetes/pki/same"}; !slices.Equal(adjusted, want) {
		t.Errorf("adjusted %q", adjusted)
	}
}
