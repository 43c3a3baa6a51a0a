package topology_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/restore/node"
	"lifeboat/restore/topology"
)

// Before a restore: look at this machine and at the members in the backup.
func ExampleInspect() {
	backup := &manifest.Etcd{ClusterID: 0xcdf818194e3a8c32, Revision: 48210337, Members: []manifest.Member{
		{ID: 0x8e9e05c52164694d, Name: "cp1", ClientURLs: []string{"https://10.0.0.11:2379"}},
	}}
	host, err := topology.Inspect(context.Background(), topology.Inputs{Machine: node.New(node.Options{}), Etcd: backup, Now: time.Now})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := host.Print(os.Stdout); err != nil {
		fmt.Println(err)
	}
	if host.Verdict.Refuse {
		fmt.Println("no restore:", host.Verdict.Why)
	}
}
