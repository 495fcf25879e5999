package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"xen-disk/internal/blkback"
	"xen-disk/xs"
)

// commands is the whole command line.
type commands struct {
	Connect connectCmd `cmd:"" help:"Attach a disk to a running virtual machine and serve it."`

	Verbose bool             `short:"v" help:"Log every step to standard error."`
	Version kong.VersionFlag `help:"Print the version and exit."`
}

// environment is what commands need of the world; tests bring their own.
type environment struct {
	stdout, stderr io.Writer
	log            zerolog.Logger
	euid           int
	onXen          func() bool
	dial           func() (*xs.Conn, error)
	openXen        func() (blkback.Xen, error)
}

// Main runs the command line and returns the exit code.
func Main(args []string) int {
	return run(args, &environment{
		stdout: os.Stdout, stderr: os.Stderr, euid: os.Geteuid(),
		onXen: onXen, dial: xs.Dial, openXen: openDoor,
	})
}

const description = `Attach virtual disks to running Xen virtual machines.

Run it in dom0 (or a driver domain), as root.`

func run(args []string, env *environment) int {
	var cmds commands
	exit := -1
	parser, err := kong.New(&cmds,
		kong.Name("xen-disk"), kong.Description(description),
		kong.Vars{"version": version()}, kong.Writers(env.stdout, env.stderr),
		kong.Exit(func(code int) { exit = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true}))
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
		hint = fmt.Sprintf("run 'xen-disk %s --help'", parse.Context.Selected().Name)
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
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// version is what the build knows of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "xen-disk (unknown build)"
	}
	text := "xen-disk " + info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			text += " (" + s.Value + ")"
		}
	}
	return text
}
