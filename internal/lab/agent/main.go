// Command agent is the lab's hand in dom0: it runs processes, moves small
// files and relays the consoles of guests, as the host asks over a
// virtio-serial port (internal/lab/wire). dom0's init starts it; lab.Boot
// builds it and adds it to dom0's initramfs. It decides nothing itself.
//
//	agent PORT...   serve on the first port that exists
//	agent -         serve on standard input and output (for tests)
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	r, w, err := open(os.Args[1:])
	if err == nil {
		err = newServer(r, w).serve()
	}
	if err != nil && err != io.EOF {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func open(ports []string) (io.Reader, io.Writer, error) {
	for _, port := range ports {
		if port == "-" {
			return os.Stdin, os.Stdout, nil
		}
		f, err := os.OpenFile(port, os.O_RDWR, 0)
		if os.IsNotExist(err) {
			continue
		}
		return f, f, err
	}
	return nil, nil, fmt.Errorf("open port: none of %q exists", ports)
}
