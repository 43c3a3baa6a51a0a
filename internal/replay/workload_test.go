package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest/cluster"
)

// seed is the run's own or LIFEBOAT_SEED. It is printed.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := rand.Uint64()
	if text := os.Getenv("LIFEBOAT_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("LIFEBOAT_SEED: %v", err)
		}
	}
	t.Logf("LIFEBOAT_SEED=%d", s)
	return s
}

// number is a positive number from the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s: %q is no positive number", name, text)
	}
	return n
}

const workers = 3

// workload changes etcd at random until it is stopped.
type workload struct {
	t      *testing.T
	etcd   *cluster.Cluster
	client *clientv3.Client
	oracle *oracle
	book   *book
	rng    *rand.Rand // of the trouble
	pace   time.Duration

	gate   sync.RWMutex // held for reading by each piece of work, to stop all
	cancel context.CancelFunc
	group  sync.WaitGroup
	done   [kinds]atomic.Int64
	wrong  atomic.Pointer[error]

	acksMu sync.Mutex
	acks   []ack
}

// ack is one change that etcd acknowledged.
type ack struct {
	began, acked time.Time
	rev          int64
}

func (w *workload) acked(began time.Time, rev int64) {
	w.acksMu.Lock()
	defer w.acksMu.Unlock()
	w.acks = append(w.acks, ack{began, time.Now(), rev})
}

// lasted is when the work began and when it ended.
func (w *workload) lasted() (first, last time.Time) {
	w.acksMu.Lock()
	defer w.acksMu.Unlock()
	return w.acks[0].acked, w.acks[len(w.acks)-1].acked
}

// acknowledged is the newest revision that etcd acknowledged before a time.
func (w *workload) acknowledged(before time.Time) (rev int64) {
	w.acksMu.Lock()
	defer w.acksMu.Unlock()
	for _, a := range w.acks {
		if a.acked.Before(before) {
			rev = max(rev, a.rev)
		}
	}
	return rev
}

// asked is the oldest revision of a change that was asked for after a time; 0
// if there is none.
func (w *workload) asked(after time.Time) (rev int64) {
	w.acksMu.Lock()
	defer w.acksMu.Unlock()
	for _, a := range w.acks {
		if a.began.After(after) && (rev == 0 || a.rev < rev) {
			rev = a.rev
		}
	}
	return rev
}

// The kinds of work.
const (
	workPut = iota
	workPutWithLease
	workKeepValue
	workKeepLease
	workDelete
	workDeleteRange
	workTxn
	workGrantShort
	workGrantLong
	workKeepAlive
	workRevoke
	workReuse
	workAtOnce
	kinds
)

// weights say how often each kind of work is done.
var weights = [kinds]int{
	workPut: 40, workPutWithLease: 10, workKeepValue: 3, workKeepLease: 3, workDelete: 8, workDeleteRange: 2, workTxn: 22,
	workGrantShort: 3, workGrantLong: 2, workKeepAlive: 3, workRevoke: 1, workReuse: 1, workAtOnce: 1,
}

// startWork begins. pace is the longest pause of a worker between two pieces
// of work.
func startWork(t *testing.T, c *cluster.Cluster, o *oracle, b *book, seed uint64, pace time.Duration) *workload {
	t.Helper()
	w := &workload{t: t, etcd: c, client: c.Client(), oracle: o, book: b, rng: rand.New(rand.NewPCG(seed, 0)), pace: pace}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	for i := range workers {
		one := &worker{w: w, rng: rand.New(rand.NewPCG(seed, uint64(i+1))), reused: int64(70 + i)}
		w.group.Go(func() { one.run(ctx) })
	}
	t.Cleanup(w.stop)
	return w
}

// stop ends the work and waits for it.
func (w *workload) stop() {
	w.cancel()
	w.group.Wait()
	if err := w.wrong.Load(); err != nil {
		w.t.Errorf("the work itself is wrong: %v", *err)
	}
}

// did fails the test if some kind of work never succeeded.
func (w *workload) did(t *testing.T) {
	t.Helper()
	for kind := range w.done {
		if w.done[kind].Load() == 0 {
			t.Errorf("work of kind %d never succeeded", kind)
		}
	}
}

// worker does one piece of work after the other, by its own random numbers.
type worker struct {
	w      *workload
	rng    *rand.Rand
	reused int64  // the id of the lease that it grants again and again
	life   *grant // of that lease
	until  time.Time
}

