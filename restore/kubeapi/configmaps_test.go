package kubeapi_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"lifeboat/restore/kubeapi"
	"lifeboat/restore/readdress"
)

const (
	kubeadmConfig = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"
	clusterInfo   = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
	kubeProxy     = "/api/v1/namespaces/kube-system/configmaps/kube-proxy"
)

// kubeadms are its ConfigMaps as it writes them, shortened.
func kubeadms() *store {
	s := newStore()
	s.put(kubeadmConfig, map[string]any{"data": map[string]string{"ClusterConfiguration": `apiServer:
  certSANs:
  - cp1
  - 10.0.0.11
apiVersion: kubeadm.k8s.io/v1beta4
controlPlaneEndpoint: 10.0.0.11:6443
kind: ClusterConfiguration
networking:
  podSubnet: 10.0.0.11/8
`}})
	s.put(clusterInfo, map[string]any{"data": map[string]string{
		"jws-kubeconfig-abcdef": "eyJ..signature", "jws-kubeconfig-ghijkl": "eyJ..other", "note": "stays",
		"kubeconfig": "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: AAAA\n    server: https://10.0.0.11:6443\n  name: \"\"\nkind: Config\n",
	}})
	s.put(kubeProxy, map[string]any{"data": map[string]string{
		"config.conf":     "kind: KubeProxyConfiguration\n",
		"kubeconfig.conf": "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt\n    server: https://10.0.0.11:6443\n  name: default\n",
	}})
	return s
}

func mapping(t *testing.T, o readdress.Options) *readdress.Mapping {
	t.Helper()
	m, err := readdress.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func data(s *store, path string) map[string]string {
	return s.get(path)["data"].(map[string]string)
}

func TestReaddress(t *testing.T) {
	s := kubeadms()
	client := serve(t, s)
	// Two nodes change places: done twice it would be undone.
	m := mapping(t, readdress.Options{Names: []string{"cp1=cp4"}, Addresses: []string{"10.0.0.11=10.0.0.44", "10.0.0.44=10.0.0.11"}})
	got, err := client.Readdress(t.Context(), m, "r1")
	if err != nil || len(got) != 3 {
		t.Fatalf("%v, %v", got, err)
	}
	if text := data(s, kubeadmConfig)["ClusterConfiguration"]; !strings.Contains(text, "- cp4\n  - 10.0.0.44\n") || !strings.Contains(text, "controlPlaneEndpoint: 10.0.0.44:6443") || !strings.Contains(text, "podSubnet: 10.0.0.11/8") {
		t.Error(text)
	}
	info := data(s, clusterInfo)
	if len(info) != 2 || info["note"] != "stays" || !strings.Contains(info["kubeconfig"], "https://10.0.0.44:6443") {
		t.Error(info)
	}
	if proxy := data(s, kubeProxy); !strings.Contains(proxy["kubeconfig.conf"], "https://10.0.0.44:6443") || proxy["config.conf"] == "" {
		t.Error(proxy)
	}
	for i, want := range []string{"controlPlaneEndpoint: 10.0.0.11:6443 -> controlPlaneEndpoint: 10.0.0.44:6443", "removed jws-kubeconfig-abcdef, jws-kubeconfig-ghijkl", "rollout restart daemonset kube-proxy"} {
		if !strings.Contains(got[i].What, want) {
			t.Errorf("%s lacks %q", got[i], want)
		}
	}
	if !strings.Contains(got[0].What, "10.0.0.11 stays, since") {
		t.Errorf("%s does not tell what stays", got[0])
	}

	if again, err := client.Readdress(t.Context(), m, "r1"); err != nil || len(again) != 0 || len(s.changes()) != 3 {
		t.Errorf("again: %v, %v", again, err)
	}
	if other, err := client.Readdress(t.Context(), m, "r2"); err != nil || len(other) != 3 {
		t.Errorf("another restore: %v, %v", other, err)
	}
}

func TestReaddressLeavesAloneWhatItDoesNotConcern(t *testing.T) {
	s := kubeadms()
	delete(s.objects, kubeProxy) // a cluster without
	s.put(clusterInfo, map[string]any{"data": map[string]string{}})
	client := serve(t, s)
	got, err := client.Readdress(t.Context(), mapping(t, readdress.Options{Addresses: []string{"10.0.0.77=10.0.0.78"}}), "r1")
	if err != nil || len(got) != 0 || len(s.changes()) != 0 {
		t.Errorf("%v, %v, requests %v", got, err, s.changes())
	}
	if got, err := client.Readdress(t.Context(), &readdress.Mapping{}, "r1"); err != nil || len(got) != 0 {
		t.Errorf("an empty mapping: %v, %v", got, err)
	}
	if _, err := client.Readdress(t.Context(), &readdress.Mapping{}, ""); err == nil {
		t.Error("a restore without an id was taken")
	}
}

func TestReaddressKeepsWhatOthersWriteMeanwhile(t *testing.T) {
	s := kubeadms()
	writes := 0
	s.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && r.URL.Path == clusterInfo && writes < 3 {
			writes++
			s.put(clusterInfo, map[string]any{"data": map[string]string{"kubeconfig": data(s, clusterInfo)["kubeconfig"], "jws-kubeconfig-new": "x", "note": "newer"}})
		}
		return false
	}
	got, err := serve(t, s).Readdress(t.Context(), mapping(t, readdress.Options{Addresses: []string{"10.0.0.11=10.0.0.44"}}), "r1")
	if err != nil || len(got) != 3 || writes != 3 {
		t.Fatalf("%v, %v, %d writes", got, err, writes)
	}
	if info := data(s, clusterInfo); len(info) != 2 || info["note"] != "newer" || !strings.Contains(got[1].What, "removed jws-kubeconfig-new") {
		t.Error(info, got[1])
	}
}

func TestReaddressGivesUpWhenOthersNeverRest(t *testing.T) {
	s := kubeadms()
	s.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			s.put(r.URL.Path, s.get(r.URL.Path))
		}
		return false
	}
	_, err := serve(t, s).Readdress(t.Context(), mapping(t, readdress.Options{Addresses: []string{"10.0.0.11=10.0.0.44"}}), "r1")
	if !errors.Is(err, kubeapi.ErrConflict) || !strings.Contains(err.Error(), "run this again") {
		t.Error(err)
	}
}

func TestALostAnswerToAChangeIsNotASecondChange(t *testing.T) {
	s := kubeadms()
	lost := 0
	s.after = func(r *http.Request) int {
		if r.Method == http.MethodPatch && lost < 1 {
			lost++
			return http.StatusGatewayTimeout // but it was done
		}
		return 0
	}
	m := mapping(t, readdress.Options{Addresses: []string{"10.0.0.11=10.0.0.44", "10.0.0.44=10.0.0.11"}})
	got, err := serve(t, s).Readdress(t.Context(), m, "r1")
	if err != nil || len(got) != 3 || !strings.Contains(data(s, kubeadmConfig)["ClusterConfiguration"], "controlPlaneEndpoint: 10.0.0.44:6443") {
		t.Errorf("%v, %v\n%s", got, err, data(s, kubeadmConfig)["ClusterConfiguration"])
	}
}
