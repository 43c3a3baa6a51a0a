// Package realplane gives tests a real Kubernetes control plane on one Linux
// machine: kubelet, containerd and kubeadm's static pods, without systemd, a
// registry or Docker. It is for tests only, needs root, and is at home in
// internal/realplane/e2e.
//
// Each machine of the plane is a process tree in namespaces of its own, with its
// own root file system (a folder), host name, addresses and cgroups. All of them
// live inside one more set of namespaces, the plane, into which Isolate puts the
// whole test binary: nothing is mounted, listened on or routed outside of it, and
// when the test ends, in whatever way, the kernel ends all that is in it.
//
// Start reading at Isolate and Start; boot.go is what a machine does when it is
// switched on, and supervise.go and systemctl.go are what it has instead of
// systemd. A plane of three nodes that loses them, and has them again:
//
//	p := realplane.Start(t, 3)
//	cp1 := p.Machines[0]
//	cp1.InitControlPlane(realplane.ControlPlane{Endpoint: p.Balance()})
//	for _, m := range p.Machines[1:] {
//		m.JoinControlPlane()
//	}
//	cp1.Fill()                                     // something to lose
//	api, before := cp1.API(), cp1.Objects()        // api outlives the machine's files
//	cp1.LoseMachine(realplane.KeepImages)          // and other ways, in losses.go
//	...                                            // Backups is a folder that survives
//	cp1.WaitReady(api, time.Minute)
//	realplane.Diff(before, cp1.Objects())          // nothing: all came back
//
// Every wait has a limit, and says what is missing when that has passed.
package realplane
