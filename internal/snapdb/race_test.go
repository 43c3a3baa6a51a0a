//go:build race

package snapdb

func init() { thin = 8 }
