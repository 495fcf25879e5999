package lab

import (
	"context"
	"io"
	"strings"
	"sync"
)

// maxTranscript bounds what a transcript keeps: a guest that prints for ever
// must not eat the host. The newest half survives.
const maxTranscript = 8 << 20

// transcript is text that grows at its end and that can be waited on: the
// console of a machine or a guest, the output of a process.
type transcript struct {
	mu      sync.Mutex
	text    []byte
	dropped int           // bytes that no longer are in text
	changed chan struct{} // closed at each change
	closed  bool
	err     error // why it is closed; io.EOF where nothing went wrong
}

func newTranscript() *transcript { return &transcript{changed: make(chan struct{})} }

// Write appends; it never fails.
func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if len(t.text) > maxTranscript {
		cut := len(t.text) - maxTranscript/2
		t.dropped += cut
		t.text = append([]byte(nil), t.text[cut:]...)
	}
	t.wake()
	return len(p), nil
}

// close ends the text: who waits gets err.
func (t *transcript) close(err error) {
	if err == nil {
		err = io.EOF
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed, t.err = true, err
		t.wake()
	}
}

func (t *transcript) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// wait calls look with the text behind position from, now and after each
// change, until look says true. It returns what closed the text, or the
// context's error.
func (t *transcript) wait(ctx context.Context, from int, look func(text string) bool) error {
	for {
		t.mu.Lock()
		text := string(t.text[max(0, min(from-t.dropped, len(t.text))):])
		changed, closed, err := t.changed, t.closed, t.err
		t.mu.Unlock()
		if look(text) {
			return nil
		}
		if closed {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// end is the position behind the last byte.
func (t *transcript) end() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dropped + len(t.text)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// tail returns the last n lines.
func (t *transcript) tail(n int) string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(t.String(), "\r", ""), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
