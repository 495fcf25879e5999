// Package reactor turns readable file descriptors, timers, posted functions
// and signals into calls on one goroutine (Loop), and runs what may block on a
// bounded set of other goroutines (Pool).
//
// It exists because one process serves many disks: the loop waits for all of
// them in one epoll_wait, and a disk that is slow or busy may hold workers but
// never the loop, and never all workers while others have work. An own epoll
// instance instead of Go's netpoller keeps the tail of a wake-up short when
// there are few Ps, as in a small dom0.
//
// blkback registers its event channels and the xenstore connection with the
// loop and schedules its queues on the pool; cli creates both and stops them.
//
// The package knows file descriptors and jobs, nothing of Xen. It never reads,
// writes or closes a descriptor that it was handed, never retries a job, never
// recovers a panic of a handler or a job, and never logs.
//
// # Goroutines
//
//   - Run is called on a goroutine of the caller; Stop makes it return.
//   - Each Signal has one forwarder: its stop function ends it, else Close does.
//   - Each Pool has its workers: Pool.Close ends them.
package reactor
