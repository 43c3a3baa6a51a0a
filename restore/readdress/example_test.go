package readdress_test

import (
	"fmt"

	"lifeboat/restore/readdress"
)

func Example() {
	m, err := readdress.New(readdress.Options{
		Names:     []string{"cp1=cp4"},
		Addresses: []string{"10.0.0.11=10.0.0.44"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	result := m.Rewrite(readdress.StaticPod, `spec:
  containers:
  - command:
    - etcd
    - --name=cp1
    - --initial-cluster=cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380
    - --data-dir=/srv/cp1
`)
	for _, c := range result.Changes {
		fmt.Printf("line %d:\n-%s\n+%s\n", c.Line, c.Before, c.After)
	}
	// Output:
	// line 5:
	// -    - --name=cp1
	// +    - --name=cp4
	// line 6:
	// -    - --initial-cluster=cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380
	// +    - --initial-cluster=cp4=https://10.0.0.44:2380,cp2=https://10.0.0.12:2380
}
