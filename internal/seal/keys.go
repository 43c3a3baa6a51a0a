package seal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"filippo.io/age/tag"
	"golang.org/x/crypto/ssh"
)

// maxKeyFile is the largest identity file read, in bytes.
const maxKeyFile = 1 << 20

// errMixed: age refuses it too, but only when sealing, and less plainly.
var errMixed = errors.New("post-quantum recipients (age1pq...) can't be mixed with others: " +
	"the file would be no safer than its weakest recipient; use only age1pq... or none")

// ParseRecipients reads public keys: age1..., age1pq1..., ssh-ed25519 and
// ssh-rsa keys, and those of age plugins. Empty lines and comments (#) are
// skipped. Post-quantum recipients can't be mixed with classic ones.
func ParseRecipients(lines []string) ([]age.Recipient, error) {
	var recipients []age.Recipient
	var quantum, classic bool
	for i, l := range lines {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		r, err := parseRecipient(l)
		if err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i+1, err)
		}
		switch _, isPlugin := r.(*plugin.Recipient); {
		case strings.HasPrefix(l, "age1pq1"), strings.HasPrefix(l, "age1tagpq1"):
			quantum = true
		case !isPlugin: // a plugin's is known only when it is asked
			classic = true
		}
		recipients = append(recipients, r)
	}
	if quantum && classic {
		return nil, errMixed
	}
	if len(recipients) == 0 {
		return nil, errors.New("no recipients: nobody could open what is sealed")
	}
	return recipients, nil
}

func parseRecipient(s string) (age.Recipient, error) {
	switch {
	case strings.HasPrefix(strings.ToUpper(s), "AGE-"):
		return nil, errors.New("a private key where a public one (age1...) belongs")
	case strings.HasPrefix(s, "age1tag1"), strings.HasPrefix(s, "age1tagpq1"):
		return tag.ParseRecipient(s)
	case strings.HasPrefix(s, "age1pq1"):
		return age.ParseHybridRecipient(s)
	case strings.HasPrefix(s, "age1") && strings.Count(s, "1") > 1:
		return plugin.NewRecipient(s, Dialog{}.ui())
	case strings.HasPrefix(s, "age1"):
		return age.ParseX25519Recipient(s)
	case strings.HasPrefix(s, "ssh-"):
		return agessh.ParseRecipient(s)
	}
	// What stands there may be a secret by mistake, so it is not repeated.
	return nil, errors.New("not a public key; want age1..., age1pq1..., ssh-ed25519 or ssh-rsa")
}

// Dialog is how identities reach the person who holds them. Its zero value
// asks nobody.
type Dialog struct {
	// Ask shows a prompt and reads a secret. The answer is overwritten after use.
	Ask func(prompt string) ([]byte, error)
	// Show shows a message, such as "touch your key".
	Show func(message string)
}

// ParseIdentities reads a file of private keys: age identities (X25519,
// post-quantum, plugins), an SSH private key, or an age file, armored or not,
// that a passphrase opens and that holds identities. ask is called for
// passphrases and by plugins; nil asks nobody. Errors never hold a key's text.
func ParseIdentities(r io.Reader, ask func(prompt string) ([]byte, error)) ([]age.Identity, error) {
	return Dialog{Ask: ask}.ParseIdentities(r)
}

// ParseIdentities is the function of that name with messages shown, too.
func (d Dialog) ParseIdentities(r io.Reader) ([]age.Identity, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read identities: %w", err)
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("read identities: more than %d bytes", maxKeyFile)
	}
	defer clear(text)
	trimmed := bytes.TrimSpace(text)
	switch {
	case bytes.HasPrefix(trimmed, []byte(armor.Header)):
		return d.decrypt(armor.NewReader(bytes.NewReader(trimmed)))
	case bytes.HasPrefix(text, []byte("age-encryption.org/")):
		return d.decrypt(bytes.NewReader(text))
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN")):
		return d.parseSSH(text)
	}
	return d.parseLines(text)
}

