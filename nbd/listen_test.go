package nbd

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListen(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "socket")
	umask := unix.Umask(0)
	defer unix.Umask(umask)
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if got := unix.Umask(0); got != 0 {
		t.Errorf("the umask became %#o", got)
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket after Close: %v", err)
	}
}

// dead leaves the socket of a program that died.
func dead(t *testing.T, path string) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenReplacesDeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	dead(t, path)
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
}

func TestListenRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, path string)
		want error
	}{
		{"live socket", func(t *testing.T, path string) {
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
		}, ErrSocketInUse},
		{"file", func(t *testing.T, path string) { write(t, path) }, ErrNotSocket},
		{"directory", func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, ErrNotSocket},
		{"fifo", func(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) }, ErrNotSocket},
		{"link to a dead socket", func(t *testing.T, path string) {
			dead(t, path+"2")
			must(t, os.Symlink(path+"2", path))
		}, ErrNotSocket},
		{"dangling link", func(t *testing.T, path string) { must(t, os.Symlink("nowhere", path)) }, ErrNotSocket},
		{"file as directory", func(t *testing.T, path string) { write(t, filepath.Dir(path)) }, unix.ENOTDIR},
		{"no directory", func(t *testing.T, path string) { must(t, os.Remove(filepath.Dir(path))) }, fs.ErrNotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir")
			path := filepath.Join(dir, "socket")
			if c.want != error(unix.ENOTDIR) {
				must(t, os.Mkdir(dir, 0o700))
			}
			c.make(t, path)
			before, _ := os.Lstat(path)
			ln, err := Listen(path)
			if !errors.Is(err, c.want) || ln != nil {
				t.Errorf("got %v, %v, want %v", ln, err, c.want)
			}
			if after, _ := os.Lstat(path); before != nil && !os.SameFile(before, after) {
				t.Errorf("%s is another file now", path)
			}
		})
	}
}

// TestListenPaths: package net gives some a meaning that we do not want.
func TestListenPaths(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct {
		path string
		want error
	}{
		{"", unix.EINVAL},
		{strings.Repeat("x", maxPathBytes+1), unix.ENAMETOOLONG},
	} {
		if _, err := Listen(c.path); !errors.Is(err, c.want) {
			t.Errorf("%q: got %v, want %v", c.path, err, c.want)
		}
	}
	for _, path := range []string{"@abstract", strings.Repeat("x", maxPathBytes), "@" + strings.Repeat("x", maxPathBytes-1)} {
		ln, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat("./" + path); err != nil {
			t.Error(err)
		}
		must(t, ln.Close())
		if _, err := os.Lstat("./" + path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after Close: %v", path, err)
		}
	}
}

func write(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("precious"), 0o600)) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
