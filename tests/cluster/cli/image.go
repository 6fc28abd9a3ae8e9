package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
)

// pauseImage is the name of the image of every pod's first container, and
// pauseArchive the file of the pause part that holds it.
const (
	pauseImage   = "localhost/pause:1"
	pauseArchive = "pause.tar"
)

// buildPauseImage compiles the pause program and makes an image of it.
func buildPauseImage(ctx context.Context, source, into string) error {
	program := filepath.Join(into, "pause")
	compiler := exec.CommandContext(ctx, "gcc", "-Os", "-static", "-s", "-o", program, filepath.Join(source, "pause.c"))
	if output, err := compiler.CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w\n%s", err, output)
	}
	return imageOf(program, pauseImage, filepath.Join(into, pauseArchive))
}

// imageOf makes an image of one static program, as an archive in the format
// of `docker save`: a layer, a configuration, a manifest. That takes no
// container engine.
func imageOf(program, name, archive string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	entry := filepath.Base(program)
	layer, err := tarOf(file{entry, content, 0o755})
	if err != nil {
		return err
	}
	configuration, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/" + entry}, "User": "65535:65535"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}
	image, err := tarOf(file{"layer.tar", layer, 0o644}, file{"config.json", configuration, 0o644}, file{"manifest.json", manifest, 0o644})
	if err != nil {
		return err
	}
	return os.WriteFile(archive, image, 0o644)
}

type file struct {
	name    string
	content []byte
	mode    int64
}

// tarOf sets no times and no owners, so the same files make the same bytes.
func tarOf(files ...file) ([]byte, error) {
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content))}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return archive.Bytes(), nil
}

// loadImages imports image archives into every node that runs.
func (c *cluster) loadImages(ctx context.Context, archives []string) error {
	if len(archives) == 0 {
		return fmt.Errorf("load-image needs the archives to import: %w", errUsage)
	}
	failures := make([]error, len(c.nodes))
	var wait sync.WaitGroup
	for i, n := range c.nodes {
		wait.Go(func() { failures[i] = c.loadImagesInto(ctx, n, archives) })
	}
	wait.Wait()
	return errors.Join(failures...)
}

func (c *cluster) loadImagesInto(ctx context.Context, n node, archives []string) error {
	for _, archive := range archives {
		command := exec.CommandContext(ctx, c.folders.program(runtimePart, "ctr"),
			"--address", c.containerdSocket(n), "--namespace", "k8s.io", "images", "import", archive)
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: cannot import %s: %w\n%s", n.name, archive, err, bytes.TrimSpace(output))
		}
	}
	return nil
}
