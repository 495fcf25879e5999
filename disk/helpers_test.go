package disk

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// holdEnv makes the test binary open the image it names, say so on stdout, and
// hold it until it is killed or stdin ends.
const holdEnv = "XEN_DISK_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdEnv); path != "" {
		hold(path)
	}
	// The first child makes the os package open what it keeps for ever.
	_ = exec.Command("true").Run()
	os.Exit(m.Run())
}

func hold(path string) {
	if _, err := Open(path, Raw, Options{}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// startHolder runs hold in another process and returns when it has the lock.
func startHolder(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"="+path)
	stdin, err := cmd.StdinPipe() // ends with this process, and the holder then
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait() // an error when the test has waited already
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line != "held\n" {
		t.Fatalf("holder said %q, %v", line, err)
	}
	return cmd
}

// image makes a file with random contents.
func image(t *testing.T, sizeBytes int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	writeFile(t, path, pattern(sizeBytes))
	return path
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pattern returns n bytes that differ from place to place, the same each time.
func pattern(n int) []byte {
	b := make([]byte, n)
	fill(rand.New(rand.NewPCG(1, 2)), b)
	return b
}

func fill(r *rand.Rand, b []byte) {
	for len(b) >= 8 {
		binary.NativeEndian.PutUint64(b, r.Uint64())
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

// random is seeded anew each time and says with what.
func random(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("XEN_DISK_TEST_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("XEN_DISK_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// mustOpen opens and closes with the test.
func mustOpen(t *testing.T, path string, f Format, o Options) Disk {
	t.Helper()
	d, err := Open(path, f, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// noLeaks fails the test when it ends with other fds or file mappings than it
// began with. Call it first: cleanups run backwards.
func noLeaks(t *testing.T) {
	t.Helper()
	fds, maps := openFDs(t), fileMappings(t)
	t.Cleanup(func() {
		if now := openFDs(t); !slices.Equal(now, fds) {
			t.Errorf("open fds: got %q, want %q", now, fds)
		}
		if now := fileMappings(t); !slices.Equal(now, maps) {
			t.Errorf("mapped files: got %q, want %q", now, maps)
		}
	})
}

func openFDs(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, e := range entries {
		// ReadDir's own fd is gone by now and has no target.
		if target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	return targets
}

// fileMappings lists the shared file mappings of this process.
func fileMappings(t *testing.T) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(string(readFile(t, "/proc/self/maps"))) {
		f := strings.Fields(line)
		if len(f) > 5 && strings.HasSuffix(f[1], "s") {
			names = append(names, f[5])
		}
	}
	slices.Sort(names)
	return names
}
