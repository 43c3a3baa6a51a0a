package s3

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"lifeboat/storage"
)

// answering is a store whose server gives the answers of a handler, for those
// that versitygw never gives.
func answering(t *testing.T, handler http.HandlerFunc) *Store {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not a secret")
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	s, err := New(t.Context(), Config{Bucket: "b", Endpoint: server.URL, Region: "us-east-1", MaxBackoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeIdle(s) })
	return s
}

func TestAListWithoutAWayOnIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		more string // of each answer, after its one name
		want string // names before the error
	}{
		"no token":            {"", "a"},
		"an empty token":      {"<NextContinuationToken></NextContinuationToken>", "a"},
		"the same once more":  {"<NextContinuationToken>x</NextContinuationToken>", "a b"},
		"the end of the list": {"end", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			requests := 0
			s := answering(t, func(w http.ResponseWriter, _ *http.Request) {
				truncated := c.more != "end"
				fmt.Fprintf(w, `<ListBucketResult><IsTruncated>%v</IsTruncated>%s<Contents><Key>%c</Key><Size>1</Size></Contents></ListBucketResult>`,
					truncated, strings.TrimPrefix(c.more, "end"), 'a'+rune(requests))
				requests++
			})
			var got []string
			var last error
			for info, err := range s.List(t.Context(), "") {
				if last = err; err == nil {
					got = append(got, info.Name)
				}
			}
			if strings.Join(got, " ") != c.want || errors.Is(last, errLostPage) != (c.more != "end") || (last == nil) != (c.more == "end") {
				t.Errorf("listed %v, then %v", got, last)
			}
		})
	}
}

func TestVersionsWithoutAWayOnAreAnError(t *testing.T) {
	for name, c := range map[string]struct {
		more string
		want string // version ids before the end
		lost bool
	}{
		"no markers":         {"", "v0", true},
		"no version's":       {"<NextKeyMarker>k</NextKeyMarker>", "v0", true},
		"no key's":           {"<NextVersionIdMarker>v0</NextVersionIdMarker>", "v0", true},
		"the same once more": {"<NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v0</NextVersionIdMarker>", "v0 v1", true},
		"another key's":      {"<NextKeyMarker>k2</NextKeyMarker>", "v0", false},
	} {
		t.Run(name, func(t *testing.T) {
			requests := 0
			s := answering(t, func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `<ListVersionsResult><IsTruncated>true</IsTruncated>%s<Version><Key>k</Key><VersionId>v%d</VersionId><Size>1</Size></Version></ListVersionsResult>`, c.more, requests)
				requests++
			})
			var got []string
			var last error
			for v, err := range s.Versions(t.Context(), "k") {
				if last = err; err == nil {
					got = append(got, v.ID)
				}
			}
			if strings.Join(got, " ") != c.want || errors.Is(last, errLostPage) != c.lost || (last != nil) != c.lost {
				t.Errorf("versions %v, then %v", got, last)
			}
		})
	}
}

// A retention is over or not by the store's clock, however old the object is
// and whatever this machine's clock says.
func TestARetentionIsJudgedByTheStoresClock(t *testing.T) {
	put := time.Date(2031, 5, 1, 12, 0, 0, 0, time.UTC)
	until := put.AddDate(0, 0, 30)
	for name, c := range map[string]struct {
		now  time.Time
		hold string
		want error
	}{
		"it runs":                       {until.Add(-time.Minute), "", storage.ErrProtected},
		"it is over":                    {until.Add(time.Minute), "", storage.ErrPermission},
		"it is over, but a hold is not": {until.Add(time.Minute), "ON", storage.ErrProtected},
	} {
		t.Run(name, func(t *testing.T) {
			s := answering(t, func(w http.ResponseWriter, r *http.Request) {
				header := w.Header()
				header.Set("Date", c.now.Format(http.TimeFormat))
				if r.Method == http.MethodDelete {
					w.WriteHeader(http.StatusForbidden)
					fmt.Fprint(w, `<Error><Code>AccessDenied</Code></Error>`)
					return
				}
				header.Set("Last-Modified", put.Format(http.TimeFormat))
				header.Set("x-amz-object-lock-mode", "COMPLIANCE")
				header.Set("x-amz-object-lock-retain-until-date", until.Format(time.RFC3339))
				if c.hold != "" {
					header.Set("x-amz-object-lock-legal-hold", c.hold)
				}
			})
			err := s.Delete(t.Context(), "x")
			if !errors.Is(err, c.want) || c.want == storage.ErrPermission && errors.Is(err, storage.ErrProtected) {
				t.Errorf("delete: %v, want %v", err, c.want)
			}
		})
	}
}
