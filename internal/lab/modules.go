package lab

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// module is one kernel module, uncompressed, with its direct needs.
type module struct {
	name    string // as the kernel spells it: with underscores
	data    []byte
	deps    []string
	aliases []string // what the kernel asks for, "fs-ext3"
}

// moduleName gives the kernel's spelling of a module's or a file's name.
func moduleName(s string) string {
	s = filepath.Base(s)
	if i := strings.Index(s, ".ko"); i >= 0 {
		s = s[:i]
	}
	return strings.ReplaceAll(s, "-", "_")
}

// loadModules reads the wanted modules and all that they need, each after
// what it needs. Names that the kernel has built in are left out.
func loadModules(root, release string, wanted []string) ([]module, error) {
	dir := moduleDir(root, release)
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), ".ko") {
			files[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	inKernel := map[string]bool{}
	for _, line := range strings.Fields(string(builtin)) {
		inKernel[moduleName(line)] = true
	}
	l := moduleLoader{files: files, inKernel: inKernel, done: map[string]bool{}}
	for _, name := range wanted {
		if err := l.load(moduleName(name)); err != nil {
			return nil, err
		}
	}
	return l.order, nil
}

func moduleDir(root, release string) string {
	for _, lib := range []string{"lib", "usr/lib"} {
		dir := filepath.Join(root, lib, "modules", release)
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return filepath.Join(root, "lib/modules", release)
}

type moduleLoader struct {
	files    map[string]string
	inKernel map[string]bool
	done     map[string]bool
	order    []module
}

func (l *moduleLoader) load(name string) error {
	if l.done[name] || l.inKernel[name] {
		return nil
	}
	l.done[name] = true
	path, ok := l.files[name]
	if !ok {
		return fmt.Errorf("find module %s: the kernel package has none", name)
	}
	data, err := readModule(path)
	if err != nil {
		return fmt.Errorf("read module %s: %w", name, err)
	}
	m := module{name: name, data: data}
	if err := m.readInfo(); err != nil {
		return fmt.Errorf("read module %s: %w", name, err)
	}
	for _, dep := range m.deps {
		if err := l.load(dep); err != nil {
			return fmt.Errorf("%w, needed by %s", err, name)
		}
	}
	l.order = append(l.order, m)
	return nil
}

// readModule reads a module file, through xz(1) where it is compressed.
func readModule(path string) ([]byte, error) {
	if strings.HasSuffix(path, ".xz") {
		return exec.Command("xz", "-dc", path).Output()
	}
	return os.ReadFile(path)
}

// readInfo reads the module's .modinfo section, which is a row of key=value
// strings that end in NUL.
func (m *module) readInfo() error {
	f, err := elf.NewFile(bytes.NewReader(m.data))
	if err != nil {
		return err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return fmt.Errorf("find .modinfo: no such section")
	}
	info, err := section.Data()
	if err != nil {
		return err
	}
	for _, field := range strings.Split(string(info), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch {
		case key == "alias":
			m.aliases = append(m.aliases, value)
		case key == "depends" && value != "":
			for _, dep := range strings.Split(value, ",") {
				m.deps = append(m.deps, moduleName(dep))
			}
		}
	}
	return nil
}

// modulesAlias writes the index for what the kernel asks modprobe for by
// another name: a file system, a checksum.
func modulesAlias(mods []module) string {
	var b strings.Builder
	for _, m := range mods {
		for _, alias := range m.aliases {
			fmt.Fprintf(&b, "alias %s %s\n", alias, m.name)
		}
	}
	return b.String()
}

// modulesDep writes the text index that busybox modprobe reads: one line a
// module, with everything that it needs. modprobe loads a line from its end,
// so the needs stand in reverse load order.
func modulesDep(mods []module) string {
	var b strings.Builder
	for i, m := range mods {
		need := map[string]bool{m.name: true}
		b.WriteString(m.name + ".ko:")
		for j := i; j >= 0; j-- { // what m needs stands before m
			if !need[mods[j].name] {
				continue
			}
			for _, dep := range mods[j].deps {
				need[dep] = true
			}
			if j != i {
				b.WriteString(" " + mods[j].name + ".ko")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