func (k *worker) run(ctx context.Context) {
	total := 0
	for _, n := range weights {
		total += n
	}
	for ctx.Err() == nil {
		kind, n := 0, k.rng.IntN(total)
		for n >= weights[kind] {
			n -= weights[kind]
			kind++
		}
		k.w.gate.RLock()
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := k.do(call, kind)
		cancel()
		k.w.gate.RUnlock()
		switch {
		case err == nil:
			k.w.done[kind].Add(1)
		case mistaken(err):
			err = fmt.Errorf("kind %d: %w", kind, err)
			k.w.wrong.CompareAndSwap(nil, &err)
		}
		if k.w.pace > 0 {
			time.Sleep(time.Duration(k.rng.Int64N(int64(k.w.pace))))
		}
	}
}

// mistaken reports whether etcd refused what should never have been asked.
func mistaken(err error) bool {
	for _, refusal := range []error{rpctypes.ErrDuplicateKey, rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge, rpctypes.ErrNoSpace, rpctypes.ErrEmptyKey} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

var errNothingToDo = errors.New("nothing to do")

func (k *worker) do(ctx context.Context, kind int) error {
	c := k.w.client
	switch kind {
	case workPut:
		began := time.Now()
		resp, err := c.Put(ctx, k.key(), k.value(1<<20))
		if err == nil {
			k.w.acked(began, resp.Header.Revision)
		}
		return err
	case workPutWithLease:
		return k.attach(ctx, k.w.book.any(k.rng.IntN(1<<16)))
	case workKeepValue: // a new revision of the value that is there
		_, err := c.Put(ctx, k.key(), "", clientv3.WithIgnoreValue())
		return err
	case workKeepLease:
		_, err := c.Put(ctx, k.key(), k.value(1<<12), clientv3.WithIgnoreLease())
		return err
	case workDelete:
		_, err := c.Delete(ctx, k.key())
		return err
	case workDeleteRange:
		if k.rng.IntN(8) == 0 { // a whole kind of objects
			_, err := c.Delete(ctx, folder(k.rng.IntN(folders)), clientv3.WithPrefix())
			return err
		}
		_, err := c.Delete(ctx, k.key(), clientv3.WithRange(k.key()+"\xff"))
		return err
	case workTxn:
		return k.txn(ctx)
	case workGrantShort:
		_, err := k.grant(ctx, 0, 1+k.rng.Int64N(7))
		return err
	case workGrantLong:
		_, err := k.grant(ctx, 0, 100+k.rng.Int64N(5000))
		return err
	case workKeepAlive:
		g := k.w.book.any(k.rng.IntN(1 << 16))
		if g == nil {
			return errNothingToDo
		}
		resp, err := c.KeepAliveOnce(ctx, clientv3.LeaseID(g.id))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) || err == nil && resp.TTL <= 0 {
			k.w.book.drop(g, false) // expired
			return nil
		}
		return err
	case workRevoke:
		if g := k.w.book.any(k.rng.IntN(1 << 16)); g != nil && g != k.life {
			return k.revoke(ctx, g)
		}
		return errNothingToDo
	case workReuse:
		return k.reuse(ctx)
	case workAtOnce: // gone before anyone could ask for it
		g, err := k.grant(ctx, 0, 300)
		if err != nil {
			return err
		}
		if err := k.attach(ctx, g); err != nil {
			return err
		}
		return k.revoke(ctx, g)
	}
	panic("unknown kind of work")
}

// reuse lets a lease of one id live for some seconds, ends it, and later grants
// the same id again with another time.
func (k *worker) reuse(ctx context.Context) error {
	switch soon := time.Now().Before(k.until); {
	case k.life != nil && soon:
		return k.attach(ctx, k.life)
	case k.life != nil:
		err := k.revoke(ctx, k.life)
		if err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) {
			k.life, k.until = nil, time.Now().Add(askedAgain)
		}
		return err
	case soon:
		return errNothingToDo
	}
	g, err := k.grant(ctx, k.reused, 100+k.rng.Int64N(5000))
	if err != nil {
		k.reused += workers // whether it was granted, nobody knows
		return err
	}
	k.life, k.until = g, time.Now().Add(askedWithin+time.Duration(k.rng.Int64N(int64(3*time.Second))))
	return k.attach(ctx, g)
}

// grant asks for a lease; of a new id when id is 0.
func (k *worker) grant(ctx context.Context, id, ttl int64) (*grant, error) {
	if id == 0 {
		id = 1000 + k.rng.Int64N(1<<62)
	}
	resp, err := clientv3.RetryLeaseClient(k.w.client).LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: id, TTL: ttl})
	if err != nil {
		k.w.book.unanswered(id)
		return nil, err
	}
	return k.w.book.granted(resp.ID, resp.TTL, resp.Header.Revision), nil
}

