//! Answers that are given again.

use axum::http::StatusCode;
use ortolan_server::http;
use serde_json::{Value, json};

use crate::common::{get, infer, server};

fn add(a: f64) -> String {
    let tensor =
        |name: &str, first: f64| json!({"name": name, "datatype": "FP32", "shape": [1, 3], "data": [first, 2, 3]});
    json!({"inputs": [tensor("a", a), tensor("b", 1.0)]}).to_string()
}

#[tokio::test]
async fn the_same_request_is_run_once_and_others_are_run() {
    let server = server("add", &["--response-cache", "1Mi"]).await;
    let app = http::app(server.clone());
    let ask = async |a: f64| -> Value {
        let answer = infer(&app, "add", &[], add(a)).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.json()["outputs"].clone()
    };
    let first = ask(1.0).await;
    for _ in 0..4 {
        assert_eq!(ask(1.0).await, first);
    }
    assert_ne!(ask(5.0).await, first);
    let stats = server.stats();
    assert_eq!((stats.requests.completed, stats.requests.admitted, stats.rows_arrived), (6, 2, 2));
    let told = get(&app, "/v2/models/add/stats").await.json();
    let told = &told["model_stats"][0];
    assert_eq!((&told["execution_count"], &told["inference_stats"]["success"]["count"]), (&json!(2), &json!(6)));
    for (what, count) in [("cache_hit", 4), ("cache_miss", 2)] {
        assert_eq!(told["inference_stats"][what]["count"], count);
    }
    let page = get(&ortolan_server::ops::app(server), "/metrics").await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    for (outcome, count) in [("hit", 4), ("miss", 2)] {
        let line = page.lines().find(|line| line.contains("cache_lookups") && line.contains(outcome)).unwrap();
        assert!(line.ends_with(&format!(" {count}")), "{line}");
    }
}

#[tokio::test]
async fn without_the_setting_everything_is_run() {
    let server = server("add", &[]).await;
    let app = http::app(server.clone());
    for _ in 0..3 {
        assert_eq!(infer(&app, "add", &[], add(1.0)).await.status, StatusCode::OK);
    }
    assert_eq!(server.counters().executed().batches, 3);
}

#[tokio::test]
async fn errors_are_not_kept() {
    let server = server("gather", &["--response-cache", "1Mi"]).await;
    let app = http::app(server.clone());
    let body = json!({"inputs": [{"name": "i", "datatype": "INT64", "shape": [1], "data": [99]}]}).to_string();
    for _ in 0..2 {
        assert_eq!(infer(&app, "gather", &[], body.clone()).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(server.counters().cache_hits.get().0, 0);
}
