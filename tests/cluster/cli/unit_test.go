package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestARunFolderTooLongForSocketsIsRefused(t *testing.T) {
	t.Setenv("ORTOLAN_CLUSTER_SOURCE", "/source")
	t.Setenv("ORTOLAN_CACHE", "/cache")
	t.Setenv("ORTOLAN_CLUSTER_DIR", "/"+strings.Repeat("x", 70))
	if _, err := findFolders(); err != nil {
		t.Errorf("a path of 71 bytes is refused: %v", err)
	}
	t.Setenv("ORTOLAN_CLUSTER_DIR", "/"+strings.Repeat("x", 80))
	if _, err := findFolders(); err == nil || !strings.Contains(err.Error(), "7 bytes too long") {
		t.Errorf("a path of 81 bytes gives: %v", err)
	}
}

func TestAReusedProcessIDIsNotTakenForTheComponent(t *testing.T) {
	stat, err := readStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !(process{pid: os.Getpid(), startTime: stat.startTime}).alive() {
		t.Error("the process itself is not seen")
	}
	if (process{pid: os.Getpid(), startTime: "1"}).alive() {
		t.Error("a process with another start time is taken for it")
	}
}

func TestTheHashOfAPartFollowsItsFiles(t *testing.T) {
	source := t.TempDir()
	path := filepath.Join(source, "main.go")
	write := func(content string) string {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return part{name: "p", source: "."}.hash(source)
	}
	one, two, again := write("a"), write("b"), write("a")
	if one == two || one != again {
		t.Errorf("the hashes are %s, %s, %s", one, two, again)
	}
}

func TestOnlyOneCommandHoldsTheLock(t *testing.T) {
	c := newCluster(folders{run: filepath.Join(t.TempDir(), "run")})
	held, err := c.lock(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.lock(t.Context(), false); !errors.Is(err, errBusy) {
		t.Errorf("a second lock gives: %v", err)
	}
	// `down` removes the folder while it holds the lock.
	if err := os.RemoveAll(c.folders.run); err != nil {
		t.Fatal(err)
	}
	fresh, err := c.lock(t.Context(), false)
	if err != nil {
		t.Fatalf("the next cluster is locked out: %v", err)
	}
	fresh.Close()
	held.Close()
}

func TestAnImageHoldsItsProgram(t *testing.T) {
	folder := t.TempDir()
	program, archive := filepath.Join(folder, "program"), filepath.Join(folder, "image.tar")
	if err := os.WriteFile(program, []byte("content"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := imageOf(program, "localhost/test:1", archive); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	layer := fileIn(t, image, "layer.tar")
	if content := fileIn(t, layer, "program"); string(content) != "content" {
		t.Errorf("the layer's program is %q", content)
	}
	if manifest := fileIn(t, image, "manifest.json"); !bytes.Contains(manifest, []byte(`"localhost/test:1"`)) {
		t.Errorf("the manifest is %s", manifest)
	}
}

func fileIn(t *testing.T, archive []byte, name string) []byte {
	t.Helper()
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if header.Name == name {
			content, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			return content
		}
	}
}
