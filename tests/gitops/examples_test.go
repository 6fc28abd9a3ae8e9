package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const fluxFolder = checkout + "/examples/gitops/flux"

// A field that is misspelt is silently nothing to a cluster that prunes it: Flux's own types refuse it.
func TestTheFluxExamplesAreReadByFluxsOwnTypes(t *testing.T) {
	kinds := map[string]func() any{
		"v1/Namespace": func() any { return &corev1.Namespace{} },
		"source.toolkit.fluxcd.io/v1/GitRepository":     func() any { return &sourcev1.GitRepository{} },
		"kustomize.toolkit.fluxcd.io/v1/Kustomization":  func() any { return &kustomizev1.Kustomization{} },
		"helm.toolkit.fluxcd.io/v2/HelmRelease":         func() any { return &helmv2.HelmRelease{} },
		"kustomize.config.k8s.io/v1beta1/Kustomization": nil, // kustomize itself reads these, see tests/e2e
	}
	seen := map[string]bool{}
	for _, path := range yamlFiles(t, fluxFolder) {
		for _, document := range documents(t, path) {
			var meta metav1.TypeMeta
			if err := yaml.Unmarshal(document, &meta); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			kind := meta.APIVersion + "/" + meta.Kind
			make, known := kinds[kind]
			if !known {
				t.Fatalf("%s holds a %s, which this test does not know", path, kind)
			}
			seen[kind] = true
			if make == nil {
				continue
			}
			if err := yaml.UnmarshalStrict(document, make()); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	for kind := range kinds {
		if !seen[kind] {
			t.Errorf("no example holds a %s", kind)
		}
	}
}

func TestTheHealthCheckIsOfModelDeployments(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(checkout, fluxKustomization))
	if err != nil {
		t.Fatal(err)
	}
	var kustomization kustomizev1.Kustomization
	if err := yaml.UnmarshalStrict(text, &kustomization); err != nil {
		t.Fatal(err)
	}
	for _, check := range kustomization.Spec.HealthChecks {
		if check.APIVersion != "ortolan.dev/v1alpha1" || check.Kind != "ModelDeployment" {
			t.Errorf("a health check of %s %s", check.APIVersion, check.Kind)
		}
	}
}

func TestTheConfigMapOfArgoCDHoldsTheScript(t *testing.T) {
	script, err := os.ReadFile(filepath.Join(checkout, luaScript))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(checkout + "/examples/gitops/argocd/health.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var settings corev1.ConfigMap
	if err := yaml.UnmarshalStrict(text, &settings); err != nil {
		t.Fatal(err)
	}
	if settings.Data["resource.customizations.health.ortolan.dev_ModelDeployment"] != string(script) {
		t.Errorf("examples/gitops/argocd/health.yaml does not hold %s as it is", luaScript)
	}
}

func yamlFiles(t *testing.T, folder string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".yaml" {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", folder, len(files), err)
	}
	return files
}

func documents(t *testing.T, path string) [][]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	reader := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	var found [][]byte
	buffer := make([]byte, 1<<20)
	for {
		n, err := reader.Read(buffer)
		if errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		found = append(found, bytes.Clone(buffer[:n]))
	}
}
