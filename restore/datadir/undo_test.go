package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"lifeboat/internal/etcdtest/cluster"
)

// wantInstalled checks that Installed says so of this restore and of no other.
func wantInstalled(t *testing.T, run crashRun, want bool) {
	t.Helper()
	for _, id := range []string{run.ID, "another"} {
		got, err := Installed(run.DataDir, run.AsideDir, id)
		if err != nil || got != (want && id == run.ID) {
			t.Fatalf("restore %s counts as installed: %v, %v", id, got, err)
		}
	}
}

// wantPutBack calls PutBack in a process of its own and then here, and checks
// what came out: the old member in place, the new one kept.
func wantPutBack(t *testing.T, run crashRun, had, undone bool) {
	t.Helper()
	run.PutBack, run.Point = true, "none"
	if crash(t, run) {
		t.Fatal("it died at no point")
	}
	kept, err := PutBack(run.DataDir, run.AsideDir, run.ID)
	if err != nil {
		t.Fatal(err)
	}
	checkOld(t, had, run.DataDir, run.AsideDir)
	old, others := find(t, present(run.DataDir, run.AsideDir)...)
	if had != slices.Equal(old, []string{filepath.Join(run.DataDir, "member")}) {
		t.Errorf("the old member is in %v", old)
	}
	switch {
	case undone && (kept == "" || !slices.Equal(others, []string{kept}) || filepath.Base(kept) != undoneName || filepath.Base(filepath.Dir(kept)) != run.ID):
		t.Errorf("kept in %q, new members in %v", kept, others)
	case !undone && (kept != "" || len(others) > 0):
		t.Errorf("nothing was installed, but kept in %q and new members in %v", kept, others)
	}
	if _, err := os.Stat(filepath.Join(run.DataDir, stagingName)); err == nil {
		t.Error("the staging folder is left over")
	}
	wantInstalled(t, run, false)
}

func present(roots ...string) []string {
	return slices.DeleteFunc(roots, func(dir string) bool { ok, _ := exists(dir); return !ok })
}

// undoCases calls test for every kind of place that a member is restored in.
func undoCases(t *testing.T, test func(t *testing.T, run crashRun, had bool)) {
	snapshot := snapshotFile(t)
	for _, had := range []bool{true, false} {
		for _, noExchange := range []bool{false, true} {
			for _, aside := range []string{"beside", "elsewhere"} {
				if !had && noExchange {
					continue // nothing to exchange
				}
				t.Run(fmt.Sprintf("had %v/no exchange %v/aside %s", had, noExchange, aside), func(t *testing.T) {
					t.Parallel()
					run := crashRun{Snapshot: snapshot, DataDir: filepath.Join(t.TempDir(), "etcd"), AsideDir: filepath.Join(t.TempDir(), "aside"), ID: "r1", NoExchange: noExchange}
					if aside == "elsewhere" {
						run.AsideDir = otherFileSystem(t)
					}
					if had {
						placeOld(t, run.DataDir)
					}
					test(t, run, had)
				})
			}
		}
	}
}

func TestAPutBackThatIsKilledAtAnyPointComesOutRightWhenCalledAgain(t *testing.T) {
	for _, point := range []string{"none", "marked undone", "swapped", "between undone", "taken away", "kept"} {
		t.Run(point, func(t *testing.T) {
			undoCases(t, func(t *testing.T, run crashRun, had bool) {
				run.Point = "none"
				if crash(t, run) {
					t.Fatal("it died at no point")
				}
				wantInstalled(t, run, true)
				run.PutBack, run.Point = true, point
				reached := map[string]bool{
					"marked undone": true, "taken away": !had, "swapped": had && !run.NoExchange, "between undone": had && run.NoExchange, "kept": had,
				}
				if died := crash(t, run); died != reached[point] {
					t.Fatalf("reached the point: %v", died)
				}
				checkOld(t, had, present(run.DataDir, run.AsideDir)...)
				if inPlace, _ := exists(filepath.Join(run.DataDir, "member")); had && !inPlace && point != "between undone" {
					t.Error("neither the old nor the new member is in place")
				}
				wantInstalled(t, run, point == "marked undone")
				wantPutBack(t, run, had, true)
			})
		})
	}
}

func TestARestoreThatIsKilledAtAnyPointCanBePutBack(t *testing.T) {
	for _, point := range crashPoints[slices.Index(crashPoints, "finished"):] {
		if point == "moved" {
			continue // a recovery's
		}
		t.Run(point, func(t *testing.T) {
			undoCases(t, func(t *testing.T, run crashRun, had bool) {
				run.Point = point
				if died := crash(t, run); died != reaches(point, had, run.NoExchange) {
					t.Fatalf("reached the point: %v", died)
				}
				done := slices.Index(crashPoints, point) >= slices.Index(crashPoints, "between")
				if !done || had && !run.NoExchange { // else PutBack itself has to finish it
					wantInstalled(t, run, done)
				}
				wantPutBack(t, run, had, done)
			})
		})
	}
}

