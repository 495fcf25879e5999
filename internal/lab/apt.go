package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

// hostTools are the programs that the lab runs on the host, and the Debian
// packages that they come from.
var hostTools = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86",
	"dpkg-deb":           "dpkg",
	"xz":                 "xz-utils",
	"mke2fs":             "e2fsprogs",
}

// installHostTools installs the packages of those host tools that are missing.
func installHostTools(ctx context.Context, log func(string)) error {
	var missing []string
	for tool, pkg := range hostTools {
		if _, err := lookTool(tool); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	log("install on this machine: " + strings.Join(missing, " "))
	sudo := []string{}
	if os.Getuid() != 0 {
		sudo = []string{"sudo", "-n"}
	}
	env := []string{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"}
	for _, args := range [][]string{
		{"update"},
		append([]string{"install", "-y", "--no-install-recommends"}, missing...),
	} {
		argv := append(append(append([]string{}, sudo...), env...), args...)
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("install %s: %w\nwhy: %s\nhint: run as root: apt-get install %s",
				strings.Join(missing, " "), err, lastLine(string(out)), strings.Join(missing, " "))
		}
	}
	return nil
}

// lookTool finds a host program, also where an ordinary user's PATH does not
// reach.
func lookTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find program %s: %w", name, exec.ErrNotFound)
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// aptConf keeps apt away from the machine's own state: its lists, its idea of
// what is installed (nothing), its cache. Hooks are cleared, since those of
// container images delete the machine's own downloads.
const aptConf = `Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Cache::archives "%[2]s";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "%[1]s/sources";
Dir::Etc::preferencesparts "%[1]s/none";
Dir::Etc::preferences "/dev/null";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "3";
Quiet "1";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
`

// download fetches packages of a suite, with all that they depend on, into
// archives. state is a directory for apt's private state.
func download(ctx context.Context, suite string, pkgs []string, state, archives string) error {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return err
	}
	codename, err := osRelease(string(text))
	if err != nil {
		return err
	}
	for _, dir := range []string{
		state + "/state/lists/partial", state + "/cache", state + "/sources", state + "/none",
		archives + "/partial",
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := writeSources("/etc/apt", state+"/sources", codename, suite); err != nil {
		return err
	}
	conf := filepath.Join(state, "apt.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, aptConf, state, archives), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(state, "status"), nil, 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"update"},
		append([]string{"install", "--download-only", "--no-install-recommends"}, pkgs...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-c", conf}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("download packages of %s: apt-get %s: %w\nwhy: %s",
				suite, args[0], err, lastLine(string(out)))
		}
	}
	return nil
}

// unpack extracts all packages of archives below root, several at once.
func unpack(ctx context.Context, archives, root string) error {
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) == 0 {
		return fmt.Errorf("unpack packages: none in %s", archives)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	work := make(chan string)
	errs := make(chan error, len(debs))
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Add(1)
		go func() { // ends with the list of packages
			defer wg.Done()
			for deb := range work {
				out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, root).CombinedOutput()
				if err != nil {
					errs <- fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, lastLine(string(out)))
				}
			}
		}()
	}
	for _, deb := range debs {
		work <- deb
	}
	close(work)
	wg.Wait()
	close(errs)
	return <-errs
}
