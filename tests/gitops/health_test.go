package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const checkout = "../.."

// What every tool must say of an object in each state. The files in fixtures/ were taken from a cluster by
// tests/e2e/test_gitops.py (CAPTURE=1) and are marked where they were not, because the state cannot be made there.
var states = []struct{ fixture, kstatus, argo, words string }{
	{"new", "InProgress", "Progressing", "not carried out this change yet"},
	{"no-status", "Current", "Progressing", "not carried out this change yet"},
	{"starting", "InProgress", "Progressing", "Starting: 0 of 2 servers answer"},
	{"healthy", "Current", "Healthy", "Serving: requests are answered"},
	{"scaling-up-by-load", "Current", "Healthy", "Serving: requests are answered"},
	{"stale-generation", "InProgress", "Progressing", "not carried out this change yet"},
	{"rolling-out", "InProgress", "Progressing", "RollingOut: revision "},
	{"candidate-stalled-beside-stable", "Failed", "Degraded", "ModelInvalid: revision "},
	{"degraded", "Failed", "Degraded", "SourceNotFound: revision "},
	{"not-answering", "InProgress", "Degraded", "Starting: no server answers yet"},
	{"invalid-spec", "Failed", "Degraded", "InvalidSpec: spec.model.uri must be "},
	{"idle", "Current", "Healthy", "Idle: "},
	{"terminating", "Terminating", "Progressing", "being deleted"},
}

// Pairs of verdicts that mean the same. Two are not equal: a model that stopped answering is an alarm in Argo CD, and
// still expected to come back by kstatus, which has no other word; an object that no API server has filled in is
// current for kstatus, which is why the schema has a default for `status`.
var samePairs = map[[2]string]bool{
	{"InProgress", "Progressing"}: true, {"Current", "Healthy"}: true, {"Failed", "Degraded"}: true,
	{"Terminating", "Progressing"}: true, {"NotFound", "Missing"}: true,
}
var otherPairs = map[string][2]string{
	"not-answering": {"InProgress", "Degraded"}, "no-status": {"Current", "Progressing"},
}

func judgeOf(t *testing.T) *judge {
	t.Helper()
	judge, err := newJudge(filepath.Join(checkout, luaScript), filepath.Join(checkout, fluxKustomization))
	if err != nil {
		t.Fatal(err)
	}
	return judge
}

func fixture(t *testing.T, name string) *unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("fixtures", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(raw); err != nil {
		t.Fatal(err)
	}
	return object
}

func TestEveryToolUnderstandsEveryState(t *testing.T) {
	judge := judgeOf(t)
	for _, state := range states {
		t.Run(state.fixture, func(t *testing.T) {
			judged, err := judge.all(fixture(t, state.fixture))
			if err != nil {
				t.Fatal(err)
			}
			if judged.KStatus != state.kstatus || judged.Argo != state.argo {
				t.Errorf("kstatus %s (%s), Argo CD %s (%s); expected %s, %s",
					judged.KStatus, judged.KStatusMessage, judged.Argo, judged.ArgoMessage, state.kstatus, state.argo)
			}
			if judged.FluxStatus != judged.KStatus {
				t.Errorf("Flux's kstatus says %s, the original %s", judged.FluxStatus, judged.KStatus)
			}
			if !strings.Contains(judged.ArgoMessage, state.words) {
				t.Errorf("the message is %q, expected words about %q", judged.ArgoMessage, state.words)
			}
			pair := [2]string{judged.KStatus, judged.Argo}
			if !samePairs[pair] && otherPairs[state.fixture] != pair {
				t.Errorf("%v are different verdicts", pair)
			}
		})
	}
}

func TestTheExpressionsOfTheExampleSayWhatKstatusSays(t *testing.T) {
	judge := judgeOf(t)
	for _, state := range states {
		// An object that is being deleted is not asked about any more; one without status does not exist.
		if state.fixture == "terminating" || state.fixture == "no-status" {
			continue
		}
		judged, err := judge.all(fixture(t, state.fixture))
		if err != nil {
			t.Fatal(err)
		}
		if judged.FluxExpression != judged.KStatus {
			t.Errorf("%s: the expressions say %s, kstatus %s", state.fixture, judged.FluxExpression, judged.KStatus)
		}
	}
}

// A spec that has changed is never taken for one that is carried out, whatever the status says.
func TestNoStateIsCurrentOrFailedForAnotherGeneration(t *testing.T) {
	judge := judgeOf(t)
	for _, state := range states {
		object := fixture(t, state.fixture)
		if state.fixture == "no-status" || state.fixture == "terminating" {
			continue
		}
		object.SetGeneration(object.GetGeneration() + 1)
		judged, err := judge.all(object)
		if err != nil {
			t.Fatal(err)
		}
		if judged.KStatus != "InProgress" || judged.Argo != "Progressing" || judged.FluxExpression != "InProgress" {
			t.Errorf("%s with a newer generation: %+v", state.fixture, judged)
		}
	}
}

func TestAStreamOfEventsBecomesALineEach(t *testing.T) {
	healthy, err := fixture(t, "healthy").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	stream := `{"type":"ADDED","object":` + string(healthy) + `}{"type":"DELETED","object":` + string(healthy) + `}` + string(healthy)
	var out bytes.Buffer
	if err := run(checkout, strings.NewReader(stream), &out); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		var answer answer
		if err := json.Unmarshal([]byte(line), &answer); err != nil {
			t.Fatal(err)
		}
		seen = append(seen, answer.Event+" "+answer.Judged.KStatus+" "+answer.Judged.Argo)
	}
	expected := []string{"ADDED Current Healthy", "DELETED NotFound Missing", " Current Healthy"}
	if strings.Join(seen, ", ") != strings.Join(expected, ", ") {
		t.Errorf("%q, expected %q", seen, expected)
	}
}
