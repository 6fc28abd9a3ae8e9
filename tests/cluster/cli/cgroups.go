package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// rootGroup is the control group, in every hierarchy, below which everything
// of the cluster lives: `down` kills what is in it and removes it.
const rootGroup = "ortolan-cluster"

// controlGroup is where the components run that belong to no node.
const controlGroup = rootGroup + "/control"

// hierarchy is a mounted cgroup hierarchy.
type hierarchy struct {
	path        string
	version2    bool
	controllers []string
}

// hierarchies reads where cgroups are mounted: several times with version 1.
func hierarchies() ([]hierarchy, error) {
	table, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer table.Close()
	var found []hierarchy
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || (fields[2] != "cgroup" && fields[2] != "cgroup2") {
			continue
		}
		found = append(found, hierarchy{fields[1], fields[2] == "cgroup2", strings.Split(fields[3], ",")})
	}
	return found, lines.Err()
}

func hierarchyOf(controller string) (hierarchy, bool) {
	all, _ := hierarchies()
	i := slices.IndexFunc(all, func(h hierarchy) bool { return !h.version2 && slices.Contains(h.controllers, controller) })
	if i < 0 {
		return hierarchy{}, false
	}
	return all[i], true
}

// entrances are the files by which a component enters a group. It leaves the
// groups of whoever typed `up` in all hierarchies but that of processor time,
// where all components together would weigh as little as one other process.
func entrances(group string) ([]string, error) {
	all, err := hierarchies()
	var files []string
	for _, h := range all {
		if !h.version2 && !slices.Contains(h.controllers, "cpu") {
			files = append(files, filepath.Join(h.path, group, "cgroup.procs"))
		}
	}
	return files, err
}

// makeGroups makes the groups in every version 1 hierarchy; kubelet refuses
// to start below a root group that lacks one.
func makeGroups(groups ...string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if h.version2 {
			continue
		}
		for _, group := range append([]string{rootGroup}, groups...) {
			if err := h.makeGroup(group); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h hierarchy) makeGroup(group string) error {
	path := filepath.Join(h.path, group)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if slices.Contains(h.controllers, "cpuset") {
		// A new cpuset is empty and takes no process until it is filled.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			content, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(path, name), content, 0o644); err != nil {
				return err
			}
		}
	}
	if slices.Contains(h.controllers, "cpu") {
		// Pods on a node weigh what they would weigh on a machine of their own.
		shares := strconv.Itoa(1024 * len(clusterNodes))
		return os.WriteFile(filepath.Join(path, "cpu.shares"), []byte(shares), 0o644)
	}
	return nil
}

// processesIn lists the processes of a group and of all groups below it, in
// every hierarchy. The dead that nobody has taken notice of do not count.
func processesIn(group string) []int {
	all, _ := hierarchies()
	var pids []int
	for _, h := range all {
		_ = filepath.WalkDir(filepath.Join(h.path, group), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return nil // a group that is just vanishing
			}
			content, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for field := range strings.FieldsSeq(string(content)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	slices.Sort(pids)
	return slices.DeleteFunc(slices.Compact(pids), func(pid int) bool {
		stat, err := readStat(pid)
		return err != nil || stat.state == zombie
	})
}

// removeGroups removes a group and all below it from every hierarchy. A killed
// process keeps its group busy until its parent has taken notice of its end.
func removeGroups(group string) error {
	const limit, pause = 10 * time.Second, 20 * time.Millisecond
	for deadline := time.Now().Add(limit); ; time.Sleep(pause) {
		err := tryRemoveGroups(group)
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

func tryRemoveGroups(group string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var failures []error
	for _, h := range all {
		var folders []string
		_ = filepath.WalkDir(filepath.Join(h.path, group), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return nil
		})
		for _, folder := range slices.Backward(folders) {
			if err := syscall.Rmdir(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failures = append(failures, fmt.Errorf("cannot remove control group %s: %w", folder, err))
			}
		}
	}
	return errors.Join(failures...)
}
