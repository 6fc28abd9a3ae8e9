//! Whether a live object still holds what we rendered.
//!
//! Compared is only what we render: what the API server fills in, or others add elsewhere, is not ours. This is what
//! lets an unchanged world rest without a single call.

use serde_json::Value;

use crate::api::Quantity;

/// The path of the first place at which `live` does not hold what was `rendered`, as in `spec.replicas`.
pub fn first_difference(rendered: &Value, live: &Value) -> Option<String> {
    match (rendered, live) {
        (Value::Object(rendered), Value::Object(live)) => {
            rendered.iter().find_map(|(key, value)| match live.get(key) {
                None if is_empty(value) => None,
                None => Some(key.clone()),
                Some(live) => first_difference(value, live).map(|path| join(key, &path)),
            })
        }
        (Value::Array(rendered), Value::Array(live)) => {
            if rendered.len() > live.len() {
                return Some(format!("[{}]", live.len()));
            }
            let differing = |(index, (rendered, live)): (usize, (&Value, &Value))| {
                first_difference(rendered, live).map(|path| join(&format!("[{index}]"), &path))
            };
            rendered.iter().zip(live).enumerate().find_map(differing)
        }
        (Value::String(rendered), Value::String(live)) if Quantity::same_amount(rendered, live) => None,
        (rendered, live) if rendered == live => None,
        _ => Some(String::new()),
    }
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

fn join(parent: &str, path: &str) -> String {
    if path.is_empty() || path.starts_with('[') { format!("{parent}{path}") } else { format!("{parent}.{path}") }
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
    fn quantities_are_compared_by_their_amount() {
        assert_eq!(first_difference(&json!({"cpu": "1000m"}), &json!({"cpu": "1"})), None);
        assert!(first_difference(&json!({"cpu": "1000m"}), &json!({"cpu": "2"})).is_some());
    }

    #[test]
    fn an_empty_map_may_be_dropped() {
        assert_eq!(first_difference(&json!({"emptyDir": {}, "x": []}), &json!({})), None);
    }
}
