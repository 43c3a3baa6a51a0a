// Package crds only holds the Prometheus operator's module at one version: the
// tests of deploy/ take the operator's resource definitions out of it.
package crds

import _ "github.com/prometheus-operator/prometheus-operator/pkg/versionutil" // the least of its packages
