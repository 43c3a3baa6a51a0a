package web

import "lifeboat/internal/status"

// policy is the page's Content-Security-Policy.
const policy = "default-src 'none'; frame-ancestors 'none'"

func render(*status.Status) ([]byte, error) {
	return []byte("<!doctype html><title>lifeboat</title>"), nil
}
