package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Prepare makes sure that this machine can boot the default suite: it
// installs the host tools that are missing, downloads the packages, and
// builds the images. All of it is cached; a warm call takes milliseconds.
// Each step is told to log, which may be nil.
func Prepare(ctx context.Context, log func(string)) error {
	return PrepareSuite(ctx, DefaultSuite, log)
}

// PrepareSuite is Prepare for a named suite.
func PrepareSuite(ctx context.Context, suite string, log func(string)) error {
	_, err := prepare(ctx, suite, log)
	return err
}

// prepare returns the directory of the suite's images.
func prepare(ctx context.Context, suite string, log func(string)) (dir string, err error) {
	if log == nil {
		log = func(string) {}
	}
	pkgs, err := packages(suite)
	if err != nil {
		return "", err
	}
	base, err := cacheDir()
	if err != nil {
		return "", err
	}
	unlock, err := lockDir(ctx, base)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := installHostTools(ctx, log); err != nil {
		return "", err
	}
	dir = filepath.Join(base, recipeKey(suite))
	debs := filepath.Join(base, packagesKey(suite, pkgs))
	defer prune(base, dir, debs)
	if isDir(dir) {
		return dir, nil
	}
	work, err := os.MkdirTemp(base, "tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if !isDir(debs) {
		log("download packages of " + suite)
		archives := filepath.Join(work, "archives")
		if err := download(ctx, suite, pkgs, filepath.Join(work, "apt"), archives); err != nil {
			return "", err
		}
		if err := os.Rename(archives, debs); err != nil {
			return "", err
		}
	}
	log("unpack packages")
	root := filepath.Join(work, "root")
	if err := unpack(ctx, debs, root); err != nil {
		return "", err
	}
	log("pack images")
	out := filepath.Join(work, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return "", err
	}
	if err := (packer{root: root, out: out}).pack(); err != nil {
		return "", err
	}
	return dir, os.Rename(out, dir)
}

// maxIdle is how long the images of a recipe that nobody boots are kept.
const maxIdle = 7 * 24 * time.Hour

// prune marks what is in use as used now, and removes what was not used for
// long: recipes change, and each leaves 300 MB behind. The lock is held.
func prune(base string, used ...string) {
	now := time.Now()
	for _, dir := range used {
		_ = os.Chtimes(dir, now, now) // a failure only shortens its life
	}
	entries, _ := os.ReadDir(base)
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && e.IsDir() && now.Sub(info.ModTime()) > maxIdle {
			os.RemoveAll(filepath.Join(base, e.Name()))
		}
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// cacheDir is where packages and images are kept: outside the repository.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir() // $XDG_CACHE_HOME, else ~/.cache
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	dir := filepath.Join(base, "xen-disk", "lab")
	return dir, os.MkdirAll(dir, 0o755)
}

// lockDir holds an exclusive lock on a directory, so that of several
// processes one prepares and the others find it done. The lock ends with the
// process, however that ends. Temporary directories of processes that were
// killed are removed, which is safe while the lock is held.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { // ends with the lock, which a waiting process gets at last
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for err == unix.EINTR {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		locked <- err
	}()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	case <-ctx.Done():
		go func() { <-locked; f.Close() }()
		return nil, fmt.Errorf("lock %s: %w", dir, ctx.Err())
	}
	left, _ := filepath.Glob(filepath.Join(dir, "tmp-*"))
	for _, path := range left {
		os.RemoveAll(path)
	}
	return func() { f.Close() }, nil
}
