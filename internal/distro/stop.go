package distro

import (
	"strings"

	"lifeboat/internal/hostfacts"
)

// Stop returns the commands that end a server with its etcd, so that no member lives
// on. The last one fails, and prints, as long as one does where that can be seen.
func Stop(d *hostfacts.Distribution) (commands []string) {
	commands = []string{"systemctl stop " + d.Unit}
	if d.Kind != RKE2 {
		return commands // etcd is in k3s's own process, and a child of k0s's
	}
	killall := "rke2-killall.sh"
	if d.DataDir != Default(RKE2) {
		killall = "RKE2_DATA_DIR=" + Quote(d.DataDir) + " " + killall // it looks for pods below the usual one
	}
	return append(commands, killall, "! pgrep -x etcd")
}

// Quote makes a word of a shell's command line.
func Quote(word string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./-_", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !safe(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
