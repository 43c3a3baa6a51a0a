package etcdtest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
)

// An object is one thing below /registry. Its key depends on its number only,
// its value on the seed, the number and the version, so that the same seed
// makes the same data whoever writes it.
type object struct {
	seed   uint64
	number uint64
}

// The kinds and how many in a hundred objects are of each, roughly as in a
// cluster that runs applications.
var kinds = []struct {
	share  int
	prefix string // "%s" is a namespace where one is wanted
	kind   string
	api    string
	lease  bool // attached to an etcd lease, as kube-apiserver does
}{
	{30, "/registry/pods/%s/", "Pod", "v1", false},
	{20, "/registry/events/%s/", "Event", "v1", true},
	{12, "/registry/configmaps/%s/", "ConfigMap", "v1", false},
	{8, "/registry/secrets/%s/", "Secret", "v1", false},
	{8, "/registry/replicasets/%s/", "ReplicaSet", "apps/v1", false},
	{6, "/registry/deployments/%s/", "Deployment", "apps/v1", false},
	{5, "/registry/endpointslices/%s/", "EndpointSlice", "discovery.k8s.io/v1", false},
	{5, "/registry/services/specs/%s/", "Service", "v1", false},
	{4, "/registry/leases/kube-node-lease/", "Lease", "coordination.k8s.io/v1", false},
	{1, "/registry/minions/", "Node", "v1", false},
	{1, "/registry/masterleases/", "Endpoints", "v1", true},
}

// Words that make up most of a value, so that it compresses as real ones do.
var words = []string{
	"app.kubernetes.io/name", "app.kubernetes.io/instance", "kubectl.kubernetes.io/last-applied-configuration",
	"pod-template-hash", "controller-revision-hash", "kubernetes.io/hostname", "default-token",
	"IfNotPresent", "RollingUpdate", "ClusterFirst", "default-scheduler", "TCP", "UDP", "Always", "ContainerReady",
	"spec.containers", "status.conditions", "lastTransitionTime", "resources", "requests", "limits", "memory", "cpu",
	"livenessProbe", "readinessProbe", "httpGet", "/healthz", "/metrics", "volumeMounts", "kube-api-access",
	"registry.example.com/team/backend", "registry.example.com/team/frontend", "nginx", "postgres", "redis",
	"serviceAccountName", "securityContext", "runAsNonRoot", "tolerations", "node.kubernetes.io/not-ready",
	"NoExecute", "tolerationSeconds", "ownerReferences", "blockOwnerDeletion", "managedFields", "kube-controller-manager",
	"f:metadata", "f:labels", "f:spec", "f:status", "f:conditions", "Successfully assigned", "Pulling image", "Created container",
}

func (o object) kind() int {
	n := int(mix(o.number) % 100)
	for i, k := range kinds {
		if n -= k.share; n < 0 {
			return i
		}
	}
	return 0
}

func (o object) leased() bool { return kinds[o.kind()].lease }

// key is unique to the number.
func (o object) key() string {
	k := kinds[o.kind()]
	prefix := k.prefix
	if namespaced := prefix[len(prefix)-3:] == "%s/"; namespaced {
		prefix = fmt.Sprintf(prefix, "team-"+string(rune('a'+o.number%17)))
	}
	return fmt.Sprintf("%s%s-%07d-%05x", prefix, words[32+o.number%3], o.number, mix(o.number)&0xfffff)
}

// value appends the object's value to buf: a Kubernetes storage envelope with
// field-like text and, for a fifth of it, bytes that do not compress (uids,
// tokens). Its length is between 200 bytes and 8 KiB around mean.
func (o object) value(buf []byte, version, mean int) []byte {
	rng := rand.New(rand.NewPCG(o.seed, mix(o.number)^uint64(version)))
	k := kinds[o.kind()]
	size := min(max(mean/4+int(rng.ExpFloat64()*float64(mean)*0.75), 200), 8<<10)
	start := len(buf)
	buf = append(buf, "k8s\x00\n"...)
	buf = append(buf, byte(len(k.api)))
	buf = append(buf, k.api...)
	buf = append(buf, 0x12, byte(len(k.kind)))
	buf = append(buf, k.kind...)
	buf = fmt.Appendf(buf, "\x1a\xff\x0a$%08x-%04x-4%03x", uint32(o.number), version, rng.Uint32()&0xfff)
	var noise [24]byte
	for len(buf)-start < size {
		r := rng.Uint64()
		// Repeating a word with an index is what arrays of containers look like.
		w := words[r%uint64(len(words))]
		buf = append(buf, 0x0a, byte(len(w)))
		buf = append(buf, w...)
		buf = append(buf, 0x12, byte('0'+r>>32%10), 0x1a)
		if r>>40%5 == 0 {
			for i := range 3 {
				x := rng.Uint64()
				for j := range 8 {
					noise[8*i+j] = byte(x >> (8 * j))
				}
			}
			if r>>48%2 == 0 {
				buf = hex.AppendEncode(buf, noise[:12])
			} else {
				buf = base64.StdEncoding.AppendEncode(buf, noise[:])
			}
		}
	}
	return buf[:start+size]
}

// mix is the finalizer of splitmix64: neighbouring numbers give unrelated bits.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
