package main

import (
	"context"
	"fmt"
	"time"
)

// waitFor asks until the condition holds. It ends early, with the end of its
// log, when a component that this command started has died.
func (c *cluster) waitFor(ctx context.Context, what string, limit time.Duration, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	const pause = 100 * time.Millisecond
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		for _, p := range c.watched {
			select {
			case <-p.exited:
				return fmt.Errorf("%s died while waiting for %s; the end of %s:\n%s", p.name, what, c.logPath(p.name), c.lastLines(p.name))
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %w", limit, what, err)
		case <-time.After(pause):
		}
	}
}
