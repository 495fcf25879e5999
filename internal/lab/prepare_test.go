package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestModulesDepLoadsNeedsFirst(t *testing.T) {
	// a needs b and c, b needs c: modprobe loads a line from its end.
	got := modulesDep([]module{
		{name: "c"}, {name: "b", deps: []string{"c"}}, {name: "a", deps: []string{"b", "c"}}, {name: "d"},
	})
	want := "c.ko:\nb.ko: c.ko\na.ko: b.ko c.ko\nd.ko:\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestKernelPayload(t *testing.T) {
	bz := make([]byte, 3*512)
	bz[bzSetupSects] = 1
	copy(bz[bzMagic:], bzMagicText)
	binary.LittleEndian.PutUint32(bz[bzPayloadOffset:], 16)
	binary.LittleEndian.PutUint32(bz[bzPayloadLength:], 10)
	copy(bz[1024+16:], "abcdef\x00\x01\x00\x00")
	if got, err := kernelPayload(bz); string(got) != "abcdef" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	binary.LittleEndian.PutUint32(bz[bzPayloadLength:], 1<<20)
	if _, err := kernelPayload(bz); err == nil {
		t.Error("took a payload past the end")
	}
	if _, err := kernelPayload(nil); err == nil {
		t.Error("took nothing for a kernel")
	}
}

func TestRecipeKeyNamesTheSuite(t *testing.T) {
	a, b := recipeKey("bookworm"), recipeKey("trixie")
	if !strings.HasPrefix(a, "bookworm-") || a == b || a != recipeKey("bookworm") {
		t.Errorf("got %s, %s", a, b)
	}
	if _, err := packages("potato"); err == nil {
		t.Error("knows the packages of potato")
	}
}

// TestLockExcludes holds the lock and sees that a second taker waits, and
// that what a killed process left behind is removed.
func TestLockExcludes(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "tmp-1")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockDir(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if isDir(left) {
		t.Error("the left-over is still there")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := lockDir(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a deadline", err)
	}
	unlock()
	again, err := lockDir(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestPruneKeepsWhatIsUsed(t *testing.T) {
	base := t.TempDir()
	used, idle, young := filepath.Join(base, "a"), filepath.Join(base, "b"), filepath.Join(base, "c")
	old := time.Now().Add(-2 * maxIdle)
	for _, dir := range []string{used, idle, young} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir != young {
			if err := os.Chtimes(dir, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	prune(base, used)
	if !isDir(used) || isDir(idle) || !isDir(young) {
		t.Errorf("used %v, idle %v, young %v", isDir(used), isDir(idle), isDir(young))
	}
}

func TestTranscriptWaits(t *testing.T) {
	tr := newTranscript()
	go func() {
		tr.Write([]byte("one "))
		tr.Write([]byte("two"))
		tr.close(nil)
	}()
	ctx := context.Background()
	if err := tr.wait(ctx, 0, func(s string) bool { return s == "one two" }); err != nil {
		t.Error(err)
	}
	if err := tr.wait(ctx, 4, func(s string) bool { return s == "two" }); err != nil {
		t.Error(err)
	}
	if err := tr.wait(ctx, 0, func(s string) bool { return false }); err == nil {
		t.Error("waited behind the end")
	}
	tr = newTranscript()
	big := make([]byte, maxTranscript)
	tr.Write(big)
	tr.Write([]byte("end"))
	if got := tr.String(); len(got) > maxTranscript || !strings.HasSuffix(got, "end") || tr.end() != len(big)+3 {
		t.Errorf("got %d bytes, end %d", len(got), tr.end())
	}
}
