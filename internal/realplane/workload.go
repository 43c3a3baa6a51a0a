package realplane

import (
	"fmt"
	"strings"
	"time"
)

// What Fill makes.
const (
	WorkloadNamespace = "team-a"       // ConfigMaps, the Deployment web, the account robot with its role
	SecretsNamespace  = "team-b"       // Secrets
	WorkloadAccount   = "robot"        // a service account that may read ConfigMaps
	WorkloadPods      = 2              // of the Deployment
	workloadItems     = 20             // ConfigMaps, and as many Secrets
	crd               = "boats.sea.io" // with three instances
)

// Fill gives a cluster something to lose: two namespaces, 20 ConfigMaps, 20
// Secrets, a Deployment of two pods that run, a custom resource with instances,
// a service account and RBAC of both scopes. It waits until all is there and the
// Deployment is available.
func (m *Machine) Fill() {
	t := m.plane.t
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: Namespace
metadata: {name: %[1]s, labels: {owner: a}}
---
apiVersion: v1
kind: Namespace
metadata: {name: %[2]s}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[3]s, namespace: %[1]s}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: %[1]s}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: %[1]s}
subjects: [{kind: ServiceAccount, name: %[3]s, namespace: %[1]s}]
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: nodes-reader}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nodes-reader}
subjects: [{kind: ServiceAccount, name: %[3]s, namespace: %[1]s}]
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: nodes-reader}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: %[1]s}
spec:
  replicas: %[4]d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{key: node-role.kubernetes.io/control-plane, operator: Exists}]
      containers: [{name: pause, image: %[5]q, imagePullPolicy: Never}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[6]s}
spec:
  group: sea.io
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {seats: {type: integer}}}}}}
`, WorkloadNamespace, SecretsNamespace, WorkloadAccount, WorkloadPods, pauseImage, crd)
	for i := range workloadItems {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings-%[1]d, namespace: %[2]s}
data: {key: value-%[1]d}
---
apiVersion: v1
kind: Secret
metadata: {name: secret-%[1]d, namespace: %[3]s}
stringData: {password: plain-password-%[1]d}
`, i, WorkloadNamespace, SecretsNamespace)
	}
	m.plane.Wait("the objects of the workload", time.Minute, func() string {
		// A load balancer cuts connections to an API server that a busy machine keeps waiting.
		if out, err := m.TryInput(b.String(), "kubectl", "apply", "-f", "-"); err != nil {
			return out
		}
		return ""
	})
	m.Kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/"+crd)
	var boats strings.Builder
	for i := range 3 {
		fmt.Fprintf(&boats, "apiVersion: sea.io/v1\nkind: Boat\nmetadata: {name: boat-%d, namespace: %s}\nspec: {seats: %d}\n---\n", i, WorkloadNamespace, 10+i)
	}
	m.plane.Wait("instances of "+crd, time.Minute, func() string {
		// Until all API servers serve it.
		if out, err := m.TryInput(boats.String(), "kubectl", "apply", "-f", "-"); err != nil {
			return out
		}
		return ""
	})
	m.WaitWorkload()
}

// WaitWorkload waits until the Deployment of Fill is available.
func (m *Machine) WaitWorkload() {
	m.plane.t.Helper()
	m.plane.Wait("the workload is available", 2*time.Minute, func() string {
		out, err := m.Try("kubectl", "-n", WorkloadNamespace, "get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}")
		if err != nil || out != fmt.Sprint(WorkloadPods) {
			return "available: " + out
		}
		return ""
	})
}
