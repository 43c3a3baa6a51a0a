package seal

import (
	"crypto/sha256"
	"hash"
	"sync"
)

// sideHash is a SHA-256 that is computed while its owner goes on: each piece
// on a goroutine of its own, one at a time. One goroutine for all pieces would
// outlive an owner that is abandoned. The zero value is ready.
type sideHash struct {
	hash    hash.Hash
	piece   []byte
	running sync.WaitGroup
}

// write takes a copy of p.
func (s *sideHash) write(p []byte) {
	s.running.Wait()
	if s.hash == nil {
		s.hash = sha256.New()
	}
	s.piece = append(s.piece[:0], p...)
	s.running.Go(func() { s.hash.Write(s.piece) })
}

func (s *sideHash) sum() (sum [32]byte) {
	s.running.Wait()
	if s.hash == nil {
		return sha256.Sum256(nil)
	}
	s.hash.Sum(sum[:0])
	return sum
}
