package distro

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/etcdhost"
	"lifeboat/internal/hostfacts"
)

// rancher is what differs between k3s and rke2, which is built on it.
type rancher struct {
	kind, unit, verb string
	dataDir, config  string
	variables        string // the prefix of its environment variables
}

var (
	k3s  = rancher{K3s, "k3s", "server", "/var/lib/rancher/k3s", "/etc/rancher/k3s/config.yaml", "K3S_"}
	rke2 = rancher{RKE2, "rke2-server", "server", "/var/lib/rancher/rke2", "/etc/rancher/rke2/config.yaml", "RKE2_"}
)

// rancherFiles are those of a server. Its etcd's names and members are in the
// database; agent/etc has an administrator's templates for containerd.
var rancherFiles = []string{
	"server/token", "server/agent-token", "server/node-token", "server/tls", "server/cred", "server/manifests", "server/etc",
	"agent/pod-manifests", "agent/etc/containerd/config.toml.tmpl", "agent/etc/containerd/config-v3.toml.tmpl",
}

// secrets are options whose values must not be told.
var secrets = []string{"token", "agent-token", "datastore-endpoint", "etcd-s3-access-key", "etcd-s3-secret-key", "etcd-s3-session-token", "vpn-auth", "node-external-dns-token"}

// elsewhere are options that are in no command line for a reset: what the reset
// says itself, what only a join needs, and secrets with the files of them.
var elsewhere = slices.Concat(secrets, []string{"token-file", "agent-token-file", "server", "cluster-init", "cluster-reset", "cluster-reset-restore-path", "data-dir", "config", "datastore-cafile", "datastore-certfile", "datastore-keyfile", "vpn-auth-file"})

// told are options that name this machine, another one, or places: a restore has to
// look at them.
var told = []string{"server", "node-name", "node-ip", "node-external-ip", "advertise-address", "bind-address", "https-listen-port", "tls-san", "token-file", "etcd-s3", "cluster-init"}

// short are the options that have one letter too (k3s's pkg/cli/cmds/server.go).
var short = map[string]string{"c": "config", "d": "data-dir", "s": "server", "t": "token"}

// option is one option's last value, and the file that sets it.
type option struct{ value, from string }

// options are a server's by their long names.
type options struct {
	set     map[string]option
	configs []string
}

func (o *options) value(name string) string { return o.set[name].value }

func (r rancher) find(h Host) *hostfacts.Distribution {
	service := etcdhost.ReadService(h, r.unit)
	o := r.options(h, service)
	d := &hostfacts.Distribution{
		Kind: r.kind, DataDir: r.dataDir, Program: "/usr/local/bin/" + r.kind, Unit: r.unit, Arguments: []string{},
		Configs: append([]string{}, o.configs...), Environment: []string{}, Settings: []hostfacts.Setting{}, TokenFrom: []string{},
	}
	if dir := o.value("data-dir"); path.IsAbs(dir) {
		d.DataDir = path.Clean(dir)
	}
	runs := slices.Contains(service.Line, r.verb)
	if r.kind == RKE2 && !h.Exists(path.Join(d.DataDir, "server")) && worker(h, d) {
		return nil // its archive has the units of servers and of agents, wherever it is unpacked
	}
	switch server := path.Join(d.DataDir, "server"); {
	case h.Exists(server):
		d.How = server
	case runs:
		d.How = service.Files[0]
	case r.kind == RKE2 && len(service.Files) > 0:
		d.How = service.Files[0]
	default:
		return nil
	}
	if runs {
		d.Program = service.Line[0]
		d.Arguments = arguments(service.Line[slices.Index(service.Line, r.verb)+1:])
	}
	for _, file := range service.EnvironmentFiles {
		if strings.Contains(h.Text(file), r.variables) {
			d.Environment = append(d.Environment, file)
		}
	}
	for _, name := range told {
		if v, ok := o.set[name]; ok && v.value != "" {
			d.Settings = append(d.Settings, hostfacts.Setting{Name: name, Value: v.value, From: v.from})
		}
	}
	d.S3 = o.value("etcd-s3") == "true"
	d.Datastore = r.datastore(h, d.DataDir, o)
	r.token(h, d, o)
	return d
}

