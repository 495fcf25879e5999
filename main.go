// Command xen-disk attaches virtual disks to running Xen virtual machines.
package main

import (
	"os"

	"xen-disk/internal/cli"
)

// commit is what was built. The linker sets it (Makefile, -X main.commit=) and
// nothing writes to it afterwards.
var commit string

func main() { os.Exit(cli.Main(os.Args[1:], commit)) }
