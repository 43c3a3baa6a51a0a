package e2e

import (
	"strings"
	"time"

	"lifeboat/docs"
	"lifeboat/internal/realplane"
)

// oneObject deletes a Secret by mistake and brings it back, out of a copy of the
// past, by what the page for that says to type.
func (r *rescue) oneObject(m *realplane.Machine) {
	r.t.Helper()
	const name, copied = "deleted-by-mistake", "/var/tmp/before" // /dev/shm is this computer's, for all machines
	m.Kubectl("-n", realplane.WorkloadNamespace, "create", "secret", "generic", name, "--from-literal=what=a secret past")
	m.Run("lifeboat", "backup", "--only", "etcd")
	m.Kubectl("-n", realplane.WorkloadNamespace, "delete", "secret", name)

	text := typed(r, "**A few objects:**")
	for _, replaced := range [][2]string{
		{"$S --identity recovery.key", "--yes --identity " + identity}, {`--at "10 minutes ago"`, ""},
		{"get configmap -n", "get secret -n"}, {"/dev/shm/before", copied}, {"NAMESPACE", realplane.WorkloadNamespace}, {"NAME", name},
	} {
		if !strings.Contains(text, replaced[0]) {
			r.t.Fatalf("the page does not say %q:\n%s", replaced[0], text)
		}
		text = strings.ReplaceAll(text, replaced[0], replaced[1])
	}
	r.p.Logf("%s", m.Run("timeout", "180", "sh", "-euc", text))
	if got := m.Kubectl("-n", realplane.WorkloadNamespace, "get", "secret", name, "-o", "jsonpath={.data.what}"); got != "YSBzZWNyZXQgcGFzdA==" {
		r.t.Errorf("it has %q", got)
	}
	if left, err := m.Try("sh", "-c", "ls "+copied+" || pgrep -f [s]ecure-port=16443"); err == nil {
		r.t.Errorf("left behind: %s", left)
	}
	m.Kubectl("-n", realplane.WorkloadNamespace, "delete", "secret", name)
	m.Run("lifeboat", "backup", "--only", "etcd") // without it, as the stages that follow expect
	m.WaitReady(r.apis[m.Name], time.Minute)
}

// typed is what the page for the worst day says to type behind some words, up to
// the next paragraph.
func typed(r *rescue, behind string) string {
	r.t.Helper()
	pages, err := docs.Restore()
	if err != nil {
		r.t.Fatal(err)
	}
	_, text, _ := strings.Cut(pages[0].Text, behind)
	var lines []string
	for line := range strings.Lines(text) {
		code, is := strings.CutPrefix(line, "    ")
		switch {
		case is:
			lines = append(lines, code)
		case len(lines) > 0 && strings.TrimSpace(line) != "":
			return strings.Join(lines, "")
		}
	}
	r.t.Fatalf("the page says nothing behind %q", behind)
	return ""
}
