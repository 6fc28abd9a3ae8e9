package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const argoMissing = "Missing"

// The health codes that Argo CD knows; anything else becomes Unknown there.
var argoCodes = []string{"Healthy", "Progressing", "Degraded", "Suspended", argoMissing, "Unknown"}

type argo struct {
	Status, Message string
}

// argoHealth runs a health script as Argo CD does: the same interpreter, only the base and table libraries, a second of
// time, the object as the global `obj`.
func argoHealth(script string, object *unstructured.Unstructured) (argo, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		call := lua.P{Fn: state.NewFunction(open), NRet: 0, Protect: true}
		if err := state.CallByParam(call, lua.LString(name)); err != nil {
			return argo{}, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", toLua(state, object.Object))
	if err := state.DoString(script); err != nil {
		return argo{}, err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return argo{}, fmt.Errorf("it must return a table, but returned a %s", state.Get(-1).Type())
	}
	health := argo{Status: lua.LVAsString(table.RawGetString("status")), Message: lua.LVAsString(table.RawGetString("message"))}
	if !slices.Contains(argoCodes, health.Status) {
		return argo{}, fmt.Errorf("its status must be one of %v, but is %q", argoCodes, health.Status)
	}
	return health, nil
}

func toLua(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, item := range value {
			table.RawSetString(key, toLua(state, item))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range value {
			table.Append(toLua(state, item))
		}
		return table
	case string:
		return lua.LString(value)
	case bool:
		return lua.LBool(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	}
	return lua.LNil
}
