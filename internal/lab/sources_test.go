package lab

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRewriteList(t *testing.T) {
	const in = `# a comment
deb http://mirror.invalid/debian trixie main contrib
deb-src http://mirror.invalid/debian trixie main
deb [arch=amd64 signed-by=/a.gpg] http://mirror.invalid/debian trixie-updates main
deb [ arch=amd64 ] http://mirror.invalid/security trixie-security main
deb http://vendor.invalid/apt vendor-trixie main
deb http://vendor.invalid/flat ./
deb broken
`
	const want = `deb http://mirror.invalid/debian bookworm main contrib
deb [arch=amd64 signed-by=/a.gpg] http://mirror.invalid/debian bookworm-updates main
deb [ arch=amd64 ] http://mirror.invalid/security bookworm-security main
`
	if got := rewriteList(in, "trixie", "bookworm"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestRewriteDeb822(t *testing.T) {
	const in = `Types: deb
# a comment
URIs: http://mirror.invalid/debian
Suites: trixie trixie-updates trixie-backports
Components: main
Signed-By: /a.gpg

Types: deb
URIs: http://vendor.invalid/apt
suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://mirror.invalid/off
Suites: trixie
`
	const want = `Types: deb
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /a.gpg
`
	if got := rewriteDeb822(in, "trixie", "bookworm"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWriteSourcesNeedsOne(t *testing.T) {
	etc, out := t.TempDir(), t.TempDir()
	if err := writeSources(etc, out, "trixie", "bookworm"); err == nil {
		t.Error("no sources, and no error")
	}
	list := []byte("deb http://mirror.invalid/debian trixie main\n")
	if err := os.WriteFile(filepath.Join(etc, "sources.list"), list, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeSources(etc, out, "trixie", "bookworm"); err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(filepath.Join(out, "lab0.list"))
	if want := "deb http://mirror.invalid/debian bookworm main\n"; string(got) != want || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestOSRelease(t *testing.T) {
	if got, err := osRelease("ID=debian\nVERSION_CODENAME=trixie\n"); got != "trixie" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := osRelease("ID=fedora\n"); err == nil {
		t.Error("fedora is no Debian")
	}
}
