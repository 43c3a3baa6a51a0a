package kubeapi_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"lifeboat/restore/kubeapi"
)

// After a restore: wait for this node's API server and for its kubelet, then
// remove a machine that did not come back.
func Example() {
	ctx := context.Background()
	admin, err := os.ReadFile("/etc/kubernetes/admin.conf")
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := kubeapi.New(kubeapi.Options{Kubeconfig: admin, Server: "https://127.0.0.1:6443", TLSServerName: "kubernetes"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	since := kubeapi.Since{Time: time.Now(), Revision: 1_048_210_337}
	say := func(text string) { fmt.Println(text) }
	if err := client.WaitReady(ctx, say); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := client.WaitLease(ctx, "cp1", since, say); err != nil {
		fmt.Println(err)
		return
	}
	changes, err := client.RemoveNodes(ctx, []string{"cp3"}, kubeapi.Removal{Since: since, Progress: say})
	fmt.Println(changes, err)
}
