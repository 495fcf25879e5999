package vhd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// killEnv tells the test binary to be the program that is killed: image, seed,
// the number of its first write, and perhaps the child that it goes on in.
const killEnv = "VHD_TEST_KILL_WRITER"

// TestKillWriter is that program, and nothing when nobody asks for it.
func TestKillWriter(t *testing.T) {
	args := strings.Fields(os.Getenv(killEnv))
	if len(args) == 0 {
		return
	}
	seed, _ := strconv.ParseUint(args[1], 10, 64)
	first, _ := strconv.ParseUint(args[2], 10, 64)
	d, err := Open(args[0], Options{CommitInterval: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	w := killedWrites{seed: seed, sectors: d.SizeBytes() / 512}
	if len(args) > 3 {
		go func() {
			if err := d.Snapshot(args[3]); err != nil {
				t.Error(err)
			}
		}()
	}
	for number := first; ; number++ {
		off, p := w.write(number)
		if _, err := d.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		if number%5 == 0 {
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
			fmt.Printf("flushed %d\n", number)
		}
	}
}

// killedWrites are the writes of the program, which whoever killed it can make
// again. Each sector tells the number of its write, from 1.
type killedWrites struct {
	seed    uint64
	sectors int64
}

func (w *killedWrites) write(number uint64) (off int64, p []byte) {
	r := rand.New(rand.NewPCG(w.seed, number))
	n := 1 + r.Int64N(12)
	off = r.Int64N(w.sectors-n) * 512
	p = make([]byte, n*512)
	for i := 0; i < len(p); i += 512 {
		for k := 0; k < 512; k += 8 {
			binary.LittleEndian.PutUint64(p[i+k:], number)
		}
	}
	return off, p
}

// covers says whether a write is to a sector; 0 is none, and so to all.
func (w *killedWrites) covers(number uint64, sector int64) bool {
	off, p := w.write(number)
	return number == 0 || sector*512 >= off && sector*512 < off+int64(len(p))
}

// sectorNumber is the number in a sector, which must be the same throughout.
func sectorNumber(b []byte) (uint64, bool) {
	return binary.LittleEndian.Uint64(b), bytes.Equal(b[:504], b[8:])
}

// TestKill kills a writing program a hundred times, some of them in a live
// snapshot. After each the image has a footer at its end and no damage, what
// had been flushed is there, and all else is something that was written. A
// child that can be opened shows that, whether the program had got to it or
// not.
func TestKill(t *testing.T) {
	const rounds = 100
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	image := filepath.Join(dir, "base.vhd")
	const sizeBytes = 8 << 20
	if err := Create(image, CreateOptions{SizeBytes: sizeBytes, BlockBytes: 32 << 10}); err != nil {
		t.Fatal(err)
	}
	w := killedWrites{seed: seed, sectors: sizeBytes / 512}
	expect := make([]uint64, w.sectors) // the least that a sector may say
	r := rand.New(rand.NewPCG(seed, 0))
	next := uint64(1)
	for round := range rounds {
		args := fmt.Sprintf("%s %d %d", image, seed, next)
		child := filepath.Join(dir, fmt.Sprintf("child%d.vhd", round))
		if round%6 == 5 {
			args += " " + child
		}
		flushed := killOne(t, args, r.IntN(30))
		if d, err := Open(child, Options{ReadOnly: true}); err == nil {
			d.Close()
			image = child
		}
		last := next
		for ; next <= flushed; next++ {
			off, p := w.write(next)
			for i := range int64(len(p)) / 512 {
				expect[off/512+i] = next
			}
		}
		last = max(last, judgeKilled(t, image, &w, expect))
		next = last + 1
	}
}

// killOne starts the program, lets it flush some times and kills it. It returns
// the number of the last write that is known to be flushed.
func killOne(t *testing.T, args string, flushes int) (flushed uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillWriter$")
	cmd.Env = append(os.Environ(), killEnv+"="+args)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for killed := false; lines.Scan(); {
		// It can have flushed more before it died.
		if _, err := fmt.Sscanf(lines.Text(), "flushed %d", &flushed); err != nil {
			t.Errorf("the writer says %q", lines.Text())
		}
		if flushes--; flushes <= 0 && !killed {
			killed = true
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // it was killed
	return flushed
}

// judgeKilled reads the image as it was left, and raises expect to what is
// there. It returns the number of the last write of which there is a trace.
func judgeKilled(t *testing.T, image string, w *killedWrites, expect []uint64) (last uint64) {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if faults := audit(b); len(faults) != 0 {
		t.Fatalf("after the kill: %q", faults)
	}
	d, err := Open(image, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, p := range d.Problems() {
		if p.Severity >= Damage {
			t.Errorf("after the kill: %+v", p)
		}
	}
	got, err := readAll(d)
	if err != nil {
		t.Fatal(err)
	}
	for s := range expect {
		number, whole := sectorNumber(got[s*512:][:512])
		if number < expect[s] || !whole || !w.covers(number, int64(s)) {
			t.Fatalf("sector %d is of write %d (whole: %v), want %d or later", s, number, whole, expect[s])
		}
		expect[s] = number
		last = max(last, number)
	}
	return last
}
