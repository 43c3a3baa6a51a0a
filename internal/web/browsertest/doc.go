// Package browsertest looks at the status page in a real Chromium. It is a
// module of its own, since what drives a browser is large and serves nothing
// else. "make test-page" runs it.
package browsertest
