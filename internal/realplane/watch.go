package realplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// Watcher is a client that lists a resource once and then watches it for ever,
// as controllers and `kubectl get --watch` do: it connects again where it was, and
// lists again only when it is told that its resourceVersion is too old. Such
// clients are alive when a control plane is restored below them, and believe
// what they know unless resourceVersions go on.
type Watcher struct {
	api  *API
	path string // /api/v1/namespaces/team-a/configmaps
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	seen Watched
}

// Watched is what a Watcher has seen.
type Watched struct {
	Version  uint64            // the newest resourceVersion
	Lists    int               // 1: it never had to list again
	Watches  int               // connections that began well
	Events   int               // without bookmarks
	Expired  int               // times that its resourceVersion was too old
	Backward []string          // times that a resourceVersion was lower than one before: must be empty
	Objects  map[string]string // name -> resourceVersion
	Trouble  string            // the last error; connections come and go
}

// Watch begins to watch a collection. It ends with the test.
func (p *Plane) Watch(a *API, path string) *Watcher {
	ctx, stop := context.WithCancel(context.Background())
	w := &Watcher{api: a, path: path, stop: stop, done: make(chan struct{}), seen: Watched{Objects: map[string]string{}}}
	p.t.Cleanup(func() { w.Stop() })
	go func() {
		defer close(w.done)
		w.run(ctx)
	}()
	return w
}

// Seen is what the watcher has seen until now.
func (w *Watcher) Seen() Watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.seen
	out.Objects = map[string]string{}
	for name, version := range w.seen.Objects {
		out.Objects[name] = version
	}
	return out
}

// Stop ends the watcher and returns what it has seen.
func (w *Watcher) Stop() Watched {
	w.stop()
	<-w.done
	return w.Seen()
}

// Waits of a Watcher.
const (
	watchLimit = 20 * time.Second // of one connection, so that one to a dead machine ends
	watchAgain = 500 * time.Millisecond
)

// errExpired: the server no longer has what came after a resourceVersion.
var errExpired = errors.New("the resourceVersion is too old")

func (w *Watcher) run(ctx context.Context) {
	listed := false
	for ctx.Err() == nil {
		var err error
		if !listed {
			err = w.list(ctx)
			listed = err == nil
		} else {
			err = w.watch(ctx)
		}
		w.mu.Lock()
		var status *StatusError
		if errors.Is(err, errExpired) || errors.As(err, &status) && status.Code == http.StatusGone {
			w.seen.Expired++
			listed = false
		}
		if err != nil {
			w.seen.Trouble = err.Error()
		}
		w.mu.Unlock()
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(watchAgain):
			}
		}
	}
}

// item is what a Watcher wants of an object.
type item struct {
	Code     int // of a Status
	Message  string
	Metadata struct{ Namespace, Name, ResourceVersion string }
}

func (i item) name() string {
	if i.Metadata.Namespace == "" {
		return i.Metadata.Name
	}
	return i.Metadata.Namespace + "/" + i.Metadata.Name
}

func (w *Watcher) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	answer, err := w.api.open(ctx, http.MethodGet, w.path, nil)
	if err != nil {
		return err
	}
	defer answer.Close()
	var list struct {
		Metadata struct{ ResourceVersion string }
		Items    []item
	}
	if err := json.NewDecoder(answer).Decode(&list); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.Lists++
	w.seen.Objects = map[string]string{}
	for _, i := range list.Items {
		w.seen.Objects[i.name()] = i.Metadata.ResourceVersion
	}
	return w.advance("list", list.Metadata.ResourceVersion)
}

// advance takes note of a resourceVersion. The caller has the lock.
func (w *Watcher) advance(by, version string) error {
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return fmt.Errorf("%s: resourceVersion %q: %w", by, version, err)
	}
	if n < w.seen.Version {
		w.seen.Backward = append(w.seen.Backward, fmt.Sprintf("%s has resourceVersion %d, seen before was %d", by, n, w.seen.Version))
	}
	w.seen.Version = n
	return nil
}

// watch follows changes until the connection ends.
func (w *Watcher) watch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, watchLimit+5*time.Second)
	defer cancel()
	w.mu.Lock()
	query := url.Values{
		"watch": {"true"}, "allowWatchBookmarks": {"true"}, "timeoutSeconds": {strconv.Itoa(int(watchLimit.Seconds()))},
		"resourceVersion": {strconv.FormatUint(w.seen.Version, 10)},
	}
	w.mu.Unlock()
	answer, err := w.api.open(ctx, http.MethodGet, w.path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer answer.Close()
	w.mu.Lock()
	w.seen.Watches++
	w.mu.Unlock()
	decoder := json.NewDecoder(answer)
	for {
		var event struct {
			Type   string
			Object item
		}
		if err := decoder.Decode(&event); err != nil {
			return err
		}
		if err := w.take(event.Type, event.Object); err != nil {
			return err
		}
	}
}

func (w *Watcher) take(kind string, i item) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch kind {
	case "ERROR":
		if i.Code == http.StatusGone {
			return errExpired
		}
		return fmt.Errorf("watch %s: %d: %s", w.path, i.Code, i.Message)
	case "BOOKMARK":
	case "DELETED":
		w.seen.Events++
		delete(w.seen.Objects, i.name())
	default:
		w.seen.Events++
		w.seen.Objects[i.name()] = i.Metadata.ResourceVersion
	}
	return w.advance(kind+" "+i.name(), i.Metadata.ResourceVersion)
}
