package readdress_test

import (
	"strings"
	"testing"

	"lifeboat/restore/readdress"
)

func FuzzRewrite(f *testing.F) {
	for kind := readdress.StaticPod; kind <= readdress.EtcdConfig; kind++ {
		f.Add(int(kind), "- --name=cp1 --initial-cluster cp1=https://10.0.0.11:2380,cp2=https://[fd00::11]:2380 # 10.0.0.11\n")
		f.Add(int(kind), "server: https://10.0.0.1:6443\ncontrolPlaneEndpoint: k8s.example.test\nimage: 10.0.0.11/x\ncertSANs: [cp1]\n- cp1")
		f.Add(int(kind), "fd00::11: \\n10.0.0.11 ::ffff:10.0.0.11 10.0.0.11/32 --hostname-override=cp1\r\nname: ETCD_NAME\nvalue: 'cp1'")
	}
	f.Fuzz(func(t *testing.T, kind int, text string) {
		k := readdress.Kind(kind)
		nothing := mapping(t, readdress.Options{}).Rewrite(k, text)
		if nothing.Text != text || nothing.Changes != nil || nothing.Kept != nil {
			t.Fatalf("the empty mapping changed %q to %+v", text, nothing)
		}
		same := mapping(t, readdress.Options{Names: []string{"cp1=cp1"}, Addresses: []string{"10.0.0.11=10.0.0.11"}}).Rewrite(k, text)
		if same.Text != text {
			t.Fatalf("the identity changed %q to %q", text, same.Text)
		}
		m := mapping(t, toCP4)
		once := m.Rewrite(k, text)
		twice := m.Rewrite(k, once.Text)
		if twice.Text != once.Text || twice.Changes != nil {
			t.Fatalf("%q became %q and then %q", text, once.Text, twice.Text)
		}
		old, new := strings.Split(text, "\n"), strings.Split(once.Text, "\n")
		if len(old) != len(new) {
			t.Fatalf("%d lines became %d", len(old), len(new))
		}
		for _, c := range once.Changes {
			if c.Before != strings.TrimSuffix(old[c.Line-1], "\r") || c.After != strings.TrimSuffix(new[c.Line-1], "\r") || c.Before == c.After {
				t.Fatalf("%q: tells line %d as %q -> %q", text, c.Line, c.Before, c.After)
			}
			old[c.Line-1] = new[c.Line-1]
		}
		if strings.Join(old, "\n") != once.Text {
			t.Fatalf("%q: changes are not all told: %+v", text, once.Changes)
		}
		// Nodes that change places are back after the second time.
		swap := mapping(t, readdress.Options{Names: []string{"cp1=cp2", "cp2=cp1"}, Addresses: []string{"10.0.0.11=10.0.0.12", "10.0.0.12=10.0.0.11"}})
		if back := swap.Rewrite(k, swap.Rewrite(k, text).Text); !strings.Contains(text, "::") && back.Text != text {
			t.Fatalf("%q came back as %q", text, back.Text)
		}
	})
}
