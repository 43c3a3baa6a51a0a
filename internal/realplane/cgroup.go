package realplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroups are the one thing of a plane that no namespace holds. Each plane has
// a group of its own in every hierarchy, named after the process that made it;
// below it each machine has one, in which its kubelet makes the pods' groups.

const (
	cgroupRoot     = "/sys/fs/cgroup"
	cgroupPrefix   = "lifeboat-realplane-"
	cgroupVariable = "LIFEBOAT_REALPLANE_CGROUP"
)

func cgroupName(pid int) string { return cgroupPrefix + strconv.Itoa(pid) }

// unified reports whether this machine has cgroup v2 only.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

// hierarchies are the folders below which groups are made: one with cgroup v2,
// one a controller with v1.
func hierarchies() ([]string, error) {
	if unified() {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var found []string
	for _, e := range entries {
		// v1's links, such as cpu -> cpu,cpuacct, are no folders. Beside v1 there may
		// be an empty v2, in which runc makes groups, too.
		if e.IsDir() {
			found = append(found, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("find cgroup hierarchies: %s holds none", cgroupRoot)
	}
	return found, nil
}

// makeCgroups makes plane/machine in every hierarchy.
func makeCgroups(plane, machine string) error {
	found, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range found {
		if err := os.MkdirAll(filepath.Join(h, plane, machine), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// A new group of v1's cpuset has neither processors nor memory, and takes
		// no process until it has.
		for _, level := range []string{plane, filepath.Join(plane, machine)} {
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := inherit(filepath.Join(h, level), file); err != nil {
					return err
				}
			}
		}
		if unified() {
			for _, level := range []string{"", plane, filepath.Join(plane, machine)} {
				for _, c := range []string{"cpu", "cpuset", "memory", "pids", "io"} {
					// What a kernel lacks it can't hand down; kubelet names what it misses.
					_ = os.WriteFile(filepath.Join(h, level, "cgroup.subtree_control"), []byte("+"+c), 0o644)
				}
			}
		}
	}
	return nil
}

func inherit(group, file string) error {
	above, err := os.ReadFile(filepath.Join(filepath.Dir(group), file))
	if errors.Is(err, os.ErrNotExist) || unified() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(group, file), above, 0o644); err != nil {
		return fmt.Errorf("fill cgroup: %w", err)
	}
	return nil
}

// removeCgroups removes a group and all below it. Killed processes take a
// moment to leave.
func removeCgroups(name string) error {
	found, err := hierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, h := range found {
		for {
			err := removeGroup(filepath.Join(h, name))
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

func removeGroup(group string) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(group, e.Name())); err != nil {
				return err
			}
		}
	}
	// The files in a group are the kernel's: only the folder itself is removed.
	if err := syscall.Rmdir(group); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove cgroup %s: %w", group, err)
	}
	return nil
}

// sweep removes what runs left that were killed themselves: groups, and folders
// of the same name.
func sweep() {
	folders, _ := filepath.Glob(filepath.Join(os.TempDir(), cgroupPrefix+"*"))
	hierarchies, _ := hierarchies() // without any there is nothing to sweep
	for _, h := range hierarchies {
		groups, _ := filepath.Glob(filepath.Join(h, cgroupPrefix+"*"))
		folders = append(folders, groups...)
	}
	for _, folder := range folders {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(folder), cgroupPrefix))
		if err != nil || syscall.Kill(pid, 0) != syscall.ESRCH {
			continue
		}
		if strings.HasPrefix(folder, cgroupRoot) {
			_ = removeGroup(folder) // the next run tries again
		} else {
			_ = os.RemoveAll(folder)
		}
	}
}
