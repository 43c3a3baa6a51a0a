package salvage

import "fmt"

// ForceNewCluster are the commands by which etcd itself takes the state of a copy
// of a data directory. It drops what its log holds behind the commit index.
func ForceNewCluster(dir string) []string {
	return []string{
		fmt.Sprintf("cp -a %s /root/salvage    # never start the original", dir),
		"etcd --data-dir /root/salvage --name salvage --force-new-cluster --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379 --listen-peer-urls http://127.0.0.1:12380 --initial-advertise-peer-urls http://127.0.0.1:12380 --initial-cluster salvage=http://127.0.0.1:12380",
		"etcdctl --endpoints=http://127.0.0.1:12379 snapshot save salvage.db    # then \"lifeboat import\" it, or etcdutl snapshot restore",
	}
}