// worker says whether a kubelet of rke2's has run here, and no server's pods.
func worker(h Host, d *hostfacts.Distribution) bool {
	pods := PodManifests(d)
	return h.Exists(path.Join(d.DataDir, "agent")) && !h.Exists(path.Join(pods, "etcd.yaml")) && !h.Exists(path.Join(pods, "kube-apiserver.yaml"))
}

// datastore says what holds the cluster's objects, by the options of the first start
// as by what came of it: k3s goes on with the database that it finds.
func (r rancher) datastore(h Host, dataDir string, o *options) string {
	switch endpoint := o.value("datastore-endpoint"); {
	case isEtcd(endpoint):
		return ExternalEtcd
	case strings.HasPrefix(endpoint, "sqlite:"):
		return SQLite
	case endpoint != "":
		return External
	case h.Exists(path.Join(dataDir, "server/db/etcd")), r.kind == RKE2:
		return Etcd
	case h.Exists(path.Join(dataDir, "server/db/state.db")):
		return SQLite
	}
	return Etcd // its database is gone, or can't be seen: nothing tells
}

// token finds where the server token is. A server without one that is set makes
// one up and writes it to the token file; each writes there what it is set to.
func (r rancher) token(h Host, d *hostfacts.Distribution, o *options) {
	d.TokenFile = path.Join(d.DataDir, "server", "token")
	var token string
	if t, ok := o.set["token"]; ok && t.value != "" {
		token = t.value
		d.TokenFrom = append(d.TokenFrom, t.from)
	}
	if file := o.value("token-file"); path.IsAbs(file) {
		if text := strings.TrimSpace(h.Text(file)); text != "" {
			token = text
			d.TokenFrom = append(d.TokenFrom, path.Clean(file))
		}
	}
	if text := strings.TrimSpace(h.Text(d.TokenFile)); text != "" {
		token = text
	}
	d.BootstrapKey = BootstrapKey(token)
}

// BootstrapKey returns the key under which k3s and rke2 keep their authorities in
// etcd, encrypted with the token (k3s's pkg/cluster/encrypt.go); empty for an empty
// token.
func BootstrapKey(token string) string {
	secret := Passphrase(token)
	if secret == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(secret))
	return BootstrapPrefix + hex.EncodeToString(sum[:])[:12]
}

// BootstrapPrefix is that of all such keys.
const BootstrapPrefix = "/bootstrap/"

// Passphrase returns the part of a server token that counts: K10HASH::USER:PASSPHRASE
// may be shortened to PASSPHRASE (docs.k3s.io/cli/token).
func Passphrase(token string) string {
	token = strings.TrimSpace(token)
	full, ok := strings.CutPrefix(token, "K10")
	if !ok {
		return token
	}
	if _, credentials, hashed := strings.Cut(full, "::"); hashed {
		full = credentials
	}
	if _, passphrase, named := strings.Cut(full, ":"); named {
		return passphrase
	}
	return full
}

// Tokens compares what sets a token with the token file: the names of those whose
// passphrase is another. The server would not start from either of the two.
func Tokens(h Host, d *hostfacts.Distribution) (differ []string) {
	written := Passphrase(h.Text(d.TokenFile))
	if d.Kind == K0s || written == "" {
		return nil
	}
	o := rancherOptions(h, d.Kind)
	if t := o.set["token"]; t.value != "" && Passphrase(t.value) != written {
		differ = append(differ, t.from)
	}
	if file := o.value("token-file"); path.IsAbs(file) {
		if text := h.Text(file); text != "" && Passphrase(text) != written {
			differ = append(differ, path.Clean(file))
		}
	}
	return differ
}

