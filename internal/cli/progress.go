package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// work does what may take long. A signal cancels its context, and is then in
// the error; a second one ends the process at once. On a terminal a bar
// shows how far it is.
func (env *environment) work(name string, unit unit, do func(ctx context.Context, show progress) error) error {
	ctx, stop := env.untilSignal()
	defer stop()
	show, end := startProgress(env.stderr, name, unit)
	defer end()
	err := do(ctx, show)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return context.Cause(ctx)
	}
	return err
}

// progress shows how much is done; any goroutine may call it.
type progress func(done, total int64)

// unit is what a progress counts.
type unit int

const (
	inBytes unit = iota
	inBlocks
)

// startProgress draws a bar where a person sees it, from the first call of
// show to end.
func startProgress(w io.Writer, name string, unit unit) (show progress, end func()) {
	f, ok := w.(*os.File)
	if !ok || !isTerminal(f) {
		return func(int64, int64) {}, func() {}
	}
	var (
		once sync.Once
		bars *mpb.Progress
		bar  *mpb.Bar
	)
	show = func(done, total int64) {
		once.Do(func() {
			bars = mpb.New(mpb.WithOutput(f), mpb.WithWidth(columns))
			bar = newBar(bars, name, unit)
		})
		bar.SetTotal(total, false)
		bar.SetCurrent(done)
	}
	return show, func() {
		once.Do(func() {})
		if bar != nil {
			bar.Abort(true) // the command says in words what became of it
			bars.Wait()
		}
	}
}

func newBar(bars *mpb.Progress, name string, unit unit) *mpb.Bar {
	count := decor.CountersKibiByte("% .1f / % .1f")
	rate := decor.AverageSpeed(decor.SizeB1024(0), "% .1f")
	if unit == inBlocks {
		count, rate = decor.CountersNoUnit("%d / %d blocks"), decor.Name("")
	}
	style := mpb.BarStyle().Lbound("[").Filler("#").Tip("#").Padding(" ").Rbound("]")
	return bars.New(0, style, mpb.PrependDecorators(decor.Name(name+" "), count),
		mpb.AppendDecorators(rate, decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 8})))
}

// stoppedError says that a person wanted no more.
type stoppedError struct{ signal unix.Signal }

func (e *stoppedError) Error() string { return "stopped by " + unix.SignalName(e.signal) }

// code is the exit code by which shells tell what a process died of.
func (e *stoppedError) code() int { return exitSignal + int(e.signal) }

// untilSignal returns a context that the first signal cancels that asks for an
// end. From then on, and after stop, signals do what they do when nobody
// listens. What whoever started the process had it ignore stays ignored (nohup,
// or a shell's background).
func untilSignal() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	heard := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(heard, sig)
		}
	}
	go func() { // until stop
		select {
		case sig := <-heard:
			signal.Stop(heard)
			cancel(&stoppedError{sig.(unix.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(heard)
		cancel(nil)
	}
}

// dieOf ends the process as a signal does when the exit code says so: a shell
// goes on with its loop after a command that merely exits
// (https://www.cons.org/cracauer/sigint.html).
func dieOf(code int) int {
	if code <= exitSignal {
		return code
	}
	sig := unix.Signal(code - exitSignal)
	signal.Reset(sig)
	if unix.Kill(unix.Getpid(), sig) == nil {
		<-time.After(time.Second) // another thread may be the one to take it
	}
	return code
}
