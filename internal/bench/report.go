package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// sizes are what is measured of very large images.
type sizes struct {
	infoMS  float64 // image info of an empty 2040 GiB image, process included
	checkMS float64 // image check of one with a million blocks
	rssMiB  float64 // of an export of it that has read in all of it
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func report(results [][]float64, z *sizes, rounds, seconds int) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# VHD beside QEMU")
	line("")
	line("Written by `make bench` on %s: %s, %d CPUs, %s. fio's nbd engine at depth 32", time.Now().Format(time.DateOnly),
		cpu(), runtime.NumCPU(), version())
	line("over a unix socket, the same image of %d MiB made by qemu-img, the servers in", imageMiB)
	line("turns, median (and lowest to highest) of %d; timed jobs take %d s. `allocate` and", rounds, seconds)
	line("`fill` begin with an empty image and end with a flush, whose time counts.")
	line("")
	header, rule := "| job |", "|---|"
	for _, s := range servers {
		header += " " + s.name + " |"
		rule += "---|"
	}
	line("%s vhd / better QEMU | vhd / raw |", header)
	line("%s---|---|", rule)
	for j := range jobs {
		row := fmt.Sprintf("| %s, %s |", jobs[j].name, jobs[j].unit)
		m := make([]float64, len(servers))
		for s := range servers {
			v := results[j*len(servers)+s]
			m[s] = median(v)
			row += fmt.Sprintf(" %.0f (%.0f-%.0f) |", m[s], slices.Min(v), slices.Max(v))
		}
		line("%s %.2f | %.2f |", row, m[0]/max(m[2], m[3]), m[0]/m[1])
	}
	line("")
	line("Large images: `image info` of an empty one of 2040 GiB takes %.0f ms with the", z.infoMS)
	line("start of the process, `image check` of one million blocks %.0f ms; an export of", z.checkMS)
	line("the latter has %.0f MiB resident after a read of a sector in each block.", z.rssMiB)
	return b.String()
}

func cpu() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	for _, l := range strings.Split(string(text), "\n") {
		if name, ok := strings.CutPrefix(l, "model name"); ok {
			return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(name), ":"))
		}
	}
	return runtime.GOARCH
}

func version() string {
	text, err := tell("qemu-nbd", "--version")
	if err != nil {
		return "no qemu-nbd"
	}
	first, _, _ := strings.Cut(text, "\n")
	fio, err := tell("fio", "--version")
	if err != nil {
		return first
	}
	return first + ", " + strings.TrimSpace(fio)
}

// measureSizes looks at images of 2040 GiB.
func (b *bench) measureSizes() (*sizes, error) {
	z := &sizes{}
	image := filepath.Join(b.dir, "large.vhd")
	if _, err := tell(b.binary, "image", "create", image, "--size", "2040GiB"); err != nil {
		return nil, err
	}
	var err error
	if z.infoMS, err = timed(b.binary, "image", "info", image); err != nil {
		return nil, err
	}
	if err := allocateAll(image); err != nil {
		return nil, err
	}
	if z.checkMS, err = timed(b.binary, "image", "check", image); err != nil {
		return nil, err
	}
	z.rssMiB, err = b.resident(image)
	return z, err
}

// timed is how many milliseconds a command takes, the median of five.
func timed(name string, args ...string) (float64, error) {
	var v []float64
	for range 5 {
		began := time.Now()
		if _, err := tell(name, args...); err != nil {
			return 0, err
		}
		v = append(v, float64(time.Since(began).Microseconds())/1000)
	}
	return median(v), nil
}
