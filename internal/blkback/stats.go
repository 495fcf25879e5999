package blkback

import "xen-disk/ring"

// maxSlots is the number of slots of the largest ring (16 pages).
const maxSlots = 512

// Stats counts what a vbd has done since it was attached.
type Stats struct {
	Reads, Writes, Flushes, Discards, Other uint64 // requests pulled, by operation
	OK, Errors, Unsupported                 uint64 // requests answered, by status
	ReadBytes, WrittenBytes, DiscardedBytes uint64 // of requests answered OK
	Notifications                           uint64 // sent to the guest

	// Occupancy[n] counts the pulls that found n slots in use.
	Occupancy [maxSlots + 1]uint64
	// Segments[n] counts the reads and writes of n segments that passed
	// the checks.
	Segments [ring.MaxSegments + 1]uint64
}

// Requests is how many requests were pulled.
func (s *Stats) Requests() uint64 {
	return s.Reads + s.Writes + s.Flushes + s.Discards + s.Other
}

// Answered is how many requests were answered.
func (s *Stats) Answered() uint64 { return s.OK + s.Errors + s.Unsupported }

func (s *Stats) pulled(r *ring.Request, status ring.Status) {
	switch r.Op {
	case ring.OpRead:
		s.Reads++
	case ring.OpWrite:
		s.Writes++
	case ring.OpFlush:
		s.Flushes++
	case ring.OpDiscard:
		s.Discards++
	default:
		s.Other++
	}
	if status == ring.StatusOK && (r.Op == ring.OpRead || r.Op == ring.OpWrite) {
		s.Segments[r.NrSegs]++
	}
}

func (s *Stats) answered(r *ring.Request, status ring.Status) {
	switch status {
	case ring.StatusOK:
		s.OK++
		switch r.Op {
		case ring.OpRead:
			s.ReadBytes += uint64(r.DataBytes())
		case ring.OpDiscard:
			s.DiscardedBytes += uint64(r.DiscardBytes())
		default:
			s.WrittenBytes += uint64(r.DataBytes())
		}
	case ring.StatusNotSupp:
		s.Unsupported++
	default:
		s.Errors++
	}
}

// add sums up the queues and the links of one vbd.
func (s *Stats) add(o *Stats) {
	s.Reads += o.Reads
	s.Writes += o.Writes
	s.Flushes += o.Flushes
	s.Discards += o.Discards
	s.Other += o.Other
	s.OK += o.OK
	s.Errors += o.Errors
	s.Unsupported += o.Unsupported
	s.ReadBytes += o.ReadBytes
	s.WrittenBytes += o.WrittenBytes
	s.DiscardedBytes += o.DiscardedBytes
	s.Notifications += o.Notifications
	for i := range s.Occupancy {
		s.Occupancy[i] += o.Occupancy[i]
	}
	for i := range s.Segments {
		s.Segments[i] += o.Segments[i]
	}
}
