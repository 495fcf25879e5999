// Package fakexen is a pretend Xen machine, good enough that every line of the
// backend's data plane and handshake is tested without Xen, and a frontend
// that can lie to it.
//
//	guest (Domain, Blkfront)                backend (Door, a xenstore socket)
//	  RAM: one sealed memfd a domain  <---  Map: MAP_FIXED pages of that memfd
//	                                        Copy: process_vm_{read,write}v
//	  ports: one eventfd a port       <-->  ports: one eventfd a door
//	  Store: straight on the tree     <-->  Xenstored: the wire over a socket
//
// Its callers are tests and the bench command. It never imports an encoder of
// ours: the wire codec and the ring layouts here are written from the public
// headers, so a bug in one place cannot cancel the same bug in the other.
//
// Frontend and backend meet only through mapped bytes and file descriptors,
// as they do on Xen; indexes in mapped bytes go through sync/atomic.
package fakexen
