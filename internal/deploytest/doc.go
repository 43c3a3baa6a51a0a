// Package deploytest checks what stands in deploy/: that the policies let each
// role do its work and no more, and, with the build tag deploy, that the chart
// and the kustomization render to what they promise and that a real API server
// takes it. It holds tests only.
package deploytest
