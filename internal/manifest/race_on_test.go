//go:build race

package manifest

// stride thins out exhaustive tests where the race detector makes them slow;
// without it they leave nothing out.
const stride = 13
