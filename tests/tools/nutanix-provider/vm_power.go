package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	powerAttempts   = 10
	powerRetryAfter = 5 * time.Second
)

// setPower brings a VM to ON or, hard, to OFF. A VM that is there already is left alone.
func (c *clients) setPower(ctx context.Context, id, want string, limit time.Duration) error {
	var err error
	for attempt := range powerAttempts {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(powerRetryAfter):
			}
		}
		var done bool
		if done, err = c.tryPower(ctx, id, want, limit); done {
			return err
		}
	}
	return fmt.Errorf("power %s, tried %d times: %w", want, powerAttempts, err)
}

// tryPower makes one attempt; `done` says that another one would be pointless.
func (c *clients) tryPower(ctx context.Context, id, want string, limit time.Duration) (done bool, err error) {
	vm, _, err := c.getVM(id)
	if err != nil {
		return true, err
	}
	if vm.PowerState == nil {
		return true, errors.New("VM " + id + " has no power state")
	}
	if vm.PowerState.GetName() == want {
		return true, nil
	}
	match, err := c.ifMatch(id)
	if err != nil {
		return false, err
	}
	if want == "ON" {
		answer, callErr := c.vms.PowerOnVm(&id, match)
		_, err = c.await(ctx, "power on VM "+id, answer, callErr, limit)
	} else {
		answer, callErr := c.vms.PowerOffVm(&id, match)
		_, err = c.await(ctx, "power off VM "+id, answer, callErr, limit)
	}
	if err != nil {
		return false, err
	}
	// The real provider looks once more and only logs what it sees.
	_, _, _ = c.getVM(id)
	return true, nil
}
