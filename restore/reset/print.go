package reset

import (
	"fmt"
	"io"
	"strings"
)

// Print writes the plan for a person. Lines with commands begin with four spaces, so
// that they can be told from text.
func (p *Plan) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s restores its own etcd: nothing was changed here, and lifeboat runs none of what follows.\n", p.Kind)
	fmt.Fprintf(&b, "Run these commands as root, each step after the one before has succeeded. They are those of %s.\n", p.For)
	if len(p.Warnings) > 0 {
		b.WriteString("\nBefore you begin:\n")
		for _, text := range p.Warnings {
			wrap(&b, "  - ", "    ", text)
		}
	}
	for i, s := range p.Steps {
		on := strings.Join(s.On, ", ")
		if s.Each {
			on = "each of " + on
		}
		if len(s.On) == 1 {
			on = s.On[0]
		}
		fmt.Fprintf(&b, "\n%d. On %s: %s\n", i+1, on, s.Title)
		for _, c := range s.Commands {
			b.WriteString("    " + strings.ReplaceAll(c, "\n", "\n      ") + "\n")
		}
		if s.Note != "" {
			wrap(&b, "  ", "  ", s.Note)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// wrap writes text in lines that a narrow console shows whole.
func wrap(b *strings.Builder, first, next, text string) {
	const width = 96
	line := first
	for _, word := range strings.Fields(text) {
		if len(line)+len(word) > width && strings.TrimSpace(line) != "" && line != first {
			b.WriteString(strings.TrimRight(line, " ") + "\n")
			line = next
		}
		line += word + " "
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}
