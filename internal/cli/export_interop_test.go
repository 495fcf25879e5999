//go:build interop

package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"xen-disk/disk"
	"xen-disk/vhd"
)

const (
	killRounds  = 100
	killWriters = 3
	killBytes   = 8 << 20 // of each writer
	pieceBytes  = 4096
)

// TestKilledUnderLoad kills xen-disk export with SIGKILL while QEMU's client
// writes through it, and looks at what it left: a footer that needs no repair,
// an image without damage, and every write that was acknowledged as durable
// (FUA). The image goes on from round to round; every second is a child.
func TestKilledUnderLoad(t *testing.T) {
	r := newImageRig(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r.made(t, fmt.Sprintf("create disk.vhd --size %d", killWriters*killBytes))
	path := "disk.vhd"
	// What each piece may hold: one value, or two after a write that was not
	// acknowledged.
	pieces := make([][]byte, killWriters*killBytes/pieceBytes)
	for i := range pieces {
		pieces[i] = []byte{0}
	}
	for round := range killRounds {
		if round == killRounds/2 {
			r.made(t, "snapshot disk.vhd child.vhd")
			path = "child.vhd"
		}
		killOnce(t, random, path, pieces)
		judgeKilled(t, path, pieces)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	written := 0
	for _, may := range pieces {
		if may[0] != 0 {
			written++
		}
	}
	t.Logf("%d pieces were written", written)
	if written < killRounds {
		t.Error("the server was killed before it did anything")
	}
}

// killOnce lets writers work for a moment and kills the server.
func killOnce(t *testing.T, random *rand.Rand, path string, pieces [][]byte) {
	t.Helper()
	p := startChild(t, "export "+path+" --format vhd --socket sock")
	line(t, p.stdout, "Connect to:")
	var writers sync.WaitGroup
	for w := range killWriters {
		own := pieces[w*len(pieces)/killWriters:][:len(pieces)/killWriters]
		source := rand.New(rand.NewPCG(random.Uint64(), 0))
		writers.Add(1)
		go func() { // until the server is gone
			defer writers.Done()
			if err := writeUntilKilled(source, w*killBytes, own); err != nil {
				t.Error(err)
			}
		}()
	}
	// Not to wait for something: the instant is to be any.
	<-time.After(time.Duration(20+random.IntN(80)) * time.Millisecond)
	_ = p.cmd.Process.Kill()
	p.wait(t)
	writers.Wait()
}

// writeUntilKilled writes random pieces, one at a time, and notes what may be
// on the disk.
func writeUntilKilled(random *rand.Rand, from int, own [][]byte) error {
	cmd := exec.Command("qemu-io", "-f", "raw", "nbd+unix:///?socket=sock")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait() // it ends at the end of its input
	defer stdin.Close()
	answers := bufio.NewReader(stdout)
	for {
		i, value := random.IntN(len(own)), byte(1+random.IntN(255))
		own[i] = append(own[i], value)
		if _, err := fmt.Fprintf(stdin, "write -f -P %d %d %d\n", value, from+i*pieceBytes, pieceBytes); err != nil {
			return nil // it could not even connect any more
		}
		for {
			answer, err := answers.ReadString('\n')
			if err == io.EOF || strings.Contains(answer, "rror") {
				return nil
			}
			if err != nil {
				return err
			}
			if strings.Contains(answer, "wrote ") {
				own[i] = []byte{value}
				break
			}
		}
	}
}

// judgeKilled looks at an image that nobody has touched since.
func judgeKilled(t *testing.T, path string, pieces [][]byte) {
	t.Helper()
	report, err := vhd.Check(context.Background(), path, vhd.CheckOptions{})
	if err != nil || report.Corrupt() {
		t.Fatalf("check: %v, %+v", err, report)
	}
	d, err := disk.Open(path, disk.VHD, disk.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := make([]byte, pieceBytes)
	for i, may := range pieces {
		if _, err := d.ReadAt(got, int64(i*pieceBytes)); err != nil {
			t.Fatal(err)
		}
		for s := 0; s < pieceBytes; s += vhd.SectorBytes {
			sector := got[s:][:vhd.SectorBytes]
			if !bytes.Contains(may, sector[:1]) || !bytes.Equal(sector, bytes.Repeat(sector[:1], vhd.SectorBytes)) {
				t.Fatalf("byte %d: got %v, want one of %v", i*pieceBytes+s, sector[:8], may)
			}
		}
		if bytes.Equal(got, bytes.Repeat(got[:1], pieceBytes)) {
			pieces[i] = []byte{got[0]}
		}
	}
}
