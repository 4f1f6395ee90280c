package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// echoOff stops a terminal from showing what is typed, until restore is called.
func echoOff(f *os.File) (restore func()) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}
	}
	silent := *old
	silent.Lflag &^= unix.ECHO
	if unix.IoctlSetTermios(fd, unix.TCSETS, &silent) != nil {
		return func() {}
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) } // nothing can be done about a terminal that went away
}
