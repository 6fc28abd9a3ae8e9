package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// part is a group of programs that is built, and kept in the cache, as one.
// The parts are apart so that touching one never rebuilds the others.
type part struct {
	name    string
	source  string   // folder below tests/cluster
	options []string // of go build
	targets []string // packages of go build
	cgo     bool
	links   []string // other names of the one program, which acts by its name
	finish  func(ctx context.Context, source, into string) error
}

var (
	kubePart = part{
		name: "kube", source: "kube", targets: []string{"."},
		links: []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"},
	}
	runtimePart = part{
		name: "runtime", source: "runtime",
		options: []string{"-tags", "no_btrfs no_devmapper no_zfs"},
		targets: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
			"github.com/containernetworking/plugins/plugins/ipam/host-local",
			"github.com/containernetworking/plugins/plugins/main/bridge",
			"github.com/containernetworking/plugins/plugins/main/loopback",
			"github.com/containernetworking/plugins/plugins/meta/portmap",
		},
	}
	// runc alone needs C: libseccomp compiles its filters.
	runcPart = part{
		name: "runc", source: "runtime", cgo: true,
		options: []string{"-tags", "seccomp"},
		targets: []string{"github.com/opencontainers/runc"},
	}
	dnsPart   = part{name: "dns", source: "dns", targets: []string{"."}}
	pausePart = part{name: "pause", source: "pause", finish: buildPauseImage}

	allParts = []part{pausePart, runcPart, runtimePart, dnsPart, kubePart}
)

// hash names what the part is built from: its sources, the exact versions in
// its go.mod and go.sum, how it is built, and the Go version.
func (p part) hash(source string) string {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH, p.options, p.targets, p.cgo, p.links)
	folder := filepath.Join(source, p.source)
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintln(sum, entry.Name(), len(content))
		sum.Write(content)
		return err
	})
	if err != nil {
		// The sources are read again by the build, which then says what is wrong.
		fmt.Fprintln(sum, err)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12]
}

// missingParts are those not in the cache yet.
func (c *cluster) missingParts() []part {
	return slices.DeleteFunc(slices.Clone(allParts), func(p part) bool { return exists(c.folders.bin(p)) })
}

func (c *cluster) build(ctx context.Context) error {
	if err := checkPackages(c.folders.source); err != nil {
		return err
	}
	missing := c.missingParts()
	for _, p := range missing {
		fmt.Printf("building %s ...\n", p.name)
		start := time.Now()
		if err := p.build(ctx, c.folders); err != nil {
			return fmt.Errorf("cannot build %s: %w", p.name, err)
		}
		fmt.Printf("built %s in %s\n", p.name, time.Since(start).Round(time.Second))
	}
	if len(missing) == 0 {
		fmt.Println("everything is built")
	}
	return nil
}

// build builds into a folder of another name first: a folder with the part's
// own name is always complete, whatever was interrupted.
func (p part) build(ctx context.Context, f folders) error {
	if err := os.MkdirAll(f.cache, 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(f.cache, "."+p.name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	source := filepath.Join(f.source, p.source)
	if len(p.targets) > 0 {
		if err := p.compile(ctx, source, fresh); err != nil {
			return err
		}
	}
	for _, name := range p.links {
		if err := os.Symlink(p.name, filepath.Join(fresh, name)); err != nil {
			return err
		}
	}
	if p.finish != nil {
		if err := p.finish(ctx, source, fresh); err != nil {
			return err
		}
	}
	err = os.Rename(fresh, f.bin(p))
	if errors.Is(err, fs.ErrExist) {
		return nil // someone else was quicker
	}
	return err
}

func (p part) compile(ctx context.Context, source, into string) error {
	flags, err := linkerFlags(source)
	if err != nil {
		return err
	}
	arguments := []string{"build", "-p", "2", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", into + "/"}
	arguments = append(append(arguments, p.options...), p.targets...)
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = source
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	cgo := "CGO_ENABLED=0"
	if p.cgo {
		cgo = "CGO_ENABLED=1"
	}
	command.Env = append(os.Environ(), cgo)
	return command.Run()
}

var kubernetesVersion = regexp.MustCompile(`\sk8s\.io/kubernetes v((\d+)\.(\d+)\.\S+)`)

// linkerFlags leaves out what only debuggers read. Kubernetes learns its own
// version from its linker flags; without them its components distrust each
// other as 0.0.0.
func linkerFlags(source string) (string, error) {
	module, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil {
		return "", err
	}
	flags := []string{"-s", "-w"}
	if version := kubernetesVersion.FindSubmatch(module); version != nil {
		const variable = "-X k8s.io/component-base/version."
		flags = append(flags,
			fmt.Sprintf("%sgitVersion=v%s", variable, version[1]),
			fmt.Sprintf("%sgitMajor=%s", variable, version[2]),
			fmt.Sprintf("%sgitMinor=%s", variable, version[3]))
	}
	return strings.Join(flags, " "), nil
}
