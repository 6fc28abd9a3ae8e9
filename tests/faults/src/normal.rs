//! The state of a namespace without what differs from one run to the next: times, UIDs, versions, names of pods.
//!
//! Owners are kept as whether they exist: a child whose owner is gone, or that has none, makes another state.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::world::{is_alive, is_ready};

/// The state that these objects of a namespace make.
pub fn state(namespace: &str, objects: &[Value]) -> Value {
    let mut state = Map::new();
    let mut pods: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for object in objects {
        let kind = object["kind"].as_str().unwrap_or_default();
        if kind == "Pod" {
            let revision = object["metadata"]["labels"]["ortolan.dev/revision"].as_str().unwrap_or("none");
            let count = pods.entry(revision.to_owned()).or_default();
            count.0 += u32::from(is_alive(object));
            count.1 += u32::from(is_ready(object));
        } else {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            state.insert(format!("{kind}/{name}"), reduced(kind, object, objects));
        }
    }
    let alive = pods.into_iter().filter(|(_, (alive, _))| *alive > 0);
    let pods: Map<_, _> =
        alive.map(|(revision, (alive, ready))| (revision, json!({"alive": alive, "ready": ready}))).collect();
    state.insert("pods by revision".to_owned(), Value::Object(pods));
    // The only text that names the namespace is the url.
    let text = Value::Object(state).to_string().replace(&format!(".{namespace}."), ".NAMESPACE.");
    serde_json::from_str(&text).unwrap_or_default()
}

fn reduced(kind: &str, object: &Value, all: &[Value]) -> Value {
    let mut reduced = json!({"labels": object["metadata"]["labels"], "spec": object["spec"]});
    if !object["metadata"]["deletionTimestamp"].is_null() {
        reduced["terminating"] = json!(true);
    }
    if kind == "ModelDeployment" {
        reduced["status"] = status(&object["status"]);
        return reduced;
    }
    reduced["owners"] = owners(object, all);
    match kind {
        "ControllerRevision" => {
            reduced["data"] = object["data"].clone();
            reduced["revision"] = object["revision"].clone();
        }
        "ConfigMap" => reduced["data"] = object["data"].clone(),
        "Deployment" => reduced["ready"] = object["status"]["readyReplicas"].clone(),
        _ => {}
    }
    if let Some(spec) = reduced["spec"].as_object_mut() {
        spec.retain(|field, _| field != "clusterIP" && field != "clusterIPs");
    }
    reduced
}

fn owners(object: &Value, all: &[Value]) -> Value {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let told = owners.into_iter().flatten().map(|owner| {
        let exists = all.iter().any(|other| other["kind"] == owner["kind"] && other["metadata"]["uid"] == owner["uid"]);
        format!("{} {}{}", owner["kind"], owner["name"], if exists { "" } else { " is gone" })
    });
    json!(told.collect::<Vec<_>>())
}

/// A status without times and without the numbers of requests.
fn status(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition.as_object_mut().map(|condition| condition.remove("lastTransitionTime"));
    }
    for variant in status["variants"].as_array_mut().into_iter().flatten() {
        for field in ["latency", "throughput"] {
            variant.as_object_mut().map(|variant| variant.remove(field));
        }
    }
    status["scaling"].as_object_mut().map(|scaling| scaling.remove("at"));
    status
}

/// Where two states differ, and how; at most a few places.
pub fn differences(expected: &Value, found: &Value) -> Vec<String> {
    let mut places = Vec::new();
    compare(expected, found, "", &mut places);
    places.truncate(6);
    places
}

fn compare(expected: &Value, found: &Value, path: &str, places: &mut Vec<String>) {
    if let (Value::Object(left), Value::Object(right)) = (expected, found) {
        for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
            let part = |object: &Map<String, Value>| object.get(key).cloned().unwrap_or_default();
            compare(&part(left), &part(right), &format!("{path}.{key}"), places);
        }
    } else if let (Value::Array(left), Value::Array(right)) = (expected, found)
        && left.len() == right.len()
    {
        left.iter().zip(right).for_each(|(left, right)| compare(left, right, &format!("{path}[]"), places));
    } else if expected != found {
        let short = |value: &Value| value.to_string().chars().take(240).collect::<String>();
        places.push(format!("{path}: {} was expected, {} is there", short(expected), short(found)));
    }
}

/// Whether the model is served as its present spec asks, and says so; nothing left to do.
pub fn is_served(state: &Value, generation: Option<i64>) -> bool {
    let models = state.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("ModelDeployment/"));
    let mut served = models.map(|(_, model)| {
        let status = &model["status"];
        let says = |type_: &str| {
            let conditions = status["conditions"].as_array();
            let condition = conditions.into_iter().flatten().find(|condition| condition["type"] == type_);
            condition.and_then(|condition| condition["status"].as_str()).unwrap_or("absent").to_owned()
        };
        status["observedGeneration"].as_i64() == generation
            && says("Ready") == "True"
            && says("Reconciling") == "absent"
            && says("WorkloadAvailable") == "True"
            && status["candidate"].is_null()
    });
    let mut deployments = state.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("Deployment/"));
    // Ports lead by name only while there are servers of more than one kind.
    let services = state.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("Service/"));
    let mut ports = services.flat_map(|(_, service)| service["spec"]["ports"].as_array().into_iter().flatten());
    served.next() == Some(true)
        && ports.all(|port| port["targetPort"].is_number())
        && deployments.all(|(_, deployment)| deployment["ready"] == deployment["spec"]["replicas"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(owner: &str) -> Value {
        json!({"kind": "Service", "metadata": {"name": "m", "uid": "2", "ownerReferences": [
            {"kind": "ModelDeployment", "name": "m", "uid": owner}]}, "spec": {"clusterIP": "10.0.0.1", "ports": []}})
    }

    #[test]
    fn a_child_whose_owner_is_gone_makes_another_state() {
        let model = json!({"kind": "ModelDeployment", "metadata": {"name": "m", "uid": "1"}, "spec": {}, "status": {}});
        let good = state("a", &[model.clone(), child("1")]);
        let orphan = state("a", &[model, child("0")]);
        assert_ne!(good, orphan);
        assert_eq!(differences(&good, &orphan).len(), 1);
    }

    #[test]
    fn times_addresses_and_namespaces_make_no_difference() {
        let at = |namespace: &str, time: &str| {
            let status = json!({"url": format!("http://m.{namespace}.svc"),
                "conditions": [{"type": "Ready", "lastTransitionTime": time}]});
            let model = json!({"kind": "ModelDeployment", "metadata": {"name": "m"}, "spec": {}, "status": status});
            state(namespace, &[model])
        };
        assert_eq!(at("a", "1"), at("b", "2"));
    }
}
