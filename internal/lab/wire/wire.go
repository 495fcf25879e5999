// Package wire is the protocol between the lab's host side and its agent in
// dom0: one JSON object a line, both ways, over a virtio-serial port.
//
// Why JSON lines: a few kilobytes a second cross, and a line can be read by
// eye when a boot fails. Bytes are base64, as encoding/json does. Files that
// are large go through the 9p share instead.
//
// Each request carries an ID that its answers repeat; several are under way
// at once. Who calls it: internal/lab and internal/lab/agent.
package wire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// The operations that the host asks for.
const (
	OpStart   = "start"   // run Argv; answers: started, out..., exit
	OpSignal  = "signal"  // send Signal to the process of ID
	OpInput   = "input"   // append Data to the input of ID
	OpEOF     = "eof"     // end the input of ID
	OpPut     = "put"     // write Data to Path with Mode; answer: done
	OpGet     = "get"     // read Path; answers: out..., done
	OpConsole = "console" // open the terminal at Path raw; answers: started, out...
	OpClose   = "close"   // close the terminal of ID; answer: done
)

// The events that the agent reports.
const (
	EvHello   = "hello"   // the agent is there; first line of all
	EvStarted = "started" // Code is the process id
	EvOut     = "out"     // Data from FD 1 or 2
	EvExit    = "exit"    // Code is the exit code, 128+n after signal n
	EvDone    = "done"
	EvError   = "error" // Text says why; nothing follows for this ID
)

// MaxData bounds the Data of one message: a virtio-serial buffer is small and
// other requests want their turn.
const MaxData = 32 << 10

// Message is a request or an event.
type Message struct {
	ID     uint64   `json:"id,omitempty"`
	Op     string   `json:"op,omitempty"`
	Ev     string   `json:"ev,omitempty"`
	Argv   []string `json:"argv,omitempty"`
	Env    []string `json:"env,omitempty"`
	Dir    string   `json:"dir,omitempty"`
	Path   string   `json:"path,omitempty"`
	Mode   uint32   `json:"mode,omitempty"`
	Append bool     `json:"append,omitempty"`
	Data   []byte   `json:"data,omitempty"`
	FD     int      `json:"fd,omitempty"`
	Signal int      `json:"signal,omitempty"`
	Code   int      `json:"code,omitempty"`
	Text   string   `json:"text,omitempty"`
}

// Conn sends and receives messages. Send may be called from many goroutines,
// Receive from one.
type Conn struct {
	mu sync.Mutex
	w  io.Writer
	r  *bufio.Reader
}

// NewConn makes a Conn of a pair of streams.
func NewConn(r io.Reader, w io.Writer) *Conn {
	return &Conn{w: w, r: bufio.NewReaderSize(r, 64<<10)}
}

// Send writes one message as one write.
func (c *Conn) Send(m Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.w.Write(append(line, '\n'))
	return err
}

// Receive reads the next message. At the end of the stream it returns io.EOF.
func (c *Conn) Receive() (Message, error) {
	line, err := c.r.ReadBytes('\n')
	if err != nil {
		return Message{}, err
	}
	var m Message
	if err := json.Unmarshal(line, &m); err != nil {
		return Message{}, fmt.Errorf("decode message %.80q: %w", line, err)
	}
	return m, nil
}
