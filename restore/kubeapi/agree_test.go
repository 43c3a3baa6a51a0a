package kubeapi

import (
	"errors"
	"strings"
	"testing"
)

func TestDifferentHashesAreAnError(t *testing.T) {
	a := &Agreement{Revision: 7, Members: []MemberHash{{ID: 1, Name: "cp1", Hash: 5}, {ID: 2, Name: "cp2", Hash: 5}}}
	if err := a.check(); err != nil {
		t.Error(err)
	}
	a.Members = append(a.Members, MemberHash{ID: 3, Name: "cp3", Hash: 6})
	if err := a.check(); !errors.Is(err, ErrDiffer) || !strings.Contains(err.Error(), "cp3 (3) has 00000006") {
		t.Error(err)
	}
}
