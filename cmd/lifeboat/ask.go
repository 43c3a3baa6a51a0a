package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
	"golang.org/x/term"

	"lifeboat/internal/seal"
)

// await runs what can't be interrupted, such as reading from a terminal, and
// leaves it behind when the context ends: the process is about to.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := f()
		done <- answer{value, err}
	}()
	select {
	case got := <-done:
		return got.value, got.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

var errDeclined = errors.New("not confirmed; nothing was changed")

// confirm asks on the terminal. Without one, only --yes is an answer.
func (a *app) confirm(ctx context.Context, f confirmation) error {
	if f.yes {
		return nil
	}
	if in, ok := a.in.(*os.File); ok && !term.IsTerminal(int(in.Fd())) {
		return fmt.Errorf("%w: nobody can be asked here; give --yes to go on, or --dry-run to see the plan", errUsage)
	}
	fmt.Fprint(a.err, "Go on? [y/N] ")
	answer, err := await(ctx, func() (string, error) {
		line, _ := bufio.NewReader(a.in).ReadString('\n') // an end without an answer is a no
		return line, nil
	})
	if err != nil {
		fmt.Fprintln(a.err)
		return fmt.Errorf("%w; nothing was changed", err)
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errDeclined
	}
	return nil
}

// loadIdentities reads the keys named with --identity. Passphrases are asked
// for on the terminal only.
func (a *app) loadIdentities(ctx context.Context) ([]age.Identity, error) {
	var all []age.Identity
	for _, path := range a.identities {
		ids, err := a.loadIdentity(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("%w: identity %s: %w", errUsage, path, err)
		}
		all = append(all, ids...)
	}
	return all, nil
}

func (a *app) loadIdentity(ctx context.Context, path string) ([]age.Identity, error) {
	var r io.Reader
	if path == "-" {
		text, err := await(ctx, func() ([]byte, error) { return io.ReadAll(a.in) })
		if err != nil {
			return nil, err
		}
		defer clear(text)
		r = bytes.NewReader(text)
	} else {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	return seal.Dialog{
		Ask:  func(prompt string) ([]byte, error) { return a.askSecret(ctx, prompt) },
		Show: func(message string) { fmt.Fprintln(a.err, message) },
	}.ParseIdentities(r)
}

// askSecret reads a line from the terminal without showing it.
func (a *app) askSecret(ctx context.Context, prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.New("the key needs a passphrase, and there is no terminal to ask on")
	}
	defer tty.Close()
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("ask on the terminal: %w", err)
	}
	fmt.Fprintf(tty, "%s: ", prompt)
	secret, err := await(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	if ctx.Err() != nil {
		_ = term.Restore(fd, before) // else the shell goes on without echo
	}
	fmt.Fprintln(tty)
	return secret, err
}
