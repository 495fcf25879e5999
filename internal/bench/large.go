package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

const (
	sectorBytes = 512
	footerBytes = 512
	blockBytes  = 2 << 20
	// stride is from one block to the next: data on whole pages, the bitmap
	// in the sector before.
	stride = blockBytes + 4096
)

// allocateAll turns an empty image of blocks of 2 MiB into one that has them
// all, as holes: it fills the BAT and moves the footer.
func allocateAll(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	footer := make([]byte, footerBytes)
	header := make([]byte, 1024)
	if _, err := f.ReadAt(footer, st.Size()-footerBytes); err != nil {
		return err
	}
	if _, err := f.ReadAt(header, int64(binary.BigEndian.Uint64(footer[16:]))); err != nil {
		return err
	}
	entries := int64(binary.BigEndian.Uint32(header[28:]))
	// The end of what is there, on a whole page: data of the first block begin
	// one page further.
	first := (st.Size()+4095)/4096*4096 + 4096
	bat := make([]byte, entries*4)
	for i := range entries {
		binary.BigEndian.PutUint32(bat[4*i:], uint32((first+i*stride)/sectorBytes-1))
	}
	if _, err := f.WriteAt(bat, int64(binary.BigEndian.Uint64(header[16:]))); err != nil {
		return err
	}
	if _, err := f.WriteAt(make([]byte, footerBytes), st.Size()-footerBytes); err != nil {
		return err
	}
	_, err = f.WriteAt(footer, first+entries*stride-4096)
	return errors.Join(err, f.Sync())
}

// resident is the memory of an export after a read in every block.
func (b *bench) resident(image string) (float64, error) {
	socket := filepath.Join(b.dir, "socket")
	stop, err := b.serve([]string{b.binary, "export", image, "--format", "vhd", "--socket", socket}, socket)
	if err != nil {
		return 0, err
	}
	_, err = tell("fio", "--name=job", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+socket, "--rw=read:2044k",
		"--bs=4k", "--iodepth=32", "--size=2040G")
	if err != nil {
		return 0, errors.Join(err, stop())
	}
	kib, err := residentKiB(b.binary)
	return float64(kib) / 1024, errors.Join(err, stop())
}

var vmRSS = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB`)

// residentKiB finds the running export by its program.
func residentKiB(binary string) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !strings.HasPrefix(string(cmdline), binary+"\x00export\x00") {
			continue
		}
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		if m := vmRSS.FindSubmatch(status); m != nil {
			return strconv.Atoi(string(m[1]))
		}
	}
	return 0, fmt.Errorf("no process runs %s export", binary)
}
