// Tells what GitOps tools make of ModelDeployments: Flux by kstatus and by the health check expressions of our example,
// Argo CD by our Lua script, each with the library that the tool itself uses.
//
//	kubectl get modeldeployments --watch --output-watch-events --output json | gitops-health -root CHECKOUT
//
// Reads a stream of watch events, or of objects, from standard input and writes one JSON line for each.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// The files, below the checkout, that hold what users copy.
const (
	luaScript         = "docs/gitops/argocd-health.lua"
	fluxKustomization = "examples/gitops/flux/models.yaml"
)

// answer is one line of the output.
type answer struct {
	Event  string         `json:"event,omitempty"`
	Judged judgement      `json:"judged"`
	Object map[string]any `json:"object"`
}

func main() {
	root := flag.String("root", ".", "the checkout that holds the Lua script and the Flux example")
	flag.Parse()
	if err := run(*root, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gitops-health:", err)
		os.Exit(1)
	}
}

func run(root string, in io.Reader, out io.Writer) error {
	judge, err := newJudge(filepath.Join(root, luaScript), filepath.Join(root, fluxKustomization))
	if err != nil {
		return err
	}
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the input is not a stream of JSON objects: %w", err)
		}
		event, object, err := parse(raw)
		if err != nil {
			return err
		}
		judged, err := judge.all(object)
		if err != nil {
			return err
		}
		if event == "DELETED" {
			// What a poller is answered from now on; kstatus has no function for it, its readers have this constant.
			judged.KStatus, judged.FluxStatus, judged.FluxExpression = notFound, notFound, notFound
			judged.Argo = argoMissing
		}
		if err := encoder.Encode(answer{event, judged, object.Object}); err != nil {
			return err
		}
	}
}

// parse takes a watch event apart; an object by itself is an event without a type.
func parse(raw []byte) (string, *unstructured.Unstructured, error) {
	var event struct {
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	if err := json.Unmarshal(raw, &event); err != nil {
		return "", nil, err
	}
	if event.Object != nil {
		raw = event.Object
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(raw); err != nil {
		return "", nil, err
	}
	return event.Type, object, nil
}
