package spool

import (
	"bytes"
	"testing"
)

// A change of 100 bytes, and one of a Kubernetes object's size.
var sizes = map[string]int{"small": 100, "object": 1500}

func BenchmarkAppend(b *testing.B) {
	for name, size := range sizes {
		b.Run(name, func(b *testing.B) {
			l := open(b, b.TempDir(), Options{MaxBytes: 256 << 20})
			payload := bytes.Repeat([]byte("x"), size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if l.Bytes() > 200<<20 {
					if err := l.Reset(); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := l.Append(payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for name, size := range sizes {
		b.Run(name, func(b *testing.B) {
			l := open(b, b.TempDir(), Options{})
			payload := bytes.Repeat([]byte("x"), size)
			for range 20_000 {
				if _, err := l.Append(payload); err != nil {
					b.Fatal(err)
				}
			}
			r := l.Read(0)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, at, err := r.Next(); err != nil {
					b.Fatal(err)
				} else if at == l.End() {
					r = l.Read(0)
				}
			}
		})
	}
}

// What a restart costs: all of a spool is read.
func BenchmarkOpen(b *testing.B) {
	l := open(b, b.TempDir(), Options{MaxBytes: 256 << 20})
	payload := bytes.Repeat([]byte("x"), 1500)
	for range 50_000 {
		if _, err := l.Append(payload); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(l.Bytes())
	for b.Loop() {
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		l = open(b, l.dir, l.opts)
	}
}
