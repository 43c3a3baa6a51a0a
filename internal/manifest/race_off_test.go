//go:build !race

package manifest

const stride = 1
