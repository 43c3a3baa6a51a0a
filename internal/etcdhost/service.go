package etcdhost

import "slices"

// Service is a unit that runs any program, as systemd reads its files.
type Service struct {
	Files            []string          // the unit and its drop-ins; none: there is no such unit
	EnvironmentFiles []string          // those that exist or must
	Variables        map[string]string // all that the unit sets
	Line             []string          // the program and its arguments; nil: nothing is started
}

// ReadService reads the unit of a name, without ".service". What it holds may be
// secret.
func ReadService(h Host, name string) Service {
	u := readUnit(h, name)
	env, files := u.variables(h)
	return Service{Files: slices.Clone(u.files), EnvironmentFiles: files, Variables: env, Line: commandLine(u.specified(u.exec), env)}
}
