package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// errBusy is returned when another command changes the cluster right now.
var errBusy = errors.New("another up, down or node command is at work on this cluster; try again when it is done")

// lock makes the run folder and locks it against other commands, until the
// returned file is closed. The folder itself is the lock, so that nothing is
// left of it when `down` removes the folder.
func (c *cluster) lock(ctx context.Context, wait bool) (*os.File, error) {
	const pause = 100 * time.Millisecond
	for {
		folder, err := c.tryLock()
		if !errors.Is(err, errBusy) || !wait {
			return folder, err
		}
		select {
		case <-ctx.Done():
			return nil, errBusy
		case <-time.After(pause):
		}
	}
}

// lockPresent waits for the lock of a cluster that is there.
func (c *cluster) lockPresent(ctx context.Context) (*os.File, error) {
	if !c.present() {
		return nil, errNothingRuns
	}
	return c.lock(ctx, true)
}

func (c *cluster) tryLock() (*os.File, error) {
	if err := os.MkdirAll(c.folders.run, 0o700); err != nil {
		return nil, err
	}
	folder, err := os.Open(c.folders.run)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(folder.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil && !isStill(folder, c.folders.run) {
		err = syscall.EWOULDBLOCK // removed in between, so this locks nothing
	}
	switch {
	case err == nil:
		return folder, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = errBusy
	default:
		err = fmt.Errorf("cannot lock %s: %w", c.folders.run, err)
	}
	return nil, errors.Join(err, folder.Close())
}

// isStill tells whether the path leads to the open file.
func isStill(open *os.File, path string) bool {
	one, err := open.Stat()
	if err != nil {
		return false
	}
	other, err := os.Stat(path)
	return err == nil && os.SameFile(one, other)
}
