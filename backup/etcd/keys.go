package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Keys returns the names of keys with a prefix, the first limit of them, by a
// linearizable read through the given member. Values stay where they are.
func (c *Cluster) Keys(ctx context.Context, endpoint, prefix string, limit int64) ([]string, error) {
	client, err := c.client(endpoint)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.limits.Call)
	defer cancel()
	response, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(limit))
	if err != nil {
		return nil, fmt.Errorf("list the keys below %s at %s: %w", prefix, endpoint, err)
	}
	names := make([]string, 0, len(response.Kvs))
	for _, kv := range response.Kvs {
		names = append(names, string(kv.Key))
	}
	return names, nil
}
