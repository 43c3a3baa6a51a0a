package boltfile_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"lifeboat/internal/boltfile"
)

func make1000(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("b"))
		for i := 0; i < 1000 && err == nil; i++ {
			err = b.Put(fmt.Appendf(nil, "%04d", i), make([]byte, 500))
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnEditedFileIsWholeForBbolt(t *testing.T) {
	path := make1000(t)
	for round := range 3 {
		err := boltfile.Edit(path, 1<<30, func(db *bbolt.DB) error {
			for i := range 20 {
				err := db.Update(func(tx *bbolt.Tx) error {
					b := tx.Bucket([]byte("b"))
					if err := b.Delete(fmt.Appendf(nil, "%04d", 40*i+round)); err != nil {
						return err
					}
					return b.Put(fmt.Appendf(nil, "%04d", 1000+20*round+i), make([]byte, 9000))
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		if n := tx.Bucket([]byte("b")).Stats().KeyN; n != 1000 {
			t.Errorf("%d keys", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAFailedEditIsAnErrorWithItsReason(t *testing.T) {
	path, why := make1000(t), errors.New("why")
	err := boltfile.Edit(path, 0, func(*bbolt.DB) error { return why })
	if !errors.Is(err, why) || errors.Is(err, boltfile.ErrDamaged) {
		t.Errorf("%v", err)
	}
}

func TestDamageIsAnErrorAndNoCrash(t *testing.T) {
	path := make1000(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change := func(db *bbolt.DB) error {
		return db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("b")).Put([]byte("0500"), nil) })
	}
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"zeros":              make([]byte, len(whole)),
		"cut short":          whole[:len(whole)/2],
		"pages overwritten":  append(bytes.Clone(whole[:8192]), bytes.Repeat([]byte{0xaa}, len(whole)-8192)...),
		"without meta pages": append(make([]byte, 8192), whole[8192:]...),
	} {
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := boltfile.Edit(path, 0, change); !errors.Is(err, boltfile.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := boltfile.Edit(filepath.Join(t.TempDir(), "none"), 0, change); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestAFailedTransactionOnADamagedFileIsNoCrash(t *testing.T) {
	path := make1000(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Clone(whole)
	damaged := 0
	for at := 3 * os.Getpagesize(); at < len(b); at += os.Getpagesize() { // leaves with many elements, which no root is
		if b[at+8] == 0x02 && b[at+10] > 2 {
			copy(b[at:], bytes.Repeat([]byte{0xaa}, 100))
			damaged++
		}
	}
	if damaged == 0 {
		t.Fatal("no leaf was found")
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	err = boltfile.Edit(path, 0, func(db *bbolt.DB) error {
		err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("c")); return err })
		if err != nil {
			return err
		}
		return db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("b")).Put([]byte("0500"), nil) })
	})
	if !errors.Is(err, boltfile.ErrDamaged) {
		t.Errorf("%v", err)
	}
}
