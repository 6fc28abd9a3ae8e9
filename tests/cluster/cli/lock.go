package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// errBusy is returned when another command changes the cluster right now.
var errBusy = errors.New("another up, down or node command is at work on this cluster; try again when it is done")

// lock makes the run folder and locks it against other commands, until the
// returned file is closed. The folder itself is the lock, so that nothing is
// left of it when `down` removes the folder.
func (c *cluster) lock(wait bool) (*os.File, error) {
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	for {
		if err := os.MkdirAll(c.folders.run, 0o700); err != nil {
			return nil, err
		}
		folder, err := os.Open(c.folders.run)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(folder.Fd()), how)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			folder.Close()
			return nil, errBusy
		}
		if err != nil {
			folder.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", c.folders.run, err)
		}
		locked, err := folder.Stat()
		if err != nil {
			folder.Close()
			return nil, err
		}
		// A folder that was removed while this waited locks nothing.
		if now, err := os.Stat(c.folders.run); err == nil && os.SameFile(locked, now) {
			return folder, nil
		}
		folder.Close()
	}
}
