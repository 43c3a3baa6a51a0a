package etcdhost

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/hostfacts"
)

// settings are etcd's options by the names of its flags, without dashes.
type settings map[string]string

// resolve puts together what etcd makes of its sources (etcd's
// server/etcdmain/config.go): with a configuration file nothing else counts; else
// flags, and variables for the flags that are not there.
func resolve(h Host, args []string, env map[string]string, base hostfacts.EtcdServer) hostfacts.EtcdServer {
	flags := parseFlags(args)
	file := cmp.Or(flags["config-file"], env["ETCD_CONFIG_FILE"])
	if file != "" {
		file = absolute(base.WorkingDir, file)
		base.Files = append(base.Files, file)
		if config := parseConfig([]byte(h.Text(file))); config != nil {
			return config.server(base)
		}
		// Nothing tells any more, and etcd would not start.
		unknown := settings{}.server(base)
		unknown.Name, unknown.DataDir = "", ""
		return unknown
	}
	all := ofEnvironment(env)
	for name, value := range flags {
		all[name] = value
	}
	return all.server(base)
}

// ofEnvironment returns the options that variables set (etcd's pkg/flags,
// FlagToEnv).
func ofEnvironment(env map[string]string) settings {
	out := settings{}
	for key, value := range env {
		if name, ok := strings.CutPrefix(key, "ETCD_"); ok && value != "" {
			out[strings.ToLower(strings.ReplaceAll(name, "_", "-"))] = value
		}
	}
	return out
}

// switches are the options that take a value only behind an equals sign.
var switches = []string{
	"auto-tls", "client-cert-auth", "enable-grpc-gateway", "enable-pprof", "enable-v2", "force-new-cluster", "initial-election-tick-advance",
	"log-rotation-enabled", "peer-auto-tls", "peer-client-cert-auth", "peer-skip-client-san-verification", "pre-vote", "print-version",
	"socket-reuse-address", "socket-reuse-port", "strict-reconfig-check", "unsafe-no-fsync", "version", "help", "h",
}

// parseFlags reads a command line behind the program as Go's flag package does:
// it ends at the first word that is no flag.
func parseFlags(words []string) settings {
	out := settings{}
	for i := 0; i < len(words); i++ {
		name, dashes := strings.CutPrefix(words[i], "-")
		name = strings.TrimPrefix(name, "-")
		if !dashes || name == "" || strings.HasPrefix(name, "-") || strings.HasPrefix(name, "=") {
			break
		}
		name, value, has := strings.Cut(name, "=")
		if !has && (slices.Contains(switches, name) || strings.HasPrefix(name, "experimental-") && (i+1 == len(words) || strings.HasPrefix(words[i+1], "-"))) {
			value, has = "true", true
		}
		if !has && i+1 < len(words) {
			i++
			value = words[i]
		}
		out[name] = value
	}
	return out
}

// parseConfig reads etcd's configuration file; nil if it is none.
func parseConfig(text []byte) settings {
	var doc map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil || len(doc) == 0 {
		return nil
	}
	out := settings{}
	for key, value := range doc {
		if inner, ok := value.(map[string]any); ok {
			prefix, known := map[string]string{"client-transport-security": "", "peer-transport-security": "peer-"}[key]
			for option, v := range inner {
				if text, ok := v.(string); known && ok {
					out[prefix+option] = text
				}
			}
			continue
		}
		if text, ok := value.(string); ok {
			out[key] = text
		}
	}
	return out
}

// etcd's own defaults (server/embed/config.go).
const (
	defaultName   = "default"
	defaultClient = "http://localhost:2379"
	defaultPeer   = "http://localhost:2380"
)

// server fills in the settings.
func (s settings) server(base hostfacts.EtcdServer) hostfacts.EtcdServer {
	file := func(option string) string {
		if s[option] == "" {
			return ""
		}
		return absolute(base.WorkingDir, s[option])
	}
	base.Name = cmp.Or(s["name"], defaultName)
	base.DataDir = absolute(base.WorkingDir, cmp.Or(s["data-dir"], base.Name+".etcd"))
	base.WALDir = file("wal-dir")
	base.ListenClientURLs = list(cmp.Or(s["listen-client-urls"], defaultClient))
	base.ClientURLs = list(cmp.Or(s["advertise-client-urls"], defaultClient))
	base.ListenPeerURLs = list(cmp.Or(s["listen-peer-urls"], defaultPeer))
	base.PeerURLs = list(cmp.Or(s["initial-advertise-peer-urls"], defaultPeer))
	base.InitialCluster = s["initial-cluster"]
	base.CAFile, base.CertFile, base.KeyFile = file("trusted-ca-file"), file("cert-file"), file("key-file")
	base.PeerCAFile, base.PeerCertFile, base.PeerKeyFile = file("peer-trusted-ca-file"), file("peer-cert-file"), file("peer-key-file")
	for _, field := range []*[]string{&base.Files, &base.Args, &base.Environment} {
		if *field == nil {
			*field = []string{} // lists are never null
		}
	}
	return base
}

func list(value string) []string {
	out := strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
	if out == nil {
		out = []string{}
	}
	return out
}

// absolute is where a program that runs in a folder finds a name. systemd's
// services run in / unless they say otherwise.
func absolute(folder, name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join("/", folder, name)
}
