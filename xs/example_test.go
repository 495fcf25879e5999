package xs_test

import (
	"fmt"
	"log"

	"xen-disk/xs"
)

// A program of its own, without an event loop.
func Example() {
	c, err := xs.Dial()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	c.Start()
	name, err := c.Read("/local/domain/0/name")
	fmt.Println(name, err)
}

// A watch wakes the goroutine that then looks again.
func ExampleConn_Watch() {
	c, err := xs.Dial()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	c.Start()
	changed := make(chan struct{}, 1) // holds one: several events, one look
	w, err := c.Watch("/local/domain/5/device/vbd/51712/state", func(string) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	for range changed {
		text, err := c.Read(w.Path())
		if err != nil {
			log.Fatal(err)
		}
		if state, err := xs.ParseState(text); err == nil && state == xs.StateConnected {
			break
		}
	}
}
