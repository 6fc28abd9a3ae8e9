//! Several batches of one model at once, on the real runtime.

use std::sync::Arc;

use axum::http::StatusCode;
use ortolan_server::load::Plan;
use ortolan_server::stats::Counters;
use ortolan_server::{engine, http, load, ops};
use serde_json::{Value, json};

use crate::common::{assert_close, config, empty_server, expectations, fetched, get, infer, model, server};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_model_answers_many_at_once_as_it_answers_one() {
    for case in expectations() {
        let name = case["model"].as_str().unwrap().to_owned();
        let app = http::app(server(&name, &["--instances", "3"]).await);
        let expected = Arc::new(case["outputs"].as_array().unwrap().clone());
        let body = json!({"inputs": case["inputs"]}).to_string();
        let clients = (0..16).map(|_| {
            let (app, name, body, expected) = (app.clone(), name.clone(), body.clone(), Arc::clone(&expected));
            tokio::spawn(async move {
                for _ in 0..10 {
                    let answer = infer(&app, &name, &[], body.clone()).await;
                    assert_eq!(answer.status, StatusCode::OK, "{name}: {answer:?}");
                    for (found, expected) in answer.json()["outputs"].as_array().unwrap().iter().zip(&*expected) {
                        assert_close(found, expected);
                    }
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_number_is_told_wherever_somebody_may_look() {
    let server = server("mlp", &["--instances", "2"]).await;
    let told = get(&http::app(server.clone()), "/v2/models/mlp/config").await.json();
    assert_eq!(told["instance_group"][0]["count"], 2);
    let operations = ops::app(server);
    let stats = get(&operations, "/stats").await.json();
    assert_eq!((&stats["instances"], stats.get("autotune")), (&json!(2), None));
    let metrics = get(&operations, "/metrics").await.body;
    assert!(String::from_utf8_lossy(&metrics).contains("ortolan_server_instances{model=\"mlp\",version=\"1\"} 2"));
}

#[tokio::test]
async fn what_is_best_is_measured_where_that_is_wanted() {
    let (name, config) = ("mlp", config("mlp", &[]));
    engine::initialize(&config.onnxruntime).unwrap();
    let plan = Plan { autotuned: Some(2), ..Plan::from(&config) };
    let loaded = load::load(fetched(&model(name)).await, plan, Arc::new(Counters::default())).await.unwrap();
    let server = empty_server(name, &[]);
    server.loaded(loaded);
    let stats = get(&ops::app(server), "/stats").await.json();
    let trials = stats["autotune"].as_array().unwrap();
    let ways: Vec<_> = trials.iter().map(|trial| (trial["instances"].clone(), trial["threads"].clone())).collect();
    assert_eq!(ways, [(json!(1), json!(2)), (json!(2), json!(1))]);
    assert!(trials.iter().all(|trial| trial["rowsPerSecond"].as_f64().unwrap() > 0.0));
    let chosen: Vec<&Value> = trials.iter().filter(|trial| trial["isChosen"] == true).collect();
    assert_eq!(chosen.len(), 1);
    assert_eq!(chosen[0]["instances"], stats["instances"]);
}
