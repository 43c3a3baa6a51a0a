package record

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/spool"
)

func TestADamagedSpoolIsAGapAndNotTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		c := w.chains[0]
		w.etcd.puts(t, 10, "before")
		c.addFull(w.etcd, 0, "")
		r, stop := w.start()
		time.Sleep(5 * time.Second)
		c.fail(errors.New("no route"))
		w.etcd.puts(t, 3000, string(make([]byte, 1000)))
		time.Sleep(10 * time.Second)
		files, err := filepath.Glob(filepath.Join(w.dir, "*.spool"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		f, err := os.OpenFile(files[0], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), 300_000); err != nil {
			t.Fatal(err)
		}
		f.Close()
		c.fail(nil)
		time.Sleep(3 * time.Minute)
		if epoch, ok := w.asked("not recorded"); !ok || epoch > 1 {
			t.Fatalf("asked for %v", w.all())
		}
		if gaps := r.Status().Gaps; len(gaps) == 0 || gaps[0].From != 12 {
			t.Errorf("gaps %+v", gaps)
		}
		c.addFull(w.etcd, 0, "")
		full := w.etcd.head()
		for range 10 {
			w.etcd.puts(t, 10, "later")
			time.Sleep(5 * time.Second)
		}
		w.replay(c, full+1, w.etcd.head())
		if s := r.Status(); s.Stores[0].Err != "" || s.FullWanted != "" || s.Stores[0].Epoch != 1 {
			t.Errorf("afterwards: %+v", s)
		}
		stop()
	})
}

// A newer version may have written what this one does not know.
func TestASpoolThatIsNotUnderstoodIsGivenUpAndNotTheEnd(t *testing.T) {
	for name, payload := range map[string][]byte{
		"a record": {0x70, 1, 2, 3},
		"a note":   append([]byte{noteMark}, make([]byte, 60)...),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				c := w.chains[0]
				w.etcd.puts(t, 10, "before")
				c.addFull(w.etcd, 0, "")
				_, stop := w.start()
				time.Sleep(5 * time.Second)
				w.etcd.puts(t, 10, "recorded")
				time.Sleep(5 * time.Second)
				stop()
				log, err := spool.Open(w.dir, spool.Options{MaxBytes: 1 << 30})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := log.Append(payload); err != nil {
					t.Fatal(err)
				}
				if err := log.Close(); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					r, stop := w.start()
					w.etcd.puts(t, 10, "afterwards")
					time.Sleep(15 * time.Second)
					if s := r.Status(); !s.Active || len(s.Gaps) > 0 {
						t.Errorf("%+v", s)
					}
					stop()
				}
				w.replay(c, 12, w.etcd.head())
				if told := strings.Join(w.warnings(), "\n"); strings.Count(told, "not known to this version") != 1 {
					t.Errorf("told %q", told)
				}
			})
		})
	}
}
