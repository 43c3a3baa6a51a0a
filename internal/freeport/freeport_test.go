package freeport_test

import (
	"testing"

	"lifeboat/internal/freeport"
)

// A port that a member gave up for a moment must not be another test's by then.
func TestNoPortIsGivenTwice(t *testing.T) {
	given := map[int]bool{}
	for range 700 { // by chance alone, ten pairs of them would be equal
		port, err := freeport.Take()
		if err != nil {
			t.Fatal(err)
		}
		if given[port] {
			t.Fatalf("port %d was given twice", port)
		}
		given[port] = true
	}
}