func TestARestoreCanBeRepeatedAfterItWasPutBack(t *testing.T) {
	undoCases(t, func(t *testing.T, run crashRun, had bool) {
		run.Point = "none"
		var places []string
		for range 3 {
			crash(t, run)
			wantInstalled(t, run, true)
			kept, err := PutBack(run.DataDir, run.AsideDir, run.ID)
			if err != nil || slices.Contains(places, kept) {
				t.Fatalf("kept in %q, before in %q: %v", kept, places, err)
			}
			places = append(places, kept)
			if again, err := PutBack(run.DataDir, run.AsideDir, run.ID); err != nil || again != kept {
				t.Fatalf("a second call says %q, the first said %q: %v", again, kept, err)
			}
			wantInstalled(t, run, false)
			if old, _ := find(t, run.DataDir); had != slices.Equal(old, []string{filepath.Join(run.DataDir, "member")}) {
				t.Fatalf("the old member is in %v", old)
			}
		}
	})
}

func TestWhatWasBeforeTheFirstInstallOfARestoreIsPutBack(t *testing.T) {
	undoCases(t, func(t *testing.T, run crashRun, had bool) {
		run.Point = "none"
		crash(t, run)
		crash(t, run) // the same again: the first one's member goes aside
		kept, err := PutBack(run.DataDir, run.AsideDir, run.ID)
		if err != nil || kept == "" {
			t.Fatal(kept, err)
		}
		old, others := find(t, present(run.DataDir, run.AsideDir)...)
		if had != slices.Equal(old, []string{filepath.Join(run.DataDir, "member")}) || len(others) != 2 || !slices.Contains(others, kept) {
			t.Errorf("old %v, others %v", old, others)
		}
		wantInstalled(t, run, false)
		if again, err := PutBack(run.DataDir, run.AsideDir, run.ID); err != nil || again != kept {
			t.Errorf("a second call says %q, the first said %q: %v", again, kept, err)
		}
	})
}

func TestAMemberThatCameIntoPlaceSinceIsLeftThere(t *testing.T) {
	undoCases(t, func(t *testing.T, run crashRun, had bool) {
		first, second := run, run
		first.Point, second.Point, second.ID = "none", "none", "r2"
		crash(t, first)
		crash(t, second)
		if kept, err := PutBack(first.DataDir, first.AsideDir, first.ID); err != nil || kept != "" {
			t.Fatalf("the first restore's member was not in place: %q, %v", kept, err)
		}
		wantInstalled(t, second, true)
		if kept, err := PutBack(second.DataDir, second.AsideDir, second.ID); err != nil || kept == "" {
			t.Fatal(kept, err)
		}
		// What the second had replaced is the first's again.
		wantInstalled(t, first, true)
		if _, err := PutBack(first.DataDir, first.AsideDir, first.ID); err != nil {
			t.Fatal(err)
		}
		if old, _ := find(t, run.DataDir); had != slices.Equal(old, []string{filepath.Join(run.DataDir, "member")}) {
			t.Errorf("the old member is in %v", old)
		}
	})
}

func TestAnOldMemberThatSomebodyMovedBackIsNotInstalled(t *testing.T) {
	undoCases(t, func(t *testing.T, run crashRun, had bool) {
		if !had {
			return
		}
		run.Point = "none"
		crash(t, run)
		old, _ := find(t, present(run.DataDir, run.AsideDir)...)
		member := filepath.Join(run.DataDir, "member")
		if err := errors.Join(os.RemoveAll(member), os.Rename(old[0], member)); err != nil {
			t.Fatal(err)
		}
		wantInstalled(t, run, false)
		if kept, err := PutBack(run.DataDir, run.AsideDir, run.ID); err != nil || kept != "" {
			t.Errorf("put back: %q, %v", kept, err)
		}
		checkOld(t, true, run.DataDir)
	})
}

func TestWithoutTheOldMemberTheNewOneStays(t *testing.T) {
	undoCases(t, func(t *testing.T, run crashRun, had bool) {
		if !had {
			return
		}
		run.Point = "none"
		crash(t, run)
		old, _ := find(t, present(run.DataDir, run.AsideDir)...)
		elsewhere := filepath.Join(run.DataDir, "elsewhere")
		if err := os.Rename(old[0], elsewhere); err != nil {
			t.Fatal(err)
		}
		_, err := PutBack(run.DataDir, run.AsideDir, run.ID)
		if err == nil || !strings.Contains(err.Error(), filepath.Dir(old[0])) {
			t.Errorf("error %v, want one that names %s", err, filepath.Dir(old[0]))
		}
		wantInstalled(t, run, true)
		// A copy has another inode, and is the only one there.
		if err := errors.Join(os.CopyFS(old[0], os.DirFS(elsewhere)), os.RemoveAll(elsewhere)); err != nil {
			t.Fatal(err)
		}
		wantPutBack(t, run, true, true)
	})
}

