package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"xen-disk/internal/blkback"
	"xen-disk/reactor"
	"xen-disk/xs"
)

// release is the version that --version prints; the commit says more.
const release = "0.1.0"

// commands is the whole command line.
type commands struct {
	Connect connectCmd `cmd:"" help:"Attach a disk to a running virtual machine and serve it."`
	Image   imageCmd   `cmd:"" help:"Make, look at, check and mend VHD images."`
	Export  exportCmd  `cmd:"" help:"Serve an image to NBD clients on a unix socket."`

	Verbose bool             `short:"v" help:"Log every step to standard error."`
	Version kong.VersionFlag `help:"Print the version and exit."`
}

// environment is what commands need of the world; tests bring their own.
type environment struct {
	stdout, stderr io.Writer
	log            zerolog.Logger
	version        string
	now            func() time.Time
	onXen          func() bool
	dial           func() (*xs.Conn, error)
	openXen        func() (blkback.Xen, error)
	// signals calls f on the loop for each signal that asks for an end.
	signals func(loop *reactor.Loop, f func(os.Signal))
	// untilSignal returns the context of long work on an image.
	untilSignal func() (ctx context.Context, stop func())
	// ready prepares the process to serve disks.
	ready func()
}

// Main runs the command line and returns the exit code. The commit is what
// the linker was told, or empty.
func Main(args []string, commit string) int {
	return dieOf(run(args, &environment{
		stdout: os.Stdout, stderr: os.Stderr, version: version(commit), now: time.Now,
		onXen: onXen, dial: xs.Dial, openXen: openDoor,
		signals: signals, untilSignal: untilSignal, ready: ready,
	}))
}

const description = `Attach virtual disks to running Xen virtual machines.

Run it in dom0 or in a driver domain, as root.

Examples:
  xen-disk connect debian
  xen-disk connect debian --path disk.raw
  xen-disk image create disk.vhd --size 10GiB

Exit codes:
  0 ok  1 failed  2 usage  3 not found  4 busy  5 guest
  6 corrupt  7 leaks  8 differ  9 no Xen`

func run(args []string, env *environment) int {
	var cmds commands
	exit := -1
	parser, err := kong.New(&cmds,
		kong.Name("xen-disk"), kong.Description(description),
		kong.Vars{"version": env.version}, kong.Writers(env.stdout, env.stderr),
		kong.Exit(func(code int) { exit = code }),
		kong.ConfigureHelp(kong.HelpOptions{
			Compact: true, FlagsLast: true, NoExpandSubcommands: true, WrapUpperBound: columns,
		}))
	if err != nil {
		panic(err) // the struct above is wrong
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	ctx, err := parser.Parse(args)
	if exit >= 0 { // --help and --version end here
		return exit
	}
	if err != nil {
		return report(env.stderr, usage(err))
	}
	env.log = newLog(env.stderr, cmds.Verbose)
	return report(env.stderr, ctx.Run(env))
}

// usage turns a parse error into one with a hint.
func usage(err error) error {
	hint := "run 'xen-disk --help'"
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil && parse.Context.Selected() != nil {
		hint = fmt.Sprintf("run '%s --help'", parse.Context.Selected().FullPath())
	}
	return &userError{What: err.Error(), Hint: hint, Code: exitUsage}
}

// newLog logs for people on a terminal and as JSON elsewhere. What a person
// must know is printed, so only trouble is logged by default.
func newLog(w io.Writer, verbose bool) zerolog.Logger {
	level := zerolog.ErrorLevel
	if verbose {
		level = zerolog.DebugLevel
	}
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: "15:04:05.000"}
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// version says what was built, by what the linker or the go command knows.
func version(commit string) string {
	if info, ok := debug.ReadBuildInfo(); ok && commit == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	if commit == "" {
		commit = "unknown"
	}
	return fmt.Sprintf("xen-disk %s (commit %s, %s, %s/%s)",
		release, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
