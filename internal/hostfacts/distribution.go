package hostfacts

// Distribution is how a k3s, rke2 or k0s server is set up on a node. It holds no
// secrets, only where they are. File names are the host's own, absolute. Lists are
// never null.
type Distribution struct {
	Kind      string `json:"kind"`      // "k3s", "rke2", "k0s"
	How       string `json:"how"`       // a file or folder that told
	DataDir   string `json:"dataDir"`   // below which all its state is
	Datastore string `json:"datastore"` // "etcd", "sqlite", "external-etcd", "external"
	Program   string `json:"program"`   // as the unit starts it
	Unit      string `json:"unit"`      // systemd's, without ".service"

	// Arguments are the unit's behind the program and its verb, without those that
	// hold or name a secret and those that only a first start or a join needs.
	Arguments   []string  `json:"arguments"`
	Configs     []string  `json:"configs"`     // configuration files, in the order in which they are read
	Environment []string  `json:"environment"` // environment files that set options
	Settings    []Setting `json:"settings"`    // that name this machine or another one

	// TokenFile holds the server token as the server writes it; empty for k0s, which
	// needs none to come back. TokenFrom names the files that set a token besides.
	TokenFile string   `json:"tokenFile,omitempty"`
	TokenFrom []string `json:"tokenFrom"`
	// BootstrapKey is the key in etcd under which the server keeps its authorities,
	// encrypted with the token. It is made of a hash of the token; empty: no token
	// could be read.
	BootstrapKey string `json:"bootstrapKey,omitempty"`
	S3           bool   `json:"s3"` // its own snapshots go to S3, where a reset would look for one
}

// Setting is an option of a distribution's server.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	From  string `json:"from"` // the file
}

// Setting returns an option's value and the file that sets it; empty: nothing does.
func (d *Distribution) Setting(name string) (value, from string) {
	for _, s := range d.Settings {
		if s.Name == name {
			return s.Value, s.From
		}
	}
	return "", ""
}
