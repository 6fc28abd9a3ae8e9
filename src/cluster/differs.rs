//! Whether a live object still holds what we rendered.
//!
//! Compared is only what we render: what the API server fills in, or others add elsewhere, is not ours. This is what
//! lets an unchanged world rest without a single call. Where an addition would change what we render (a list of plain
//! values, a selector), nothing may be added: server-side apply owns those as a whole. An element that somebody adds to a
//! list of objects (a port, a container) belongs to whoever added it and stays.

use serde_json::Value;

use crate::api::Quantity;

/// The path of the first place at which `live` does not hold what was `rendered`, as in `spec.replicas`.
pub fn first_difference(rendered: &Value, live: &Value) -> Option<String> {
    difference(rendered, live, "")
}

/// `path`: the place inside the object.
fn difference(rendered: &Value, live: &Value, path: &str) -> Option<String> {
    match (rendered, live) {
        (Value::Object(rendered), Value::Object(live)) => {
            let added = || live.keys().find(|key| !rendered.contains_key(*key)).map(|key| join(path, key));
            let changed = rendered.iter().find_map(|(key, value)| match live.get(key) {
                None if is_empty(value) => None,
                None => Some(join(path, key)),
                Some(live) => difference(value, live, &join(path, key)),
            });
            changed.or_else(|| is_whole(path).then(added).flatten())
        }
        (Value::Array(rendered), Value::Array(live)) => {
            let plain = !rendered.iter().any(|element| element.is_object() || element.is_array());
            if rendered.len() > live.len() || ((plain || is_whole(path)) && rendered.len() != live.len()) {
                return Some(format!("{path}[{}]", rendered.len().min(live.len())));
            }
            rendered.iter().enumerate().find_map(|(index, element)| {
                let path = format!("{path}[{index}]");
                counterpart(element, index, live).map_or(Some(path.clone()), |live| difference(element, live, &path))
            })
        }
        (Value::String(rendered), Value::String(live)) if Quantity::same_amount(rendered, live) => None,
        (rendered, live) if rendered == live => None,
        _ => Some(path.to_owned()),
    }
}

/// The element of `live` that is compared with a rendered one: what has a name is found by it, since others may have put theirs
/// in between.
fn counterpart<'a>(rendered: &Value, index: usize, live: &'a [Value]) -> Option<&'a Value> {
    match rendered.get("name") {
        Some(name) => live.iter().find(|live| live.get("name") == Some(name)),
        None => live.get(index),
    }
}

/// What is owned as a whole: selectors, and the rules of a NetworkPolicy, where one more opens what was closed.
fn is_whole(path: &str) -> bool {
    path == "spec.selector"
        || path == "spec.selector.matchLabels"
        || ["spec.podSelector", "spec.ingress", "spec.egress"].iter().any(|whole| path.starts_with(whole))
}

/// What the API server drops when it stores an object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_api_server_adds_is_no_difference() {
        let rendered = json!({"spec": {"replicas": 2, "template": {"a": {}}}, "metadata": {"labels": {"x": "y"}}});
        let live = json!({
            "spec": {"replicas": 2, "paused": false, "template": {"a": {}, "b": 1}},
            "metadata": {"labels": {"x": "y", "z": "w"}, "uid": "1"}, "status": {"replicas": 2},
        });
        assert_eq!(first_difference(&rendered, &live), None);
    }

    #[test]
    fn the_place_of_a_difference_is_named() {
        for (rendered, live, path) in [
            (json!({"spec": {"replicas": 2}}), json!({"spec": {"replicas": 3}}), "spec.replicas"),
            (json!({"a": [{"b": 1}, {"b": 2}]}), json!({"a": [{"b": 1}, {"b": 3}]}), "a[1].b"),
            (json!({"a": [1, 2]}), json!({"a": [1]}), "a[1]"),
            (json!({"a": {"b": 1}}), json!({"a": {}}), "a.b"),
            (json!({"a": "x"}), json!({"a": null}), "a"),
        ] {
            assert_eq!(first_difference(&rendered, &live).as_deref(), Some(path));
        }
    }

    #[test]
    fn nothing_may_be_added_to_what_is_owned_as_a_whole() {
        for (rendered, live, path) in [
            (json!({"args": ["a"]}), json!({"args": ["a", "b"]}), "args[1]"),
            (
                json!({"spec": {"selector": {"a": "b"}}}),
                json!({"spec": {"selector": {"a": "b", "x": "y"}}}),
                "spec.selector.x",
            ),
        ] {
            assert_eq!(first_difference(&rendered, &live).as_deref(), Some(path));
        }
        let (rendered, live) = (json!({"ports": [{"port": 80}]}), json!({"ports": [{"port": 80}, {"port": 81}]}));
        assert_eq!(first_difference(&rendered, &live), None);
    }

    #[test]
    fn what_has_a_name_is_found_among_what_others_added() {
        let rendered = json!({"ports": [{"name": "http", "port": 80}, {"name": "https", "port": 443}]});
        let with = |https: u16| json!({"ports": [{"name": "http", "port": 80}, {"name": "theirs", "port": 9}, {"name": "https", "port": https}]});
        assert_eq!(first_difference(&rendered, &with(443)), None);
        assert_eq!(first_difference(&rendered, &with(444)).as_deref(), Some("ports[1].port"));
        let missing = json!({"ports": [{"name": "http", "port": 80}, {"name": "theirs", "port": 9}]});
        assert_eq!(first_difference(&rendered, &missing).as_deref(), Some("ports[1]"));
    }

    #[test]
    fn nothing_may_be_opened_in_a_network_policy() {
        let rendered =
            json!({"spec": {"podSelector": {"a": "b"}, "ingress": [{"ports": [{"port": 1}], "from": [{}]}]}});
        for (live, path) in [
            (json!({"podSelector": {"a": "b", "x": "y"}}), "spec.podSelector.x"),
            (json!({"ingress": [{"ports": [{"port": 1}], "from": [{}]}, {}]}), "spec.ingress[1]"),
            (json!({"ingress": [{"ports": [{"port": 1}], "from": [{}, {}]}]}), "spec.ingress[0].from[1]"),
            (
                json!({"ingress": [{"ports": [{"port": 1, "endPort": 9}], "from": [{}]}]}),
                "spec.ingress[0].ports[0].endPort",
            ),
        ] {
            let mut changed = rendered.clone();
            changed["spec"].as_object_mut().unwrap().extend(live.as_object().unwrap().clone());
            assert_eq!(first_difference(&rendered, &changed).as_deref(), Some(path));
        }
    }

    #[test]
    fn quantities_are_compared_by_their_amount() {
        assert_eq!(first_difference(&json!({"cpu": "1000m"}), &json!({"cpu": "1"})), None);
        assert!(first_difference(&json!({"cpu": "1000m"}), &json!({"cpu": "2"})).is_some());
    }

    #[test]
    fn an_empty_map_may_be_dropped() {
        assert_eq!(first_difference(&json!({"emptyDir": {}, "x": []}), &json!({})), None);
    }
}
