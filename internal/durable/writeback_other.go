//go:build unix && !linux

package durable

import "os"

// startWriteback does nothing where the system has no call for it.
func startWriteback(*os.File, int64, int64) {}
