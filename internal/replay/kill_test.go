package replay

import (
	"context"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/s3test"
)

// victim is what can be killed: by kill, and brought back by revive.
type victim struct {
	name         string
	kill, revive func()
}

// TestWhatWasReportedAsRecoverableIsRecoverable kills the recorder, members of
// etcd and the store at random moments while etcd works. Whatever the program
// reported as recoverable at any time is so in the end, and exact.
func TestWhatWasReportedAsRecoverableIsRecoverable(t *testing.T) {
	for i, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			total := number(t, "LIFEBOAT_KILLS", 9)
			kills := total*(i+1)/len(cluster.Versions) - total*i/len(cluster.Versions)
			server := s3test.Start(t, s3test.Options{})
			s := begin(t, version, server)
			recorder := s.recorder
			member := 0
			victims := []victim{
				{"the recorder", recorder.kill, recorder.run},
				{"a member", func() {
					member = s.rng.IntN(len(s.etcd.Members))
					s.etcd.Kill(member)
				}, func() { s.etcd.Restart(member) }},
				{"the store", server.Kill, server.Restart},
			}
			var reported []*timeline
			for n := 0; n < kills; {
				time.Sleep(time.Duration(s.rng.Int64N(int64(1200 * time.Millisecond))))
				s.rng.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
				hit := victims[:1]
				if s.rng.IntN(5) == 0 { // two at once
					hit = victims[:2]
				}
				from := time.Now()
				for _, v := range hit {
					t.Logf("kill %d at revision %d: %s", n+1, s.oracle.seen(), v.name)
					v.kill()
					n++
				}
				time.Sleep(time.Duration(s.rng.Int64N(int64(700 * time.Millisecond))))
				for _, v := range hit {
					v.revive()
				}
				s.book.disturbed(from, time.Now())
				s.oracle.check(t)
				s.supervise()
				if line, err := s.site.points(); err == nil {
					reported = append(reported, line)
					// etcd compacts behind what is safe, as Kubernetes does, so that
					// no gap is excused.
					if head := line.head(); s.rng.IntN(2) == 0 && head > s.work.compacted()+50 {
						s.work.insist("compact", func(ctx context.Context) error { return s.work.compact(ctx, head-s.rng.Int64N(50)) })
					}
				}
			}
			s.work.stop()
			head := s.oracle.seen()
			line := s.site.recorded(head)
			s.stopSampling()
			s.oracle.sound(t)

			if len(reported) < kills/3 {
				t.Errorf("only %d of %d times anything was reported", len(reported), kills)
			}
			var edges []int64
			for _, earlier := range append(reported, line) {
				for _, span := range earlier.Spans {
					if !line.covers(span) {
						t.Errorf("%+v was reported as recoverable and is not in %+v", span, line.Spans)
					}
					if before := s.work.acknowledged(span.Last.Time); before > span.Last.Revision {
						t.Errorf("revision %d was acknowledged before %v, and %d was reported as of then", before, span.Last.Time, span.Last.Revision)
					}
					edges = append(edges, span.Last.Revision)
				}
			}
			if len(line.Spans) != 1 {
				t.Errorf("nothing was compacted that was not recorded, and there are gaps: %+v", line.Spans)
			}
			s.rng.Shuffle(len(edges), func(i, j int) { edges[i], edges[j] = edges[j], edges[i] })
			points := max(10, number(t, "LIFEBOAT_POINTS", 10)/5)
			random := pick(s.rng, s.oracle, line.Spans[0].First.Revision, head)
			random = random[:min(len(random), points)]
			sum := s.judge(append(edges[:min(len(edges), points)], random...))
			t.Logf("%d revisions, %d reports, judged: %+v", head, len(reported), sum)
			if sum.points >= 20 && sum.live == 0 { // a short run may have compacted all of a few
				t.Error("nothing was compared with what etcd itself said")
			}
			recorder.stop()
		})
	}
}

// supervise starts the recorder again, as systemd would, if it has ended: one
// that finds no store at its start gives up.
func (s *story) supervise() {
	if !s.recorder.running() {
		s.recorder.run()
	}
}

// covers reports whether all of a span can be restored.
func (l *timeline) covers(s span) bool {
	for _, other := range l.Spans {
		if other.Epoch == s.Epoch && other.First.Revision <= s.First.Revision && s.Last.Revision <= other.Last.Revision {
			return true
		}
	}
	return false
}
