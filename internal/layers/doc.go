// Package layers holds the architecture as a test: which package may import
// which, and where each heavy dependency lives. There is nothing to call here;
// read layers_test.go, and change its table when a package is added.
package layers
