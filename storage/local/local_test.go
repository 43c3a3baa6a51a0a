package local_test

import (
	"testing"

	"lifeboat/storage"
	"lifeboat/storage/local"
	"lifeboat/storage/storetest"
)

func open(t *testing.T, dir string) *local.Store {
	t.Helper()
	s, err := local.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storage.Store { return open(t, t.TempDir()) })
}
