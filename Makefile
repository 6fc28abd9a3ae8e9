# What a person and CI call. Everything that is built or fetched goes into a cache outside the checkout.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export ORTOLAN_CACHE ?= $(HOME)/.cache/ortolan
export CARGO_TARGET_DIR ?= $(ORTOLAN_CACHE)/target

# The Python packages of ONNX Runtime collect what they see, too.
export ORT_DISABLE_TELEMETRY := 1

# Tests of the server load the real ONNX Runtime.
onnxruntime = export ORT_DYLIB_PATH="$$(tools/onnxruntime)"

.PHONY: help
help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: ## A real model on a real Kubernetes, on this machine (CLUSTER=current: on the cluster of your kube context)
	@demo/up

.PHONY: demo-down
demo-down: ## Takes the demo away again
	@demo/down

.PHONY: test
test: check fuzz-test clients-test chart-test gitops-test docker-test faults-test scale-test cluster-test e2e ## Everything that proves the project

.PHONY: check
check: setup ## Format, lints, licences, generated files, unit tests
	cargo fmt --all --check
	shellcheck $$(git ls-files | xargs grep -lE '^#!.*(bash|/bin/sh)')
	cargo clippy --workspace --all-targets --locked -- -D warnings
	tools/deny
	$(onnxruntime); cargo test --workspace --locked

.PHONY: clients-test
clients-test: setup ## Clients that people have, against the inference server (ARGS: for pytest)
	tests/clients/run $(ARGS)

.PHONY: chart-test
chart-test: setup ## The Helm chart, without a cluster
	tests/chart/run

.PHONY: docker-test
docker-test: setup ## The images with a real Docker engine
	tests/docker/run $(ARGS)

.PHONY: fuzz-test
fuzz-test: setup ## Hostile requests and model files, by libFuzzer (ARGS: seconds for each target)
	tests/fuzz/run $(ARGS)

.PHONY: gitops-test
gitops-test: setup ## What Flux and Argo CD make of models, without a cluster
	tests/gitops/run

.PHONY: cluster-test
cluster-test: setup ## The test cluster keeps its promises
	tests/cluster/selftest

.PHONY: scale-test
scale-test: setup ## Some hundred models on one operator: counts of calls, writes and bytes
	tests/scale/run

.PHONY: bench
bench: speed-bench scale-bench ## All that is measured, about an hour and a quarter; the tables go into docs/

.PHONY: speed-bench
speed-bench: setup ## The inference server beside ONNX Runtime alone and other servers, about half an hour; the tables go into docs/server-performance.md
	tests/speed/run --report docs/server-performance.md

.PHONY: scale-bench
scale-bench: setup ## Ten thousand models on one operator, about half an hour; the table goes into docs/performance.md
	tests/scale/run --models 10000 --namespaces 20 --edits 300 --rest 120 --limit 1800 --figures --report docs/performance.md

.PHONY: faults-test
faults-test: setup ## Nothing is lost when the operator dies or the API server misbehaves (ARGS: for the program)
	tests/faults/run $(ARGS)

.PHONY: e2e
e2e: setup ## The whole on a real cluster (ARGS: for pytest)
	tests/e2e/run $(ARGS)

.PHONY: chaos-test
chaos-test: setup ## Whatever dies, models go on being served (about 9 minutes, not part of test)
	tests/e2e/run -m chaos $(ARGS)

.PHONY: images
images: setup ## Container images, and their sizes
	images/build all

.PHONY: generate
generate: ## Writes generated files anew
	cargo run --quiet --package ortolan -- crd > crds/ortolan.dev_modeldeployments.yaml
	cp crds/ortolan.dev_*.yaml charts/ortolan/files/crds/
	cp dashboards/*.json charts/ortolan/files/dashboards/
	tools/chart-readme
	tools/deploy > deploy/ortolan.yaml

.PHONY: examples
examples: ## Trains the examples' models anew
	"$$(tools/venv examples/digits/requirements.txt)/python" examples/digits/train.py

.PHONY: setup
setup:
	@tools/setup
	@tools/checkout
