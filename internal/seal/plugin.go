package seal

import (
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/plugin"
)

var errNobody = errors.New("there is nobody to ask")

// ui is the dialog as age's plugins want it.
func (d Dialog) ui() *plugin.ClientUI {
	return &plugin.ClientUI{
		DisplayMessage: func(name, message string) error {
			if d.Show == nil {
				return errNobody
			}
			d.Show(name + ": " + message)
			return nil
		},
		RequestValue: func(name, prompt string, _ bool) (string, error) {
			if d.Ask == nil {
				return "", errNobody
			}
			answer, err := d.Ask(name + ": " + prompt + ": ")
			defer clear(answer)
			return string(answer), err
		},
		Confirm: func(name, prompt, yes, no string) (bool, error) {
			if d.Ask == nil {
				return false, errNobody
			}
			choices := yes
			if no != "" {
				choices += "/" + no
			}
			answer, err := d.Ask(fmt.Sprintf("%s: %s [%s]: ", name, prompt, choices))
			return strings.EqualFold(strings.TrimSpace(string(answer)), yes), err
		},
		WaitTimer: func(name string) {
			if d.Show != nil {
				d.Show("waiting for " + name)
			}
		},
	}
}

// pluginIdentity marks its errors: a missing token says nothing about the file.
type pluginIdentity struct{ *plugin.Identity }

func (p pluginIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	key, err := p.Identity.Unwrap(stanzas)
	if err != nil && !errors.Is(err, age.ErrIncorrectIdentity) {
		err = &pluginError{err}
	}
	return key, err
}

type pluginError struct{ err error }

func (e *pluginError) Error() string { return e.err.Error() }
func (e *pluginError) Unwrap() error { return e.err }

// sshIdentity takes what the ssh package makes of a private key.
func sshIdentity(key any) (age.Identity, error) {
	switch key := key.(type) {
	case *ed25519.PrivateKey:
		return agessh.NewEd25519Identity(*key)
	case ed25519.PrivateKey:
		return agessh.NewEd25519Identity(key)
	case *rsa.PrivateKey:
		return agessh.NewRSAIdentity(key)
	}
	return nil, fmt.Errorf("%T is not ed25519 or rsa", key)
}