func (k *worker) attach(ctx context.Context, g *grant) error {
	if g == nil {
		return errNothingToDo
	}
	_, err := k.w.client.Put(ctx, k.key(), k.value(1<<10), clientv3.WithLease(clientv3.LeaseID(g.id)))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		k.w.book.drop(g, false)
		return nil
	}
	if err == nil {
		k.w.book.attach(g)
	}
	return err
}

func (k *worker) revoke(ctx context.Context, g *grant) error {
	_, err := k.w.client.Revoke(ctx, clientv3.LeaseID(g.id))
	k.w.book.drop(g, err == nil)
	return err
}

// txn is a transaction of many operations, as deep and as wide as etcd takes.
func (k *worker) txn(ctx context.Context) error {
	n := 2 + k.rng.IntN(18)
	if k.rng.IntN(10) == 0 {
		n = 100 + k.rng.IntN(25)
	}
	used := map[string]bool{}
	then, otherwise := k.ops(n, used, true), k.ops(2, map[string]bool{}, false)
	compare := clientv3.Compare(clientv3.Version(k.key()), ">", -1) // always so
	if k.rng.IntN(4) == 0 {
		compare = clientv3.Compare(clientv3.Version(k.key()), ">", 3)
	}
	_, err := k.w.client.Txn(ctx).If(compare).Then(then...).Else(otherwise...).Commit()
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// ops are operations that etcd accepts together: no key is put twice, and none
// is put that another deletes.
func (k *worker) ops(n int, used map[string]bool, deep bool) []clientv3.Op {
	var ops []clientv3.Op
	gone := folder(k.rng.IntN(folders)) // what ranges may delete
	for len(ops) < n {
		key := k.key()
		inGone := len(key) >= len(gone) && key[:len(gone)] == gone
		switch choice := k.rng.IntN(20); {
		case choice < 11:
			if inGone || used[key] {
				ops = append(ops, clientv3.OpGet(key))
				break
			}
			used[key] = true
			var opts []clientv3.OpOption
			if g := k.w.book.any(k.rng.IntN(1 << 16)); g != nil && g.ttl > 30 && k.rng.IntN(4) == 0 {
				k.w.book.attach(g)
				opts = append(opts, clientv3.WithLease(clientv3.LeaseID(g.id)))
			}
			ops = append(ops, clientv3.OpPut(key, k.value(1<<13), opts...))
		case choice < 16:
			if !inGone {
				key = gone + key[1:]
			}
			ops = append(ops, clientv3.OpDelete(key))
		case choice == 16:
			ops = append(ops, clientv3.OpDelete(gone+fmt.Sprintf("%d", k.rng.IntN(5)), clientv3.WithPrefix()))
		case choice == 17:
			ops = append(ops, clientv3.OpGet(folder(0), clientv3.WithPrefix(), clientv3.WithCountOnly()))
		case choice == 18 && deep:
			ops = append(ops, clientv3.OpTxn(nil, k.inner(used, gone), nil))
		default:
			ops = append(ops, clientv3.OpDelete(gone+"none-such"))
		}
	}
	return ops
}

// inner are the operations of a transaction in a transaction.
func (k *worker) inner(used map[string]bool, gone string) []clientv3.Op {
	var ops []clientv3.Op
	for range 1 + k.rng.IntN(3) {
		key := k.key()
		if used[key] || len(key) >= len(gone) && key[:len(gone)] == gone {
			continue
		}
		used[key] = true
		ops = append(ops, clientv3.OpPut(key, k.value(100)))
	}
	return append(ops, clientv3.OpDelete(gone+fmt.Sprintf("%d", k.rng.IntN(50))))
}

const folders = 5

// folder is the common beginning of a kind of objects.
func folder(n int) string {
	return [folders]string{"/registry/pods/", "/registry/leases/", "/registry/events/", "\x00\x01binary/", "\xff\xfe"}[n]
}

// key is one of some hundred, so that keys have many versions.
func (k *worker) key() string {
	return folder(k.rng.IntN(folders)) + strconv.Itoa(k.rng.IntN(60))
}

// value is of any size up to limit, mostly small.
func (k *worker) value(limit int) string {
	size := 0
	switch n := k.rng.IntN(1000); {
	case n < 100:
	case n < 820:
		size = 1 + k.rng.IntN(500)
	case n < 970:
		size = 500 + k.rng.IntN(8<<10)
	case n < 995:
		size = 8<<10 + k.rng.IntN(56<<10)
	case n < 999:
		size = 200 << 10
	default:
		size = 1<<20 + k.rng.IntN(1<<18)
	}
	value := make([]byte, min(size, limit))
	for i := range value[:min(len(value), 4096)] {
		value[i] = byte(k.rng.Uint32())
	}
	return string(value)
}
