// Package nbd serves a disk to clients of the Network Block Device protocol.
//
// Why: NBD is what image tools, hypervisors and the kernel speak. Through it
// qemu-img, nbdcopy and fio can read, write, check and measure what a guest
// would get, without a guest. internal/cli calls it for the command export.
//
// What it speaks is the protocol of
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
// ("the protocol" in comments): the fixed newstyle handshake, one export that
// has the empty name, simple and structured replies, base:allocation. It does
// not speak TLS; the socket's permissions decide who may connect.
//
//	request  0 magic  4 flags  6 kind  8 cookie  16 offset  24 length   28
//	simple   0 magic  4 error  8 cookie                                 16
//	chunk    0 magic  4 flags  6 kind  8 cookie  16 length              20
//
// All numbers are big-endian. The data of a write follow its request, those of
// a read its reply.
//
// # A connection
//
//	socket -> receive -> [queue] -> run -> [finished] -> send -> socket
//
// Sixteen workers do all of that. One at a time reads the socket, many requests
// at once, checks each and queues it; one at a time sends all replies that are
// finished with one system call; any number call the disk. So a request that
// is slow delays no other, and while the disk is quick one worker does it all
// (wake.go).
//
// # What a client can do to us
//
// Nothing that it sends is used before it was checked, and everything that it
// can make us hold has a bound: connections, requests and bytes of each
// connection, the length and number of options, and the time it has for the
// handshake. What it must not send ends the connection; what it may send but
// not get is answered with an error. A client that does not read its replies
// keeps what its connection may hold, and no more.
//
// Package nbd starts goroutines, all of which Shutdown ends; it logs nothing.
package nbd
