package seal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/iotest"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

func identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func sealed(t testing.TB, plain []byte, recipients ...age.Recipient) ([]byte, Sums) {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, recipients)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), w.Sums()
}

func unseal(stored []byte, want Sums, ids ...age.Identity) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(stored), want, ids...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// kubernetes makes n bytes or a little more of what etcd holds: objects that
// look alike and differ in names and random ids.
func kubernetes(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "/registry/pods/namespace-%d/deployment-%08x\x00k8s\x00\n\x02v1\x12\x03Pod\x12\xff", i%50, rng.Uint32())
		fmt.Fprintf(&b, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"deployment-%08x-%05x","namespace":"namespace-%d","uid":"%08x-%04x-4%03x-%04x-%012x","resourceVersion":"%d","creationTimestamp":"2026-11-%02dT%02d:%02d:%02dZ","labels":{"app":"service-%d","pod-template-hash":"%010x"}},"spec":{"containers":[{"name":"main","image":"registry.example/team/app:v1.%d.%d@sha256:%032x%032x","resources":{"limits":{"cpu":"500m","memory":"256Mi"}},"volumeMounts":[{"name":"kube-api-access-%05x","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}]}],"nodeName":"node-%d"},"status":{"phase":"Running","podIP":"10.%d.%d.%d","token":"%x"}}`,
			rng.Uint32(), rng.Uint32()>>12, i%50, rng.Uint32(), rng.Uint32()>>16, rng.Uint32()>>20, rng.Uint32()>>16, rng.Uint64()>>16,
			i, i%28+1, i%24, i%60, i%59, i%300, rng.Uint32(), i%7, i%13, rng.Uint64(), rng.Uint64(), rng.Uint32()>>12, i%90, i%200, i%251, i%253, randomText(rng, 80))
	}
	return b.Bytes()
}

func randomText(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestWhatIsSealedUnseals(t *testing.T) {
	id := identity(t)
	for name, plain := range map[string][]byte{
		"nothing":           {},
		"a byte":            {0},
		"an age chunk":      kubernetes(64 << 10)[:64<<10],
		"several zstd ones": kubernetes(3 << 20),
	} {
		stored, sums := sealed(t, plain, id.Recipient())
		if sums.PlainSize != int64(len(plain)) || sums.StoredSize != int64(len(stored)) || sums.StoredSHA256 != sha256.Sum256(stored) {
			t.Errorf("%s: wrong sums %+v", name, sums)
		}
		for _, want := range []Sums{sums, {}} {
			got, err := unseal(stored, want, identity(t), id)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		r, err := NewReader(iotest.OneByteReader(bytes.NewReader(stored)), sums, id)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if n, err := r.WriteTo(&out); err != nil || n != int64(len(plain)) || !bytes.Equal(out.Bytes(), plain) {
			t.Errorf("%s: WriteTo %d, %v", name, n, err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%s: after the end: %d, %v", name, n, err)
		}
	}
}

func TestEveryFlippedByteIsDetected(t *testing.T) {
	id := identity(t)
	stored, sums := sealed(t, []byte("a few bytes"), id.Recipient())
	for _, want := range []Sums{sums, {}} {
		for i := 0; i < len(stored); i += stride {
			for _, mask := range []byte{0x01, 0x80, 0xff} {
				flipped := bytes.Clone(stored)
				flipped[i] ^= mask
				if _, err := unseal(flipped, want, id); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoIdentity) {
					t.Errorf("byte %d of %d ^ %#x: %v", i, len(stored), mask, err)
				}
			}
		}
	}
}

func TestEveryTruncationIsDetected(t *testing.T) {
	id := identity(t)
	for _, plain := range [][]byte{kubernetes(1000), {}} {
		stored, sums := sealed(t, plain, id.Recipient())
		for _, want := range []Sums{sums, {}} {
			for n := 0; n < len(stored); n += stride {
				if _, err := unseal(stored[:n], want, id); !errors.Is(err, ErrDamaged) {
					t.Errorf("%d of %d bytes: %v", n, len(stored), err)
				}
			}
		}
	}
	// Longer files can be cut between age's chunks, too.
	stored, sums := sealed(t, randomBytes(200<<10), id.Recipient())
	for n := len(stored) - 70<<10; n < len(stored); n += 997 * stride {
		if _, err := unseal(stored[:n], sums, id); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d of %d bytes: %v", n, len(stored), err)
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{9}).Read(b)
	return b
}

// seals pre-compressed bytes, so that what is inside the age file can be wrong.
func encrypted(t testing.TB, compressed []byte, id *age.X25519Identity) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := age.Encrypt(&out, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write(compressed)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func frame(t testing.TB, plain []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(plain, nil)
}

func TestWhatIsNotOneWholeObjectIsDamage(t *testing.T) {
	id := identity(t)
	plain := kubernetes(1000)
	stored, sums := sealed(t, plain, id.Recipient())
	good := frame(t, plain)
	huge, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	var wide bytes.Buffer
	huge.Reset(&wide)
	for range 20 {
		huge.Write(kubernetes(1 << 20))
	}
	huge.Close()

	for name, c := range map[string]struct {
		stored []byte
		want   Sums
	}{
		"a byte after the age file":             {append(bytes.Clone(stored), 0), Sums{}},
		"a byte after the age file, sums known": {append(bytes.Clone(stored), 0), sums},
		"an age file twice":                     {append(bytes.Clone(stored), stored...), Sums{}},
		"no zstd frame":                         {encrypted(t, nil, id), Sums{}},
		"a cut zstd frame":                      {encrypted(t, good[:len(good)-5], id), Sums{}},
		"a byte after the zstd frame":           {encrypted(t, append(bytes.Clone(good), 'x'), id), Sums{}},
		"junk after the zstd frame":             {encrypted(t, append(bytes.Clone(good), "a few bytes more"...), id), Sums{}},
		"not zstd":                              {encrypted(t, plain, id), Sums{}},
		"a window that needs too much memory":   {encrypted(t, wide.Bytes(), id), Sums{}},
		"another object":                        {encrypted(t, good, id), sums},
		"nothing":                               {nil, Sums{}},
		"not age":                               {plain, Sums{}},
		"fewer plain bytes than signed":         {stored, Sums{sums.PlainSize + 1, sums.StoredSize, sums.StoredSHA256}},
		"more plain bytes than signed":          {stored, Sums{sums.PlainSize - 1, sums.StoredSize, sums.StoredSHA256}},
		"fewer stored bytes than signed":        {stored, Sums{sums.PlainSize, sums.StoredSize + 1, sums.StoredSHA256}},
		"more stored bytes than signed":         {stored, Sums{sums.PlainSize, sums.StoredSize - 1, sums.StoredSHA256}},
		"another hash":                          {stored, Sums{sums.PlainSize, sums.StoredSize, [32]byte{1}}},
	} {
		if _, err := unseal(c.stored, c.want, id); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		r, err := NewReader(bytes.NewReader(c.stored), c.want, id)
		if err == nil {
			_, err = r.WriteTo(io.Discard)
		}
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: WriteTo: %v", name, err)
		}
	}
}

func TestABombEndsAtTheSignedSize(t *testing.T) {
	id := identity(t)
	var out bytes.Buffer
	w, err := NewWriter(&out, []age.Recipient{id.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range 512 {
		w.Write(zeros)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want := w.Sums()
	want.PlainSize = 1000
	r, err := NewReader(&out, want, id)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r)
	if !errors.Is(err, ErrDamaged) || n > want.PlainSize {
		t.Errorf("%d bytes came out, %v", n, err)
	}
	if _, again := r.Read(zeros); again != err {
		t.Errorf("then: %v", again)
	}
}

func TestErrorsOfTheSourceAreNotDamage(t *testing.T) {
	id := identity(t)
	stored, sums := sealed(t, randomBytes(100<<10), id.Recipient())
	reset := errors.New("connection reset")
	for _, cause := range []error{reset, io.ErrUnexpectedEOF} {
		for n := 0; n < len(stored); n += 1013 {
			r, err := NewReader(io.MultiReader(bytes.NewReader(stored[:n]), iotest.ErrReader(cause)), sums, id)
			if err == nil {
				_, err = io.ReadAll(r)
			}
			if !errors.Is(err, cause) || errors.Is(err, ErrDamaged) {
				t.Errorf("source fails with %q after %d bytes: %v", cause, n, err)
			}
		}
	}
}

func TestTheWrongIdentityIsNamedSo(t *testing.T) {
	stored, sums := sealed(t, nil, identity(t).Recipient(), identity(t).Recipient())
	if _, err := unseal(stored, sums, identity(t)); !errors.Is(err, ErrNoIdentity) || errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if _, err := unseal(stored, sums); !errors.Is(err, ErrNoIdentity) {
		t.Error(err)
	}
}

// failing takes n bytes, then fails: after taking effect or before.
type failing struct {
	left  int
	after bool
	got   int
}

var errFull = errors.New("no space")

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left >= 0 {
		f.got += len(p)
		return len(p), nil
	}
	if f.after {
		return len(p), errFull
	}
	return 0, errFull
}

func TestAFailedWriteNeverClosesWell(t *testing.T) {
	id := identity(t)
	plain := randomBytes(300 << 10)
	for _, workers := range []int{1, 2} {
		for _, after := range []bool{false, true} {
			for n := 0; n < 300<<10; n += 20 << 10 {
				w, err := NewWriter(&failing{left: n, after: after}, []age.Recipient{id.Recipient()}, Workers(workers))
				if err == nil {
					w.Write(plain)
					w.Write(nil)
					err = w.Close()
				}
				if !errors.Is(err, errFull) {
					t.Errorf("%d workers, %d bytes: %v", workers, n, err)
				}
			}
		}
	}
}

func TestClosedMeansClosed(t *testing.T) {
	id := identity(t)
	w, err := NewWriter(io.Discard, []age.Recipient{id.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Error(err)
	}
	if _, err := w.Write([]byte{1}); err == nil {
		t.Error("a closed writer takes bytes")
	}
	stored, _ := sealed(t, kubernetes(1000), id.Recipient())
	r, err := NewReader(bytes.NewReader(stored), Sums{}, id)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	r.Close()
	if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a closed reader reads: %v", err)
	}
	if _, err := r.WriteTo(io.Discard); err == nil {
		t.Error("a closed reader copies")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	id := identity(t)
	const pieces = 1 + 11/stride
	data := kubernetes(8 << 20)
	var before, after runtime.MemStats
	file, err := os.Create(filepath.Join(t.TempDir(), "sealed"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	runtime.GC()
	runtime.ReadMemStats(&before)
	w, err := NewWriter(file, []age.Recipient{id.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	for range pieces {
		w.Write(data)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("sealing holds %d bytes", grown)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file.Seek(0, io.SeekStart)
	r, err := NewReader(file, w.Sums(), id)
	if err != nil {
		t.Fatal(err)
	}
	io.CopyN(io.Discard, r, pieces*7<<20)
	w = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("unsealing holds %d bytes", grown)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(data)
}