// options puts together what a server reads: variables, over them the configuration
// with its folder of parts, over these the command line (k3s's pkg/configfilearg).
func (r rancher) options(h Host, service etcdhost.Service) *options {
	o := &options{set: map[string]option{}}
	unit := ""
	if len(service.Files) > 0 {
		unit = service.Files[0]
	}
	for name, value := range service.Variables {
		if name, ok := strings.CutPrefix(name, r.variables); ok && value != "" {
			name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
			if name == "url" {
				name = "server"
			}
			o.set[name] = option{value, r.whoSets(h, service, r.variables, name, unit)}
		}
	}
	var line []string
	if i := slices.Index(service.Line, r.verb); i >= 0 {
		line = service.Line[i+1:]
	}
	given := parseFlags(line)
	file := r.config
	for _, named := range []string{o.value("config-file"), given["config"]} {
		if path.IsAbs(named) {
			file = path.Clean(named)
		}
	}
	o.read(h, file)
	for _, part := range h.Names(file + ".d") {
		if strings.HasSuffix(part, ".yaml") || strings.HasSuffix(part, ".yml") {
			o.read(h, path.Join(file+".d", part))
		}
	}
	for name, value := range given {
		o.set[name] = option{value, unit}
	}
	return o
}

// whoSets names the file whose variable counts.
func (r rancher) whoSets(h Host, service etcdhost.Service, prefix, name, unit string) string {
	variable := prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	if name == "server" {
		variable = prefix + "URL"
	}
	for _, file := range slices.Backward(service.EnvironmentFiles) {
		if strings.Contains(h.Text(file), variable+"=") {
			return file
		}
	}
	return unit
}

// read takes a configuration file over what those before it said.
func (o *options) read(h Host, file string) {
	text := h.Text(file)
	if text == "" {
		return
	}
	o.configs = append(o.configs, file)
	for name, value := range parseYAML(text) {
		name, more := strings.CutSuffix(name, "+") // adds to a list
		if long, ok := short[name]; ok {
			name = long
		}
		v := option{written(value), file}
		if before := o.value(name); more && before != "" {
			v.value = before + "," + v.value
		}
		o.set[name] = v
	}
}

// written is a value of a configuration file as on a command line.
func written(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case []any:
		var out []string
		for _, one := range v {
			out = append(out, written(one))
		}
		return strings.Join(out, ",")
	case float64: // as JSON has numbers
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprint(value)
}

// parseFlags reads a command line: --name=value, --name value and --name. Where one
// comes again, its values are a list.
func parseFlags(line []string) map[string]string {
	out := map[string]string{}
	for i, word := range line {
		name, value, ok := flag(line, i)
		if !ok {
			continue
		}
		if before := out[name]; before != "" && strings.HasPrefix(word, "--") && slices.Contains([]string{"tls-san", "node-ip", "node-external-ip", "kube-apiserver-arg"}, name) {
			value = before + "," + value
		}
		out[name] = value
	}
	return out
}

// flag returns the option at a place of a command line.
func flag(line []string, i int) (name, value string, ok bool) {
	name = strings.TrimLeft(line[i], "-")
	if name == line[i] || name == "" {
		return "", "", false
	}
	name, value, given := strings.Cut(name, "=")
	if long, ok := short[name]; ok {
		name = long
	}
	switch {
	case given:
	case i+1 < len(line) && !strings.HasPrefix(line[i+1], "-"):
		value = line[i+1]
	default:
		value = "true"
	}
	return name, value, true
}

// arguments returns a command line without what is said elsewhere.
func arguments(line []string) []string {
	out := []string{}
	for i := 0; i < len(line); i++ {
		name, _, ok := flag(line, i)
		if !ok {
			continue // the value of an option before, or none of ours
		}
		if slices.Contains(elsewhere, name) || strings.HasPrefix(name, "etcd-s3") {
			continue
		}
		out = append(out, line[i])
		if !strings.Contains(line[i], "=") && i+1 < len(line) && !strings.HasPrefix(line[i+1], "-") {
			i++
			out = append(out, line[i])
		}
	}
	return out
}
