package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// process is a component of the cluster as it is recorded in the run folder.
// The start time tells it from a later process that got the same id.
type process struct {
	name      string
	pid       int
	startTime string
	exited    <-chan struct{} // closed when it ended; nil unless we started it
}

// start runs a component in a session of its own, so that no terminal's
// signal reaches it, and in a control group of its node, so that `down` finds
// it and all its descendants whatever becomes of their records.
func (c *cluster) start(name, group string, argv ...string) (*process, error) {
	logFile, err := os.OpenFile(c.logPath(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	// Only the process itself can enter the group before its first fork.
	const enter = `while [ "$1" != -- ]; do echo 0 >"$1" || exit; shift; done; shift; exec "$@"`
	files, err := entrances(group)
	if err != nil {
		return nil, err
	}
	arguments := slices.Concat([]string{"-c", enter, "enter"}, files, []string{"--"}, argv)
	command := exec.Command("/bin/sh", arguments...)
	command.Dir = c.folders.run
	command.Env = []string{
		"PATH=" + c.folders.bin(runtimePart) + ":" + c.folders.bin(runcPart) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + c.folders.run,
	}
	command.Stdout, command.Stderr = logFile, logFile
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	exited := make(chan struct{})
	p := &process{name: name, pid: command.Process.Pid, exited: exited}
	if stat, err := readStat(p.pid); err == nil {
		p.startTime = stat.startTime
	}
	go func() {
		_ = command.Wait() // how it ended is in its log
		close(exited)
	}()
	c.watched = append(c.watched, p)
	record := fmt.Sprintf("%d %s\n", p.pid, p.startTime)
	return p, os.WriteFile(c.folders.inRun("processes", name), []byte(record), 0o644)
}

// recorded reads the components that were started, alive or not.
func (c *cluster) recorded() []process {
	paths, _ := filepath.Glob(c.folders.inRun("processes", "*"))
	var processes []process
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		p := process{name: filepath.Base(path)}
		if _, err := fmt.Sscan(string(content), &p.pid, &p.startTime); err == nil {
			processes = append(processes, p)
		}
	}
	return processes
}

// alive tells whether the very process that was started still runs.
func (p process) alive() bool {
	stat, err := readStat(p.pid)
	return err == nil && stat.startTime == p.startTime && stat.state != zombie
}

// zombie is the state of a process that has ended but is still listed.
const zombie = "Z"

type processStat struct{ state, startTime string }

func readStat(pid int) (processStat, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStat{}, err
	}
	// The second field is the program's name in parentheses and may contain
	// anything; the fields after it are numbered from 3 in proc(5).
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	const state, startTime = 3, 22
	if len(fields) <= startTime-state {
		return processStat{}, errors.New("unknown format of /proc/PID/stat")
	}
	return processStat{fields[0], fields[startTime-state]}, nil
}

// strays finds processes of ours by the run folder in their command line or as
// their home: the net below the control groups, for what left them.
func (c *cluster) strays() []int {
	ours := c.ourPrograms()
	inArguments := []byte(c.folders.run + "/")
	asHome := []byte("HOME=" + c.folders.run + "\x00")
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		folder := filepath.Join("/proc", entry.Name())
		program, _ := os.Readlink(filepath.Join(folder, "exe"))
		if !slices.Contains(ours, program) {
			continue
		}
		arguments, _ := os.ReadFile(filepath.Join(folder, "cmdline"))
		environment, _ := os.ReadFile(filepath.Join(folder, "environ"))
		if bytes.Contains(arguments, inArguments) || bytes.Contains(environment, asHome) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ourPrograms are what a stray must run to be ended. An editor with a log of
// the run folder open is not ours.
func (c *cluster) ourPrograms() []string {
	return []string{
		c.folders.program(kubePart, "kube"), c.folders.program(dnsPart, "dns"), c.folders.program(runcPart, "runc"),
		c.folders.program(runtimePart, "containerd"), c.folders.program(runtimePart, "containerd-shim-runc-v2"),
	}
}

func (c *cluster) logPath(name string) string {
	return c.folders.inRun("logs", name+".log")
}

// lastLines is the end of a component's log, for an error message.
func (c *cluster) lastLines(name string) string {
	const lines, window = 15, 8 << 10
	log, err := os.Open(c.logPath(name))
	if err != nil {
		return ""
	}
	defer log.Close()
	if size, err := log.Seek(0, io.SeekEnd); err == nil {
		_, _ = log.Seek(max(0, size-window), io.SeekStart)
	}
	content, _ := io.ReadAll(log)
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return "  | " + strings.Join(all[max(0, len(all)-lines):], "\n  | ")
}
