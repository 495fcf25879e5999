package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// job is one kind of load. fresh says that the image is empty when it begins;
// otherwise every block has been written.
type job struct {
	name  string
	unit  string
	fresh bool
	fio   []string
}

const imageMiB = 1024

// The jobs of reference measurements: random 4 KiB over the whole image, and
// 1 MiB from its beginning to its end.
var jobs = []job{
	{"allocate 4k", "IOPS", true, []string{"--rw=randwrite", "--bs=4k", "--io_size=128M", "--end_fsync=1"}},
	{"fill 1M", "MiB/s", true, []string{"--rw=write", "--bs=1M", "--io_size=1G", "--end_fsync=1"}},
	{"overwrite 4k", "IOPS", false, []string{"--rw=randwrite", "--bs=4k", "--time_based=1"}},
	{"random read 4k", "IOPS", false, []string{"--rw=randread", "--bs=4k", "--time_based=1"}},
	{"read 1M", "MiB/s", false, []string{"--rw=read", "--bs=1M", "--time_based=1"}},
}

// server is a program that serves an image on a socket.
type server struct {
	name   string
	format string // of the image: vpc or raw
	args   func(b *bench, image, socket string) []string
}

func qemu(format, cache, aio string) func(*bench, string, string) []string {
	return func(_ *bench, image, socket string) []string {
		return []string{"qemu-nbd", "--persistent", "--shared=4", "--discard=unmap", "--format=" + format,
			"--cache=" + cache, "--aio=" + aio, "--socket=" + socket, image}
	}
}

func ours(format string) func(*bench, string, string) []string {
	return func(b *bench, image, socket string) []string {
		return []string{b.binary, "export", image, "--format", format, "--socket", socket}
	}
}

var servers = []server{
	{"xen-disk vhd", "vpc", ours("vhd")},
	{"xen-disk raw", "raw", ours("raw")},
	{"qemu-nbd vpc none", "vpc", qemu("vpc", "none", "native")},
	{"qemu-nbd vpc writeback", "vpc", qemu("vpc", "writeback", "threads")},
}

type bench struct {
	binary  string
	dir     string
	seconds int
}

// measure gives a server an image, and fio the server.
func (b *bench) measure(j *job, s *server) (float64, error) {
	image := filepath.Join(b.dir, "full."+s.format)
	if j.fresh {
		image = filepath.Join(b.dir, "empty."+s.format)
		defer os.Remove(image)
	}
	if err := b.makeImage(image, s.format, !j.fresh); err != nil {
		return 0, err
	}
	socket := filepath.Join(b.dir, "socket")
	stop, err := b.serve(s.args(b, image, socket), socket)
	if err != nil {
		return 0, err
	}
	args := append([]string{
		"--name=job", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + socket, "--size=" + strconv.Itoa(imageMiB) + "M",
		"--iodepth=32", "--runtime=" + strconv.Itoa(b.seconds), "--randrepeat=1", "--norandommap=1",
		"--output-format=json", "--output=" + filepath.Join(b.dir, "fio.json"),
	}, j.fio...)
	if _, err := tell("fio", args...); err != nil {
		return 0, errors.Join(err, stop())
	}
	text, err := os.ReadFile(filepath.Join(b.dir, "fio.json"))
	if err != nil {
		return 0, errors.Join(err, stop())
	}
	figure, err := readFio(text, j.unit)
	return figure, errors.Join(err, stop())
}

// readFio takes the figure out of fio's report. Time that the final flush
// took is part of a job: what is not on disk has not been done.
func readFio(text []byte, unit string) (float64, error) {
	type side struct {
		IOs     float64 `json:"total_ios"`
		Bytes   float64 `json:"io_bytes"`
		Runtime float64 `json:"runtime"` // ms
	}
	var out struct {
		Jobs []struct {
			Read, Write side
			Error       int
			Elapsed     float64 `json:"job_runtime"` // ms
		}
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return 0, fmt.Errorf("read fio's report: %w: %s", err, text)
	}
	if len(out.Jobs) != 1 || out.Jobs[0].Error != 0 {
		return 0, fmt.Errorf("read fio's report: %s", text)
	}
	j := out.Jobs[0]
	ms := max(j.Read.Runtime, j.Write.Runtime, j.Elapsed)
	if unit == "IOPS" {
		return (j.Read.IOs + j.Write.IOs) * 1000 / ms, nil
	}
	return (j.Read.Bytes + j.Write.Bytes) / (1 << 20) * 1000 / ms, nil
}

// makeImage makes an image, unless it is there, by qemu-img, whose images
// every server can read. A full one has random bytes in every block, and stays
// full when a job has written it.
func (b *bench) makeImage(path, format string, full bool) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	options := []string{}
	if format == "vpc" {
		options = []string{"-o", "subformat=dynamic,force_size=on"}
	}
	if !full {
		_, err := tell("qemu-img", slices.Concat([]string{"create", "-f", format}, options, []string{path, strconv.Itoa(imageMiB << 20)})...)
		return err
	}
	source := filepath.Join(b.dir, "random")
	defer os.Remove(source)
	if _, err := tell("dd", "if=/dev/urandom", "of="+source, "bs=1M", "count="+strconv.Itoa(imageMiB)); err != nil {
		return err
	}
	if _, err := tell("qemu-img", slices.Concat([]string{"convert", "-f", "raw", "-O", format}, options, []string{source, path})...); err != nil {
		return err
	}
	_, err := tell("sync", path)
	return err
}

// serve starts a server and waits until it answers.
func (b *bench) serve(args []string, socket string) (stop func() error, err error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err := cmd.Wait()
		_ = os.Remove(socket) // qemu-nbd leaves it
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil // killed by the signal that asked for the end
		}
		return err
	}
	for range 1000 {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return stop, conn.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.Join(fmt.Errorf("%s does not answer on %s", args[0], socket), stop())
}
