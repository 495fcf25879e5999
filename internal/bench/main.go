// Command bench measures xen-disk's VHD beside QEMU's: both serve the same
// image over NBD to the same fio, in turns.
//
// What: for each job every server gets its turn, the order changes from round
// to round, and the median of the rounds is compared. It writes a table of
// figures and ratios to docs/performance/vhd.md. Why: a number alone says
// more of the machine than of the program; ratios from one run say something.
//
// Who calls it: make bench. It needs fio, qemu-nbd and qemu-img (make judges).
// It asserts nothing: a benchmark is no test.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

func main() {
	rounds := flag.Int("rounds", 5, "how often each server has its turn at each job")
	seconds := flag.Int("seconds", 4, "how long a timed job lasts")
	out := flag.String("out", "docs/performance/vhd.md", "where the table goes; - is standard output")
	binary := flag.String("xen-disk", "bin/xen-disk", "the program to measure")
	flag.Parse()
	if err := run(*binary, *out, *rounds, *seconds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(binary, out string, rounds, seconds int) error {
	dir, err := os.MkdirTemp("", "xen-disk-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	b := &bench{binary: binary, dir: dir, seconds: seconds}
	results := make([][]float64, len(jobs)*len(servers))
	for round := range rounds {
		for j := range jobs {
			for turn := range servers {
				s := (turn + round) % len(servers)
				figure, err := b.measure(&jobs[j], &servers[s])
				if err != nil {
					return fmt.Errorf("%s, %s: %w", jobs[j].name, servers[s].name, err)
				}
				fmt.Fprintf(os.Stderr, "round %d  %-14s %-22s %10.0f %s\n",
					round+1, jobs[j].name, servers[s].name, figure, jobs[j].unit)
				k := j*len(servers) + s
				results[k] = append(results[k], figure)
			}
		}
	}
	sizes, err := b.measureSizes()
	if err != nil {
		return err
	}
	text := report(results, sizes, rounds, seconds)
	if out == "-" {
		_, err = fmt.Print(text)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o777); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(text), 0o666)
}

// tell runs a command and returns what it printed.
func tell(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return string(out), nil
}