func (d Dialog) parseLines(text []byte) ([]age.Identity, error) {
	var ids []age.Identity
	number := 0
	scanner := bufio.NewScanner(bytes.NewReader(text))
	scanner.Buffer(nil, maxKeyFile)
	for scanner.Scan() {
		number++
		l := strings.TrimSpace(scanner.Text())
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		id, err := d.parseIdentity(l)
		if err != nil {
			return nil, fmt.Errorf("identities line %d: %w", number, err)
		}
		ids = append(ids, id)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("read identities: %w", err)
	}
	if len(ids) == 0 {
		return nil, errors.New("no identities in the file")
	}
	return ids, nil
}

func (d Dialog) parseIdentity(s string) (age.Identity, error) {
	malformed := func(err error) error {
		if err != nil {
			return errors.New("malformed private key") // the cause might quote it
		}
		return nil
	}
	switch {
	case strings.HasPrefix(s, "AGE-PLUGIN-"):
		id, err := plugin.NewIdentity(s, d.ui())
		return pluginIdentity{id}, malformed(err)
	case strings.HasPrefix(s, "AGE-SECRET-KEY-PQ-1"):
		id, err := age.ParseHybridIdentity(s)
		return id, malformed(err)
	case strings.HasPrefix(s, "AGE-SECRET-KEY-1"):
		id, err := age.ParseX25519Identity(s)
		return id, malformed(err)
	case strings.HasPrefix(s, "age1"):
		return nil, errors.New("a public key where a private one (AGE-SECRET-KEY-1...) belongs")
	}
	return nil, errors.New("not a private key; want AGE-SECRET-KEY-1..., AGE-SECRET-KEY-PQ-1..., AGE-PLUGIN-... or an SSH key file")
}

func (d Dialog) decrypt(r io.Reader) ([]age.Identity, error) {
	pass, err := d.passphrase("Passphrase of the identity file: ")
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	defer clear(pass)
	id, err := age.NewScryptIdentity(string(pass))
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	decrypted, err := age.Decrypt(r, id)
	if err != nil {
		var noMatch *age.NoIdentityMatchError
		if errors.As(err, &noMatch) {
			return nil, errors.New("identity file: wrong passphrase, or not a file that a passphrase opens")
		}
		return nil, fmt.Errorf("identity file: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(decrypted, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	defer clear(text)
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("identity file: more than %d bytes", maxKeyFile)
	}
	return d.parseLines(text)
}

func (d Dialog) parseSSH(pem []byte) ([]age.Identity, error) {
	id, err := agessh.ParseIdentity(pem)
	var missing *ssh.PassphraseMissingError
	if errors.As(err, &missing) {
		return d.parseLockedSSH(pem)
	}
	if err != nil {
		return nil, fmt.Errorf("ssh private key: %w", err)
	}
	return []age.Identity{id}, nil
}

func (d Dialog) parseLockedSSH(pem []byte) ([]age.Identity, error) {
	pass, err := d.passphrase("Passphrase of the SSH key: ")
	if err != nil {
		return nil, fmt.Errorf("ssh private key: %w", err)
	}
	defer clear(pass)
	key, err := ssh.ParseRawPrivateKeyWithPassphrase(pem, pass)
	if err != nil {
		return nil, fmt.Errorf("ssh private key: %w", err)
	}
	id, err := sshIdentity(key)
	if err != nil {
		return nil, fmt.Errorf("ssh private key: %w", err)
	}
	return []age.Identity{id}, nil
}

func (d Dialog) passphrase(prompt string) ([]byte, error) {
	if d.Ask == nil {
		return nil, errors.New("it needs a passphrase, and there is nobody to ask")
	}
	pass, err := d.Ask(prompt)
	if err != nil {
		return nil, fmt.Errorf("ask for its passphrase: %w", err)
	}
	if len(pass) == 0 {
		return nil, errors.New("empty passphrase")
	}
	return pass, nil
}
