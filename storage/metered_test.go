package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/storage"
	"lifeboat/storage/memory"
	"lifeboat/storage/storetest"
)

// meter keeps what was reported.
type meter struct {
	mu      sync.Mutex
	reports []string
}

func (m *meter) report(op, code string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reports = append(m.reports, op+" "+code)
}

// take returns the reports since the last take.
func (m *meter) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := m.reports
	m.reports = nil
	return taken
}

func TestAMeteredStoreIsAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) storage.Store {
		return storage.Metered(memory.New(memory.WithVersioning()), func(string, string) {})
	}, storetest.Protects())
}

// plain hides all that a store can do beyond Store.
type plain struct{ storage.Store }

// ticking is a store that tells its time.
type ticking struct{ storage.Store }

func (ticking) Now(context.Context) (time.Time, error) {
	return time.Time{}, storage.ErrPermission
}

type versionedTicking struct {
	storage.Store
	storage.Versioned
}

func (versionedTicking) Now(context.Context) (time.Time, error) { return time.Unix(1, 0), nil }

func TestAMeteredStoreCanWhatItsStoreCan(t *testing.T) {
	store := memory.New(memory.WithVersioning())
	for name, c := range map[string]struct {
		store              storage.Store
		versioned, telling bool
	}{
		"neither": {plain{store}, false, false},
		"versions": {struct {
			storage.Store
			storage.Versioned
		}{store, store}, true, false},
		"time": {ticking{plain{store}}, false, true},
		"both": {versionedTicking{store, store}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := storage.Metered(c.store, func(string, string) {})
			if _, ok := m.(storage.Versioned); ok != c.versioned {
				t.Errorf("versioned: %v", ok)
			}
			if _, ok := m.(storage.Clock); ok != c.telling {
				t.Errorf("tells its time: %v", ok)
			}
			if _, ok := m.(storage.Ranger); !ok {
				t.Error("it lists from the first name only")
			}
		})
	}
}

func TestEveryOperationIsReportedOnceWhenItIsOver(t *testing.T) {
	ctx := t.Context()
	var m meter
	inner := memory.New(memory.WithVersioning())
	s := storage.Metered(versionedTicking{inner, inner}, m.report)
	step := func(what string, want ...string) {
		t.Helper()
		if got := m.take(); !slices.Equal(got, want) {
			t.Errorf("%s reported %q, want %q", what, got, want)
		}
	}
	put := func(opts storage.PutOptions) error { return s.Put(ctx, "a", strings.NewReader("one"), opts) }

	_ = put(storage.PutOptions{})
	step("a put", "put ok")
	_ = put(storage.PutOptions{IfAbsent: true})
	step("a second one", "put exist")

	rc, _, err := s.Open(ctx, "a", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	step("an open whose reader is not closed")
	_ = rc.Close()
	_ = rc.Close()
	step("closing twice", "open ok")
	_, _, _ = s.Open(ctx, "none", storage.Range{})
	step("an open of nothing", "open not_exist")

	for range storage.ListAfter(ctx, s, "", "A") {
		break
	}
	step("the end of a list", "list ok")
	for range s.List(ctx, "") {
		break
	}
	step("a list that is left", "list ok")
	for v := range s.(storage.Versioned).Versions(ctx, "a") {
		step("versions, half-way")
		rc, _, err := s.(storage.Versioned).OpenVersion(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		_ = rc.Close()
		step("a version", "open_version ok")
	}
	step("versions", "versions ok")
	_ = s.Delete(ctx, "a")
	step("a delete", "delete ok")
	_ = s.Delete(ctx, "../a")
	step("a delete outside", "delete invalid_name")

	_, _ = s.(storage.Clock).Now(ctx)
	step("the time", "now ok")
	_, _ = storage.Metered(ticking{inner}, m.report).(storage.Clock).Now(ctx)
	step("a time that is not told", "now permission")
}

// broken gives out readers that fail.
type broken struct {
	storage.Store
	read, close error
}

func (b broken) Open(context.Context, string, storage.Range) (io.ReadCloser, storage.Info, error) {
	return struct {
		io.Reader
		io.Closer
	}{reading{b.read}, closing{b.close}}, storage.Info{}, nil
}

type reading [1]error

func (r reading) Read([]byte) (int, error) { return 0, r[0] }

type closing [1]error

func (c closing) Close() error { return c[0] }

func TestAReadThatFailsIsReportedByItsFirstError(t *testing.T) {
	for name, c := range map[string]struct {
		read, close error
		want        string
	}{
		"read to the end":                {io.EOF, nil, "open ok"},
		"torn":                           {io.ErrUnexpectedEOF, nil, "open error"},
		"stalled, and closing fails":     {storage.ErrStalled, io.ErrClosedPipe, "open stalled"},
		"read to the end, closing fails": {io.EOF, storage.ErrPermission, "open permission"},
	} {
		t.Run(name, func(t *testing.T) {
			var m meter
			rc, _, err := storage.Metered(broken{nil, c.read, c.close}, m.report).Open(t.Context(), "a", storage.Range{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rc.Read(make([]byte, 1)); err != c.read {
				t.Errorf("read: %v, want the store's own %v", err, c.read)
			}
			if err := rc.Close(); err != c.close {
				t.Errorf("close: %v", err)
			}
			if got := m.take(); !slices.Equal(got, []string{c.want}) {
				t.Errorf("reported %q, want %s", got, c.want)
			}
		})
	}
}

func TestTheCodeOfAnErrorIsNeverItsText(t *testing.T) {
	for want, err := range map[string]error{
		"ok": nil, "exist": storage.ErrExist, "not_exist": storage.ErrNotExist, "invalid_name": storage.ErrInvalidName,
		"permission": storage.ErrPermission, "protected": storage.ErrProtected, "full": storage.ErrFull, "stalled": storage.ErrStalled,
		"timeout": context.DeadlineExceeded, "canceled": context.Canceled, "error": errors.New("secret https://key@host"),
	} {
		if err != nil {
			err = fmt.Errorf("put secret: %w", err)
		}
		if got := storage.Code(err); got != want {
			t.Errorf("%v has the code %s, want %s", err, got, want)
		}
	}
}
