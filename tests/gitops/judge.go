package main

import (
	"context"
	"fmt"
	"os"

	fluxstatus "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kstatus "sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

const notFound = string(kstatus.NotFoundStatus)

// judgement is what each tool makes of one object.
type judgement struct {
	// KStatus is by sigs.k8s.io/cli-utils.
	KStatus string `json:"kstatus"`
	// FluxStatus is by Flux's own copy of it, for `healthChecks` and `wait`.
	FluxStatus string `json:"fluxStatus"`
	// FluxExpression is by the `healthCheckExprs` of the example.
	FluxExpression string `json:"fluxExpression"`
	Argo           string `json:"argo"`
	// Messages of the first and the last.
	KStatusMessage string `json:"kstatusMessage"`
	ArgoMessage    string `json:"argoMessage"`
}

type judge struct {
	lua         string
	expressions *cel.StatusEvaluator
}

func newJudge(luaPath, kustomizationPath string) (*judge, error) {
	lua, err := os.ReadFile(luaPath)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(kustomizationPath)
	if err != nil {
		return nil, err
	}
	var kustomization kustomizev1.Kustomization
	if err := yaml.UnmarshalStrict(text, &kustomization); err != nil {
		return nil, fmt.Errorf("%s: %w", kustomizationPath, err)
	}
	checks := kustomization.Spec.HealthCheckExprs
	if len(checks) != 1 {
		return nil, fmt.Errorf("%s must hold one of healthCheckExprs, but holds %d", kustomizationPath, len(checks))
	}
	expressions, err := cel.NewStatusEvaluator(&checks[0].HealthCheckExpressions)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kustomizationPath, err)
	}
	return &judge{string(lua), expressions}, nil
}

func (j *judge) all(object *unstructured.Unstructured) (judgement, error) {
	general, err := kstatus.Compute(object)
	if err != nil {
		return judgement{}, fmt.Errorf("kstatus: %w", err)
	}
	flux, err := fluxstatus.Compute(object)
	if err != nil {
		return judgement{}, fmt.Errorf("kstatus of Flux: %w", err)
	}
	// An object without status is an error to an expression about it, which is no reason to end.
	expression := "Error"
	if evaluated, err := j.expressions.Evaluate(context.Background(), object); err == nil {
		expression = string(evaluated.Status)
	}
	argo, err := argoHealth(j.lua, object)
	if err != nil {
		return judgement{}, fmt.Errorf("the Lua script: %w", err)
	}
	return judgement{
		KStatus: string(general.Status), KStatusMessage: general.Message,
		FluxStatus: string(flux.Status), FluxExpression: expression,
		Argo: argo.Status, ArgoMessage: argo.Message,
	}, nil
}