func TestAMissingDataDirectoryHasNothingToUndo(t *testing.T) {
	run := crashRun{DataDir: filepath.Join(t.TempDir(), "none"), ID: "r1"}
	wantInstalled(t, run, false)
	if kept, err := PutBack(run.DataDir, "", run.ID); kept != "" || err != nil {
		t.Errorf("put back: %q, %v", kept, err)
	}
	if _, err := os.Stat(run.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory: %v", err)
	}
	for _, bad := range []Options{{DataDir: run.DataDir, ID: "../x"}, {DataDir: run.DataDir, ID: ""}, {DataDir: run.DataDir, ID: "r1", AsideDir: "relative"}, {ID: "r1"}} {
		if _, err := PutBack(bad.DataDir, bad.AsideDir, bad.ID); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: error %v", bad, err)
		}
		if _, err := Installed(bad.DataDir, bad.AsideDir, bad.ID); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: error %v", bad, err)
		}
	}
}

// TestALiveRestore goes the whole way on a real etcd: all but Install while it
// runs, then back to the old member, which goes on as if nothing had been.
func TestALiveRestore(t *testing.T) {
	for _, version := range versions {
		t.Run("of etcd "+version, func(t *testing.T) {
			t.Parallel()
			dataDir := t.TempDir()
			c := cluster.StartBinary(t, version, cluster.Options{DataDir: dataDir})
			opts := options(crashRun{DataDir: dataDir, ID: "r1"})
			opts.Live = true
			if err := Preflight(opts); err != nil {
				t.Fatal(err)
			}
			s, err := Begin(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Abort()
			snapshot, err := c.Client().Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer snapshot.Close()
			if err := s.Receive(t.Context(), snapshot); err != nil {
				t.Fatal(err)
			}
			if err := s.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Install(t.Context()); !errors.Is(err, ErrInUse) {
				t.Fatalf("install beside an etcd: %v", err)
			}
			if _, err := c.Client().Put(t.Context(), "still", "alive"); err != nil {
				t.Fatal(err)
			}
			c.Stop(0)
			if _, err := s.Install(t.Context()); err != nil {
				t.Fatal(err)
			}

			restored := cluster.StartBinary(t, version, cluster.Options{DataDir: dataDir})
			if got, err := restored.Client().Get(t.Context(), "still"); err != nil || got.Count != 0 {
				t.Fatalf("the restored etcd has %v, %v", got, err)
			}
			if is, err := Installed(dataDir, "", "r1"); err != nil || !is {
				t.Fatalf("installed, and running: %v, %v", is, err)
			}
			if _, err := PutBack(dataDir, "", "r1"); !errors.Is(err, ErrInUse) {
				t.Fatalf("put back beside an etcd: %v", err)
			}
			restored.Stop(0)
			kept, err := PutBack(dataDir, "", "r1")
			if err != nil {
				t.Fatal(err)
			}

			before := cluster.StartBinary(t, version, cluster.Options{DataDir: dataDir})
			if got, err := before.Client().Get(t.Context(), "still"); err != nil || got.Count != 1 {
				t.Fatalf("the old etcd has %v, %v", got, err)
			}
			// With nothing to undo, an etcd may run.
			if again, err := PutBack(dataDir, "", "r1"); err != nil || again != kept {
				t.Errorf("a second call: %q, %v; the first said %q", again, err, kept)
			}
		})
	}
}

func TestPutBackRefusesALockedMember(t *testing.T) {
	dataDir := t.TempDir()
	placeOld(t, dataDir)
	run := crashRun{Snapshot: snapshotFile(t), DataDir: dataDir, ID: "r1", Point: "none"}
	crash(t, run)
	db, err := os.Open(filepath.Join(dataDir, "member", "snap", "db"))
	if err == nil {
		err = syscall.Flock(int(db.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PutBack(dataDir, "", "r1"); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v", err)
	}
	db.Close()
	if m, err := readMark(filepath.Join(dataDir, "member")); err != nil || m == nil || m.Undoing {
		t.Errorf("the refused one left the mark %+v, %v", m, err)
	}
	wantPutBack(t, run, true, true)
}

func TestADamagedMarkIsToldAndStopsNoRestore(t *testing.T) {
	dataDir := t.TempDir()
	placeOld(t, dataDir)
	path := filepath.Join(dataDir, "member", markName)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Installed(dataDir, "", "r1"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names %s", err, path)
	}
	if _, err := PutBack(dataDir, "", "r1"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names %s", err, path)
	}
	run := crashRun{Snapshot: snapshotFile(t), DataDir: dataDir, ID: "r1", Point: "none"}
	crash(t, run)
	wantInstalled(t, run, true)
	if kept, err := PutBack(dataDir, "", "r1"); err != nil || kept == "" {
		t.Errorf("put back: %q, %v", kept, err)
	}
	checkOld(t, true, dataDir)
}
