package lab

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// printed writes a result as init/guest.sh does.
func printed(id, output string, code int) string {
	text := base64.StdEncoding.EncodeToString([]byte(output))
	var b strings.Builder
	b.WriteString("\r\n")
	for n := 1; text != ""; n++ {
		cut := min(120, len(text))
		fmt.Fprintf(&b, "<%s:%d:%s>\r\n", id, n, text[:cut])
		text = text[cut:]
	}
	sum := sha256.Sum256([]byte(output))
	fmt.Fprintf(&b, "<%s:end:%d:%s>\r\n", id, code, hex.EncodeToString(sum[:])[:16])
	return b.String()
}

func TestParseJob(t *testing.T) {
	long := strings.Repeat("a line of output\n", 100)
	clean := printed("j1", long, 3)
	garbled := strings.Replace(clean, "<j1:4:", "<j1:4[   5.1] a kernel message\r\n:", 1)
	cases := []struct {
		name, text string
		want       jobResult
	}{
		{"nothing yet", "noise", jobResult{}},
		{"clean", clean, jobResult{ends: 1, whole: true, output: long, code: 3}},
		{"no output", printed("j1", "", 0), jobResult{ends: 1, whole: true}},
		{"noise between lines", strings.ReplaceAll(clean, "\r\n", "\r\n[ 1.0] noise\r\n"),
			jobResult{ends: 1, whole: true, output: long, code: 3}},
		{"another job between lines", strings.ReplaceAll(clean, "\r\n", "\r\n<j11:1:eA==>\r\n"),
			jobResult{ends: 1, whole: true, output: long, code: 3}},
		{"a second print fills the hole", garbled + clean,
			jobResult{ends: 1, whole: true, output: long, code: 3}},
		{"the end is cut", clean[:len(clean)-6], jobResult{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := parseJob(c.text, "j1")
			if c.want.whole && !got.whole || !c.want.whole && got.whole {
				t.Fatalf("got whole %v", got.whole)
			}
			if got.whole && (got.output != c.want.output || got.code != c.want.code) {
				t.Errorf("got %q, %d", got.output, got.code)
			}
		})
	}
	if got := parseJob(garbled, "j1"); got.whole || got.ends != 1 {
		t.Errorf("a result with a hole: got whole %v, ends %d", got.whole, got.ends)
	}
}

func TestJobLines(t *testing.T) {
	script := strings.Repeat("echo x\n", 500)
	lines := strings.Split(strings.TrimSuffix(jobLines("j1", script), "\n"), "\n")
	text := ""
	for _, line := range lines[:len(lines)-1] {
		if len(line) > 2048 {
			t.Errorf("a line of %d bytes", len(line))
		}
		text += strings.TrimPrefix(line, "w j1 ")
	}
	got, err := base64.StdEncoding.DecodeString(text)
	if string(got) != script || err != nil || lines[len(lines)-1] != "x j1" {
		t.Errorf("got %q, %v, %q", got, err, lines[len(lines)-1])
	}
	if got := jobLines("j1", ""); got != "w j1 \nx j1\n" {
		t.Errorf("empty script: got %q", got)
	}
}

func TestXLConfig(t *testing.T) {
	cases := []struct {
		name string
		o    GuestOptions
		want string
	}{
		{"default", GuestOptions{}, `name = "guest7"
type = "pv"
kernel = "/lab/vmlinux"
ramdisk = "/lab/guest.cpio"
extra = "console=hvc0 mitigations=off rodata=off quiet panic=1 rdinit=/init"
vcpus = 1
memory = 192
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
`},
		{"pvh with everything", GuestOptions{Name: "x", Type: PVH, VCPUs: 2, Fio: true, Args: "a=b",
			Blkfront: []string{"max_queues=1"}, ExtraConfig: `disk = ["phy:/dev/nullb0,xvda,w"]`}, `name = "x"
type = "pvh"
kernel = "/lab/vmlinux"
ramdisk = "/lab/guest-fio.cpio"
extra = "console=hvc0 mitigations=off rodata=off quiet panic=1 rdinit=/init xen_blkfront.max_queues=1 a=b"
vcpus = 2
memory = 384
tsc_mode = "native"
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
disk = ["phy:/dev/nullb0,xvda,w"]
`},
		{"a kernel of the caller's", GuestOptions{Kernel: "/k", MemoryMiB: 64}, `name = "guest7"
type = "pv"
kernel = "/k"
vcpus = 1
memory = 64
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.o.defaults(7)
			if got := c.o.xlConfig(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestGrubSums(t *testing.T) {
	a, b := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	console := "\x1b[30m\x1b[47mWelcome to GRUB!\n\r\x1b[1;38H[ blob  2.00MiB  100% ]\x1b[1;1H" +
		a + "  /blob\n\r" + b + "  /dir/other\n\rlab: grub is done\n\r"
	got := grubSums(console)
	if len(got) != 2 || got["/blob"] != a || got["/dir/other"] != b {
		t.Errorf("got %v", got)
	}
}
