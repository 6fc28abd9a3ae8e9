package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// folders are the three places the tool works in.
type folders struct {
	source string // tests/cluster of the project
	cache  string // built programs, kept for good
	run    string // everything of the running cluster, gone after `down`
}

// longestSocket is the longest path of a socket below the run folder.
const longestSocket = "node-0/run/containerd.sock.ttrpc"

// socketPathLimit is sizeof(sockaddr_un.sun_path) without its final zero.
const socketPathLimit = 107

func findFolders() (folders, error) {
	source := os.Getenv("ORTOLAN_CLUSTER_SOURCE")
	cache := os.Getenv("ORTOLAN_CACHE")
	if source == "" || cache == "" {
		return folders{}, errors.New("start this by the script tests/cluster/cluster, which says where things are")
	}
	cache, err := filepath.Abs(cache)
	if err != nil {
		return folders{}, err
	}
	run := os.Getenv("ORTOLAN_CLUSTER_DIR")
	if run == "" {
		run = filepath.Join(cache, "cluster", "run")
	}
	if run, err = filepath.Abs(run); err != nil {
		return folders{}, err
	}
	if length := len(filepath.Join(run, longestSocket)); length > socketPathLimit {
		return folders{}, fmt.Errorf("the run folder %s is %d bytes too long for the sockets in it: set ORTOLAN_CLUSTER_DIR to a shorter path",
			run, length-socketPathLimit)
	}
	if strings.ContainsAny(run, " \t\n\\\"'") {
		return folders{}, fmt.Errorf("the run folder %q has blanks or quotes in its name: set ORTOLAN_CLUSTER_DIR to a simpler path", run)
	}
	return folders{source: source, cache: filepath.Join(cache, "cluster"), run: run}, nil
}

func (f folders) inRun(elements ...string) string {
	return filepath.Join(append([]string{f.run}, elements...)...)
}

// bin is the folder of a part's programs.
func (f folders) bin(p part) string {
	return filepath.Join(f.cache, p.name+"-"+p.hash(f.source))
}

func (f folders) program(p part, name string) string {
	return filepath.Join(f.bin(p), name)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func shellQuote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
