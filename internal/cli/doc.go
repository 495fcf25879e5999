// Package cli is the command line: one file a command. It is the only room
// that writes to a person; the others return errors and events, and this one
// says what, why and what to do about it.
package cli
