package lab

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
)

// libraryDirs are where Debian's dynamic loader looks, and where librbd
// keeps its private library.
var libraryDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu",
	"/usr/lib/x86_64-linux-gnu/ceph", "/lib64", "/usr/lib64",
}

// loader is the interpreter that the headers of all amd64 programs name.
const loader = "/lib64/ld-linux-x86-64.so.2"

// dlopened are libraries that no header names but that run-time asks for:
// pthread_cancel loads libgcc_s, and xl calls it.
var dlopened = []string{"libgcc_s.so.1"}

// libraries adds to found (path below root -> true) all shared libraries that
// the program needs, directly or not. Programs without a dynamic section, and
// files that are no ELF at all, need none.
func libraries(root, program string, found map[string]bool) error {
	f, err := elf.Open(filepath.Join(root, program))
	if err != nil {
		if _, ok := err.(*elf.FormatError); ok {
			return nil
		}
		return err
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read libraries of %s: %w", program, err)
	}
	if f.Section(".interp") != nil {
		found[loader] = true
		needed = append(needed, dlopened...)
	}
	for _, name := range needed {
		path, err := findLibrary(root, name)
		if err != nil {
			return fmt.Errorf("%w, needed by %s", err, program)
		}
		if found[path] {
			continue
		}
		found[path] = true
		if err := libraries(root, path, found); err != nil {
			return err
		}
	}
	return nil
}

func findLibrary(root, name string) (string, error) {
	for _, dir := range libraryDirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(filepath.Join(root, path)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find library %s below %s", name, root)
}
