package etcdhost_test

import (
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/etcdhost"
	"lifeboat/internal/hostfacts"
)

// files are a host's, by name.
type files map[string]string

func (f files) Text(name string) string { return f[name] }

func (f files) Names(folder string) (out []string) {
	for name := range f {
		if rest, ok := strings.CutPrefix(name, folder+"/"); ok {
			base, _, _ := strings.Cut(rest, "/")
			if !slices.Contains(out, base) {
				out = append(out, base)
			}
		}
	}
	slices.Sort(out)
	return out
}

// brief is what a test compares of a server.
type brief struct{ Unit, Name, DataDir, Listen, Peer, Cert, PeerCert, User, Files string }

func briefly(s hostfacts.EtcdServer) brief {
	return brief{s.Unit, s.Name, s.DataDir, strings.Join(s.ListenClientURLs, " "), strings.Join(s.PeerURLs, " "), s.CertFile, s.PeerCertFile, s.User, strings.Join(s.Files, " ")}
}

const unitFile = "/etc/systemd/system/etcd.service"

func TestServersOfUnits(t *testing.T) {
	for _, c := range []struct {
		name string
		host files
		want []brief
	}{
		{"nothing", files{}, nil},
		{"by an environment file, as kubespray has it", files{
			unitFile:        "[Unit]\nAfter=network.target\n[Service]\nType=notify\nUser=root\nEnvironmentFile=-/etc/etcd.env\nExecStart=/usr/local/bin/etcd\n[Install]\nWantedBy=multi-user.target\n",
			"/etc/etcd.env": "# Environment file for etcd\nETCD_DATA_DIR=/var/lib/etcd\nETCD_NAME=etcd1\nETCD_LISTEN_CLIENT_URLS=https://10.0.0.1:2379,https://127.0.0.1:2379\nETCD_INITIAL_ADVERTISE_PEER_URLS=https://10.0.0.1:2380\nETCD_CERT_FILE=/etc/ssl/etcd/ssl/member-etcd1.pem\nETCD_PEER_CERT_FILE=/etc/ssl/etcd/ssl/member-etcd1.pem\n",
		}, []brief{{"etcd", "etcd1", "/var/lib/etcd", "https://10.0.0.1:2379 https://127.0.0.1:2379", "https://10.0.0.1:2380", "/etc/ssl/etcd/ssl/member-etcd1.pem", "/etc/ssl/etcd/ssl/member-etcd1.pem", "root", unitFile + " /etc/etcd.env"}}},
		{"two of them, as kubespray has it", files{
			unitFile: "[Service]\nEnvironmentFile=/etc/etcd.env\nExecStart=/usr/local/bin/etcd\n", "/etc/etcd.env": "ETCD_NAME=etcd1\nETCD_DATA_DIR=/var/lib/etcd\n",
			"/etc/systemd/system/etcd-events.service": "[Service]\nEnvironmentFile=/etc/etcd-events.env\nExecStart=/usr/local/bin/etcd\n", "/etc/etcd-events.env": "ETCD_NAME=etcd1-events\nETCD_DATA_DIR=/var/lib/etcd-events\nETCD_LISTEN_CLIENT_URLS=https://10.0.0.1:2383\n",
		}, []brief{
			{"etcd", "etcd1", "/var/lib/etcd", "http://localhost:2379", "http://localhost:2380", "", "", "", unitFile + " /etc/etcd.env"},
			{"etcd-events", "etcd1-events", "/var/lib/etcd-events", "https://10.0.0.1:2383", "http://localhost:2380", "", "", "", "/etc/systemd/system/etcd-events.service /etc/etcd-events.env"},
		}},
		{"by flags over continued lines and comments, which beat variables", files{
			unitFile: "[Service]\nEnvironment=ETCD_NAME=other \"ETCD_PEER_CERT_FILE=/p w/peer.crt\"\nExecStart=/usr/bin/etcd --name e1 \\\n  # not this: --data-dir=/comment\n  --data-dir=/srv/etcd \\\n  --client-cert-auth --listen-client-urls 'https://10.0.0.1:2379' --cert-file=\"/pki/s.crt\"\n",
		}, []brief{{"etcd", "e1", "/srv/etcd", "https://10.0.0.1:2379", "http://localhost:2380", "/pki/s.crt", "/p w/peer.crt", "", unitFile}}},
		{"by a shell and variables, as Fedora's package has it", files{
			"/usr/lib/systemd/system/etcd.service": "[Service]\nWorkingDirectory=/var/lib/etcd/\nEnvironmentFile=-/etc/etcd/etcd.conf\nUser=etcd\nExecStart=/bin/bash -c \"GOMAXPROCS=$(nproc) /usr/bin/etcd --name=\\\"${ETCD_NAME}\\\" --data-dir=\\\"${ETCD_DATA_DIR}\\\" --listen-client-urls=\\\"${ETCD_LISTEN_CLIENT_URLS}\\\"\"\n",
			"/etc/etcd/etcd.conf":                  "ETCD_DATA_DIR=\"/var/lib/etcd/default.etcd\"\nETCD_LISTEN_CLIENT_URLS=\"http://localhost:2379\"\nETCD_NAME=\"default\"\n",
		}, []brief{{"etcd", "default", "/var/lib/etcd/default.etcd", "http://localhost:2379", "http://localhost:2380", "", "", "etcd", "/usr/lib/systemd/system/etcd.service /etc/etcd/etcd.conf"}}},
		{"by a configuration file, beside which nothing counts", files{
			unitFile:             "[Service]\nEnvironment=ETCD_DATA_DIR=/not/this\nWorkingDirectory=/srv\nExecStart=/usr/bin/etcd --config-file conf/etcd.yml --name notthis\n",
			"/srv/conf/etcd.yml": "name: e1\ndata-dir: data\nlisten-client-urls: https://10.0.0.1:2379\nclient-transport-security:\n  cert-file: /pki/server.crt\n  client-cert-auth: true\npeer-transport-security: {cert-file: pki/peer.crt}\nlogger: zap\n",
		}, []brief{{"etcd", "e1", "/srv/data", "https://10.0.0.1:2379", "http://localhost:2380", "/pki/server.crt", "/srv/pki/peer.crt", "", unitFile + " /srv/conf/etcd.yml"}}},
		{"by a configuration file that is lost", files{
			unitFile: "[Service]\nExecStart=/usr/bin/etcd --config-file=/etc/etcd/gone.yml\n",
		}, []brief{{"etcd", "", "", "http://localhost:2379", "http://localhost:2380", "", "", "", unitFile + " /etc/etcd/gone.yml"}}},
		{"drop-ins in the order of their names, one of a name", files{
			"/usr/lib/systemd/system/etcd.service":           "[Service]\nExecStart=/usr/bin/etcd --name package\nUser=etcd\n",
			"/usr/lib/systemd/system/etcd.service.d/20.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/etcd --name hidden\n",
			"/etc/systemd/system/etcd.service.d/20.conf":     "[Service]\nExecStart=\nExecStart=/opt/etcd --name=%H --data-dir=/d/%p\nUser=%N-user\n",
			"/etc/systemd/system/etcd.service.d/10.conf":     "[Service]\nExecStart=\nExecStart=/usr/bin/etcd --name early\n",
			"/etc/systemd/system/etcd.service.d/README":      "[Service]\nUser=nobody\n",
			"/etc/hostname": "e1.example.test\n",
		}, []brief{{"etcd", "e1.example.test", "/d/etcd", "http://localhost:2379", "http://localhost:2380", "", "", "etcd-user", "/usr/lib/systemd/system/etcd.service /etc/systemd/system/etcd.service.d/10.conf /etc/systemd/system/etcd.service.d/20.conf"}}},
		{"a unit of another name in the administrator's folder", files{
			"/etc/systemd/system/kv.service":          "[Service]\nExecStart=/opt/etcd-3.6/etcd --name e1 --data-dir /kv\n",
			"/etc/systemd/system/watcher.service":     "[Unit]\nAfter=etcd.service\n[Service]\nExecStart=/usr/bin/watch etcd\n",
			"/etc/systemd/system/etcd-backup.service": "[Service]\nExecStart=/usr/bin/etcdctl snapshot save /b\n",
			"/etc/systemd/system/other.service":       "[Service]\nExecStart=/usr/bin/other\n",
		}, []brief{{"kv", "e1", "/kv", "http://localhost:2379", "http://localhost:2380", "", "", "", "/etc/systemd/system/kv.service"}}},
		{"no unit, but a configuration where packages keep it", files{"/etc/etcd/etcd.conf.yml": "name: e1\ndata-dir: /kv\n"},
			[]brief{{"", "e1", "/kv", "http://localhost:2379", "http://localhost:2380", "", "", "", "/etc/etcd/etcd.conf.yml"}}},
		{"no unit, but an environment file where installers keep it", files{"/etc/etcd.env": "export ETCD_NAME=e1\nETCD_DATA_DIR=/kv\n"},
			[]brief{{"", "e1", "/kv", "http://localhost:2379", "http://localhost:2380", "", "", "", "/etc/etcd.env"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []brief
			for _, s := range etcdhost.Find(c.host) {
				got = append(got, briefly(s))
				if s.Args == nil || s.Environment == nil || s.Files == nil || s.PeerURLs == nil {
					t.Errorf("a list is null: %+v", s)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAProcess(t *testing.T) {
	host := files{"/srv/etcd.yml": "name: e2\ndata-dir: /kv2\n"}
	env := []string{"HOME=/root", "ETCD_NAME=env", "ETCD_WAL_DIR=/wal", "AWS_SECRET_ACCESS_KEY=secret"}
	s, ok := etcdhost.Process(host, []string{"/opt/etcd/etcd", "--name=e1", "-data-dir", "data", "--pre-vote", "--trusted-ca-file=pki/ca.crt", "stray", "--name=late"}, env, "/srv")
	if !ok || s.Name != "e1" || s.DataDir != "/srv/data" || s.WALDir != "/wal" || s.CAFile != "/srv/pki/ca.crt" || s.Program != "/opt/etcd/etcd" || s.Unit != "" {
		t.Errorf("%+v", s)
	}
	if diff := cmp.Diff([]string{"ETCD_NAME=env", "ETCD_WAL_DIR=/wal"}, s.Environment); diff != "" || len(s.Args) != 8 {
		t.Errorf("%s%q", diff, s.Args)
	}
	if s, ok := etcdhost.Process(host, []string{"/usr/bin/etcd"}, []string{"ETCD_CONFIG_FILE=etcd.yml"}, "/srv"); !ok || s.Name != "e2" || s.DataDir != "/kv2" {
		t.Errorf("%+v", s)
	}
	for _, args := range [][]string{nil, {"etcdctl", "get"}, {"vi", "/etc/etcd"}, {"lifeboat", "--etcd=/usr/bin/etcd"}} {
		if s, ok := etcdhost.Process(host, args, nil, "/"); ok {
			t.Errorf("%q is an etcd: %+v", args, s)
		}
	}
}

// FuzzFind lets units, environment and configuration files be anything. What
// comes out is absolute and never null, whatever went in.
func FuzzFind(f *testing.F) {
	f.Add("[Service]\nEnvironmentFile=-/etc/etcd.env\nExecStart=/usr/bin/etcd --name $NAME ${X} $$\n", "ETCD_NAME=\"a b\"\n", "name: x\ndata-dir: y\n")
	f.Add("[Service]\nExecStart=/bin/sh -c 'exec etcd --config-file=/etc/etcd/etcd.conf.yml'\n", "", "peer-transport-security:\n  cert-file: a\n")
	f.Add("[Service]\nExecStart=-@!/usr/bin/etcd \"a\\\n;c\n b\" ${ \\", "A=${A}\n", "- 1\n")
	f.Add("", "ETCD_DATA_DIR=d\n", "")
	f.Fuzz(func(t *testing.T, unit, env, config string) {
		h := files{unitFile: unit, "/etc/etcd.env": env, "/etc/etcd/etcd.conf.yml": config, "/etc/hostname": "h\n"}
		for _, s := range etcdhost.Find(h) {
			for _, p := range append(s.PKI(), s.DataDir) {
				if p != "" && !path.IsAbs(p) {
					t.Errorf("%q is not absolute in %+v", p, s)
				}
			}
			if s.Files == nil || s.Args == nil || s.ClientURLs == nil || s.ListenPeerURLs == nil {
				t.Errorf("a list is null: %+v", s)
			}
		}
	})
}

// FuzzProcess lets a command line be anything.
func FuzzProcess(f *testing.F) {
	f.Add("etcd\x00--name=x\x00--data-dir\x00d", "ETCD_NAME=y\x00A=b", "/srv")
	f.Add("/usr/bin/etcd\x00--\x00-", "=\x00ETCD_", "")
	f.Fuzz(func(t *testing.T, args, env, dir string) {
		if s, ok := etcdhost.Process(files{}, strings.Split(args, "\x00"), strings.Split(env, "\x00"), dir); ok && (s.Args == nil || s.DataDir != "" && !path.IsAbs(s.DataDir)) {
			t.Errorf("%+v", s)
		}
	})
}

func TestServicesOfAnyProgram(t *testing.T) {
	h := files{
		"/etc/systemd/system/k3s.service": "[Service]\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/etc/systemd/system/k3s.service.env\n" +
			"ExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--tls-san' \\\n\t'k8s.example.test' \\\n\n",
		"/etc/systemd/system/k3s.service.env":         "K3S_TOKEN='a b'\n",
		"/etc/systemd/system/k3s.service.d/more.conf": "[Service]\nEnvironment=K3S_URL=https://10.0.0.11:6443\n",
	}
	want := etcdhost.Service{
		Files:            []string{"/etc/systemd/system/k3s.service", "/etc/systemd/system/k3s.service.d/more.conf"},
		EnvironmentFiles: []string{"/etc/systemd/system/k3s.service.env"},
		Variables:        map[string]string{"K3S_TOKEN": "a b", "K3S_URL": "https://10.0.0.11:6443"},
		Line:             []string{"/usr/local/bin/k3s", "server", "--tls-san", "k8s.example.test"},
	}
	if diff := cmp.Diff(want, etcdhost.ReadService(h, "k3s")); diff != "" {
		t.Error(diff)
	}
	if none := etcdhost.ReadService(h, "rke2-server"); len(none.Files)+len(none.Line) != 0 {
		t.Errorf("%+v", none)
	}
}
