package etcdhost

import (
	"path"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
)

// unit is a service as its files describe it.
type unit struct {
	name        string // without .service
	files       []string
	exec        string // ExecStart=, the last that counts
	environment []string
	envFiles    []string // with the dash of those that may be missing
	workingDir  string
	user, group string
	hostname    string
}

// readUnit reads a unit and its drop-ins, which systemd takes in the order of
// their names, one of a name, whatever their folder.
func readUnit(h Host, name string) *unit {
	u := &unit{name: name, hostname: strings.TrimSpace(h.Text("/etc/hostname"))}
	for _, folder := range UnitFolders {
		file := path.Join(folder, name+".service")
		if text := h.Text(file); text != "" {
			u.take(file, text)
			break
		}
	}
	drops := map[string]string{}
	for _, folder := range UnitFolders {
		dir := path.Join(folder, name+".service.d")
		for _, drop := range h.Names(dir) {
			if _, hidden := drops[drop]; !hidden && strings.HasSuffix(drop, ".conf") {
				drops[drop] = path.Join(dir, drop)
			}
		}
	}
	for _, file := range sorted(drops) {
		u.take(file, h.Text(file))
	}
	return u
}

// sorted returns the values by their keys.
func sorted(m map[string]string) (out []string) {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		out = append(out, m[k])
	}
	return out
}

// take reads one of the unit's files over what those before it said.
func (u *unit) take(file, text string) {
	u.files = append(u.files, file)
	section := ""
	for _, line := range logicalLines(text) {
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section != "[Service]" {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "ExecStart":
			u.exec = value // an empty one resets it
		case "Environment":
			if value == "" {
				u.environment = nil
			}
			u.environment = append(u.environment, words(u.specified(value))...)
		case "EnvironmentFile":
			if value == "" {
				u.envFiles = nil
				continue
			}
			u.envFiles = append(u.envFiles, u.specified(strings.Trim(value, `"'`)))
		case "WorkingDirectory":
			u.workingDir = u.specified(strings.TrimPrefix(value, "-"))
		case "User":
			u.user = u.specified(value)
		case "Group":
			u.group = u.specified(value)
		}
	}
}

// specified replaces the specifiers that make sense for an etcd
// (systemd.unit(5)); others stay as they are.
func (u *unit) specified(text string) string {
	if !strings.Contains(text, "%") {
		return text
	}
	prefix, instance, _ := strings.Cut(u.name, "@")
	short, _, _ := strings.Cut(u.hostname, ".")
	return strings.NewReplacer("%%", "%", "%H", u.hostname, "%q", u.hostname, "%l", short, "%n", u.name+".service", "%N", u.name, "%p", prefix, "%i", instance, "%I", instance).Replace(text)
}

// variables returns what the unit's program has in its environment, and the files
// that say so, behind the unit's own.
func (u *unit) variables(h Host) (env map[string]string, files []string) {
	env = map[string]string{}
	for _, entry := range u.environment {
		if key, value, ok := strings.Cut(entry, "="); ok {
			env[key] = value
		}
	}
	for _, name := range u.envFiles {
		name, optional := strings.CutPrefix(name, "-")
		text := h.Text(name)
		if text == "" && optional || !path.IsAbs(name) {
			continue
		}
		files = append(files, path.Clean(name))
		for k, v := range parseEnvironment(text) {
			env[k] = v
		}
	}
	return env, files
}

// server returns the settings, if the unit runs an etcd.
func (u *unit) server(h Host) (hostfacts.EtcdServer, bool) {
	env, named := u.variables(h)
	files := slices.Concat(u.files, named)
	line := commandLine(u.specified(u.exec), env)
	at := program(line)
	if at < 0 {
		return hostfacts.EtcdServer{}, false
	}
	// Words before the program may set variables: env ETCD_NAME=x etcd.
	for _, word := range line[:at] {
		if key, value, ok := strings.Cut(word, "="); ok && strings.HasPrefix(key, "ETCD_") {
			env[key] = value
		}
	}
	base := hostfacts.EtcdServer{Unit: u.name, Program: line[at], Files: files, User: u.user, Group: u.group}
	if path.IsAbs(u.workingDir) {
		base.WorkingDir = path.Clean(u.workingDir)
	}
	return resolve(h, line[at+1:], env, base), true
}

// shells run a command line that is one of their arguments.
var shells = []string{"sh", "bash", "dash", "ash", "zsh"}

// commandLine splits an ExecStart= into words and fills in variables. Where a
// shell runs a script, its words are those of the script.
func commandLine(exec string, env map[string]string) []string {
	line := expand(words(strings.TrimLeft(exec, "@-:+!|")), env)
	if len(line) > 1 && slices.Contains(shells, path.Base(line[0])) {
		for i, w := range line[1:] {
			if strings.HasPrefix(w, "-") && strings.HasSuffix(w, "c") && i+2 < len(line) {
				return expand(words(line[i+2]), env)
			}
		}
	}
	return line
}

// expand fills in ${NAME} anywhere, and $NAME where it is a word, which may
// become several (systemd.service(5), "Command lines").
func expand(line []string, env map[string]string) (out []string) {
	for _, w := range line {
		if name, ok := strings.CutPrefix(w, "$"); ok && isVariable(name) {
			out = append(out, strings.Fields(env[name])...)
			continue
		}
		var b strings.Builder
		for {
			before, rest, found := strings.Cut(w, "${")
			b.WriteString(before)
			name, after, closed := strings.Cut(rest, "}")
			if !found {
				break
			}
			if !closed || !isVariable(name) {
				b.WriteString("${")
				w = rest
				continue
			}
			b.WriteString(env[name])
			w = after
		}
		out = append(out, strings.ReplaceAll(b.String(), "$$", "$"))
	}
	return out
}

func isVariable(name string) bool {
	for i, r := range name {
		if r != '_' && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return name != ""
}

// logicalLines returns a file's lines without comments, and with continued ones
// joined; a comment between those is skipped (systemd.syntax(7)).
func logicalLines(text string) (out []string) {
	open := false // the last line goes on
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") || trimmed == "" && !open {
			continue
		}
		part, more := strings.CutSuffix(line, `\`)
		if open {
			out[len(out)-1] += " " + strings.TrimSpace(part)
		} else {
			out = append(out, strings.TrimSpace(part))
		}
		open = more
	}
	return out
}

// parseEnvironment reads a file of NAME=value lines, as EnvironmentFile= does.
func parseEnvironment(text string) map[string]string {
	out := map[string]string{}
	for _, line := range logicalLines(text) {
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if key = strings.TrimSpace(key); ok && isVariable(key) {
			out[key] = strings.Join(words(value), " ")
		}
	}
	return out
}

// words splits at spaces outside of quotes, which it takes away, and takes
// backslashes from what they protect.
func words(text string) (out []string) {
	var b strings.Builder
	var quote byte
	inside := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
			inside = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			b.WriteByte(c)
		case c == '"' || c == '\'':
			quote, inside = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if inside {
				out = append(out, b.String())
				b.Reset()
			}
			inside = false
		default:
			b.WriteByte(c)
			inside = true
		}
	}
	if inside {
		out = append(out, b.String())
	}
	return out
}
