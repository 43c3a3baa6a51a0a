package etcd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// authRevisionMetric is etcd's name for how often users, roles and rights were
// changed, in all versions that are supported.
const authRevisionMetric = "etcd_debugging_auth_revision"

// mostMetrics bounds what is read of a metrics page, in bytes; etcd's has some
// hundred kilobytes.
const mostMetrics = 8 << 20

// AuthRevision is the revision of users, roles and rights as the member has it;
// it never falls within one history. It stands on the member's metrics page,
// which the client port serves unless etcd was told otherwise; AuthStatus would
// go through etcd's log like a write. Where it is not served that is an error.
func (w Watchable) AuthRevision(ctx context.Context) (uint64, error) {
	page := strings.TrimSuffix(w.Endpoint, "/") + "/metrics"
	fail := func(err error) (uint64, error) {
		return 0, fmt.Errorf("read the revision of users and roles from %s: %w", page, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return fail(err)
	}
	response, err := w.cluster.pages().Do(request)
	if err != nil {
		return fail(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("it answers %s", response.Status))
	}
	revision, err := authRevision(io.LimitReader(response.Body, mostMetrics))
	if err != nil {
		return fail(err)
	}
	return revision, nil
}

// authRevision finds it in the text form of Prometheus, where numbers may be
// floating-point ones.
func authRevision(page io.Reader) (uint64, error) {
	lines := bufio.NewScanner(page)
	for lines.Scan() {
		text, found := strings.CutPrefix(lines.Text(), authRevisionMetric+" ")
		if !found {
			continue
		}
		number, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil || !(number >= 0 && number < 1<<53) {
			return 0, fmt.Errorf("%q is no revision", text)
		}
		return uint64(number), nil
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("%s is not there", authRevisionMetric)
}

// pages is the client for what members serve beside their API. Its connections
// are not kept: the member is asked once a minute.
func (c *Cluster) pages() *http.Client {
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: c.tls.Clone(), DisableKeepAlives: true, DisableCompression: true, Proxy: nil},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
}
