// Command xen-disk attaches virtual disks to running Xen virtual machines.
package main

import (
	"os"

	"xen-disk/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
