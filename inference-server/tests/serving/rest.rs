//! Right requests over REST.

use axum::http::StatusCode;
use ortolan_server::http;
use serde_json::{Value, json};

use crate::common::{app, assert_close, empty_server, expectations, get, infer, server};

const LENGTH: &str = "inference-header-content-length";

#[tokio::test]
async fn every_model_answers_what_onnx_runtime_says_in_python() {
    for case in expectations() {
        let name = case["model"].as_str().unwrap();
        let app = app(name).await;
        let answer = infer(&app, name, &[], json!({"id": "42", "inputs": case["inputs"]}).to_string()).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}: {answer:?}");
        let found = answer.json();
        assert_eq!(
            (&found["model_name"], &found["model_version"], &found["id"]),
            (&json!(name), &json!("1"), &json!("42"))
        );
        let outputs = case["outputs"].as_array().unwrap();
        assert_eq!(found["outputs"].as_array().unwrap().len(), outputs.len());
        for (found, expected) in found["outputs"].as_array().unwrap().iter().zip(outputs) {
            assert_close(found, expected);
        }
    }
}

#[tokio::test]
async fn data_may_be_nested_as_the_shape_says() {
    let app = app("add").await;
    let body = json!({"inputs": [
        {"name": "a", "datatype": "FP32", "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]},
        {"name": "b", "datatype": "FP32", "shape": [2, 3], "data": [10, 20.5, 30, 40, 50, -60e0]},
    ]});
    let answer = infer(&app, "add", &[], body.to_string()).await.json();
    assert_eq!(answer["outputs"][0]["data"], json!([11.0, 22.5, 33.0, 44.0, 55.0, -54.0]));
    assert!(answer.get("id").is_none(), "no id came");
}

#[tokio::test]
async fn tensors_go_in_and_out_in_binary() {
    let app = app("add").await;
    let numbers = |numbers: [f32; 3]| numbers.map(f32::to_le_bytes).concat();
    let head = json!({
        "inputs": [
            {"name": "b", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}},
            {"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]},
        ],
        "outputs": [{"name": "sum", "parameters": {"binary_data": true}}],
    })
    .to_string();
    // Wherever the JSON ends, the numbers behind it may be unaligned.
    for padding in 0..4 {
        let head = format!("{head}{}", " ".repeat(padding));
        let body = [head.as_bytes(), &numbers([0.5, 1.5, 2.5])].concat();
        let answer = infer(&app, "add", &[(LENGTH, &head.len().to_string())], body).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.headers["content-type"], "application/octet-stream");
        let json_length: usize = answer.headers[LENGTH].to_str().unwrap().parse().unwrap();
        let json: Value = serde_json::from_slice(&answer.body[..json_length]).unwrap();
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 12);
        assert!(json["outputs"][0].get("data").is_none());
        assert_eq!(answer.body[json_length..], numbers([1.5, 3.5, 5.5]));
    }
}

#[tokio::test]
async fn all_outputs_are_binary_when_the_request_says_so_but_for_those_that_say_otherwise() {
    let app = app("classifier").await;
    let request = |outputs: Value| {
        json!({"parameters": {"binary_data_output": true}, "outputs": outputs,
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
        .to_string()
    };
    let all = infer(&app, "classifier", &[], request(json!([]))).await;
    let head = all.headers[LENGTH].to_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(all.body.len() - head, 8 + 12, "a label and three probabilities");
    let mixed = json!([{"name": "probabilities"}, {"name": "label", "parameters": {"binary_data": false}}]);
    let mixed = infer(&app, "classifier", &[], request(mixed)).await;
    let head = mixed.headers[LENGTH].to_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(mixed.body.len() - head, 12);
    let json: Value = serde_json::from_slice(&mixed.body[..head]).unwrap();
    assert_eq!(json["outputs"][0]["name"], "probabilities", "outputs come in the order in which they were asked for");
    assert_eq!(json["outputs"][1]["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_body_without_json_is_the_only_input_of_a_model() {
    let app = app("mlp").await;
    let answer = infer(&app, "mlp", &[(LENGTH, "0")], vec![0; 2 * 64 * 4]).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let head = answer.headers[LENGTH].to_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(answer.body.len() - head, 2 * 10 * 4);
    let ragged = infer(&app, "mlp", &[(LENGTH, "0")], vec![0; 100]).await;
    assert!(ragged.error().contains("takes 0 bytes, not 100"), "{}", ragged.error());
    let two_inputs = infer(&crate::common::app("add").await, "add", &[(LENGTH, "0")], vec![0; 12]).await;
    assert!(two_inputs.error().contains("one input"), "{}", two_inputs.error());
}

#[tokio::test]
async fn every_type_goes_through_in_json_and_in_binary() {
    let app = app("types").await;
    let values = [
        ("BOOL", json!([true, false])),
        ("UINT8", json!([0, 255])),
        ("UINT16", json!([0, 65_535])),
        ("UINT32", json!([0, 4_294_967_295_u32])),
        ("UINT64", json!([0, u64::MAX])),
        ("INT8", json!([-128, 127])),
        ("INT16", json!([-32_768, 32_767])),
        ("INT32", json!([i32::MIN, i32::MAX])),
        ("INT64", json!([i64::MIN, i64::MAX])),
        ("FP32", json!([-0.5, 3.402_823_5e38])),
        ("FP64", json!([1e-300, 0.1])),
        ("BYTES", json!(["", "größer 🐦"])),
    ];
    let halves = [("FP16", [0x00, 0x3c, 0x01, 0x80]), ("BF16", [0x80, 0x3f, 0x01, 0x80])];
    let mut inputs: Vec<Value> =
        values.iter().map(|(datatype, data)| input(datatype, &json!({"data": data}))).collect();
    inputs.extend(halves.iter().map(|(datatype, _)| input(datatype, &json!({"parameters": {"binary_data_size": 4}}))));
    let mut outputs: Vec<Value> =
        values.iter().map(|(datatype, _)| json!({"name": format!("{}_out", datatype.to_lowercase())})).collect();
    outputs.extend(
        halves.iter().map(|(datatype, _)| json!({"name": format!("{}_out", datatype.to_lowercase()), "parameters": {"binary_data": true}})),
    );
    let head = json!({"inputs": inputs, "outputs": outputs}).to_string();
    let body = [head.as_bytes(), &halves[0].1, &halves[1].1].concat();
    let answer = infer(&app, "types", &[(LENGTH, &head.len().to_string())], body).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let length = answer.headers[LENGTH].to_str().unwrap().parse::<usize>().unwrap();
    let json: Value = serde_json::from_slice(&answer.body[..length]).unwrap();
    for ((datatype, data), output) in values.iter().zip(json["outputs"].as_array().unwrap()) {
        assert_eq!((&output["data"], &output["datatype"]), (data, &json!(datatype)));
    }
    assert_eq!(answer.body[length..], [halves[0].1, halves[1].1].concat());
}

fn input(datatype: &str, rest: &Value) -> Value {
    let mut input = json!({"name": datatype.to_lowercase(), "datatype": datatype, "shape": [1, 2]});
    input.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    input
}

#[tokio::test]
async fn requests_without_rows_are_answered_without_rows() {
    let app = app("mlp").await;
    for data in [json!({"data": []}), json!({}), json!({"parameters": {"binary_data_size": 0}})] {
        let mut input = json!({"name": "x", "datatype": "FP32", "shape": [0, 64]});
        input.as_object_mut().unwrap().extend(data.as_object().unwrap().clone());
        let answer = infer(&app, "mlp", &[], json!({"inputs": [input]}).to_string()).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.json()["outputs"][0]["shape"], json!([0, 10]));
    }
}

#[tokio::test]
async fn what_is_not_a_number_is_null_in_json_and_itself_in_binary() {
    let app = app("log").await;
    let request = |binary: bool| {
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 1], "data": [-1, 0, 1]}],
            "outputs": [{"name": "y", "parameters": {"binary_data": binary}}]})
        .to_string()
    };
    let json = infer(&app, "log", &[], request(false)).await;
    assert_eq!(json.json()["outputs"][0]["data"], json!([null, null, 0.0]));
    let binary = infer(&app, "log", &[], request(true)).await;
    let tail = &binary.body[binary.body.len() - 12..];
    assert!(f32::from_le_bytes(tail[..4].try_into().unwrap()).is_nan());
    assert!(f32::from_le_bytes(tail[4..8].try_into().unwrap()).is_infinite());
}

#[tokio::test]
async fn parameters_that_mean_nothing_to_us_are_ignored() {
    let app = app("fixed").await;
    let body = json!({"id": null, "parameters": {"priority": 3, "headers": {"a": null}}, "outputs": null,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"content_type": "np"}, "data": [1, 2, 3, 4, 5, 6, 7, 8]}]});
    assert_eq!(infer(&app, "fixed", &[], body.to_string()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn metadata_and_health_are_those_of_the_protocol() {
    let server = server("classifier", &["--revision", "r7"]).await;
    let app = http::app(server);
    assert_eq!(
        get(&app, "/v2").await.json(),
        json!({"name": "ortolan", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data", "classification", "model_configuration", "statistics", "model_repository(index)"]})
    );
    assert_eq!(get(&app, "/v2/health/live").await.json(), json!({"live": true}));
    assert_eq!(get(&app, "/v2/health/ready").await.json(), json!({"ready": true}));
    assert_eq!(get(&app, "/v2/models").await.json(), json!({"models": [{"name": "classifier"}]}));
    let metadata = json!({
        "name": "classifier", "versions": ["r7"], "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}, {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
    });
    for path in ["/v2/models/classifier", "/v2/models/classifier/versions/r7"] {
        assert_eq!(get(&app, path).await.json(), metadata, "{path}");
        assert_eq!(
            get(&app, &format!("{path}/ready")).await.json(),
            json!({"name": "classifier", "ready": true}),
            "{path}"
        );
    }
}

#[tokio::test]
async fn before_the_model_is_loaded_the_server_lives_but_is_not_ready() {
    let server = empty_server("mlp", &[]);
    let app = http::app(server.clone());
    assert_eq!(get(&app, "/v2/health/live").await.status, StatusCode::OK);
    let ready = get(&app, "/v2/health/ready").await;
    assert_eq!((ready.status, ready.json()), (StatusCode::SERVICE_UNAVAILABLE, json!({"ready": false})));
    let model = get(&app, "/v2/models/mlp/ready").await;
    assert_eq!((model.status, model.json()), (StatusCode::SERVICE_UNAVAILABLE, json!({"name": "mlp", "ready": false})));
    let answer = infer(&app, "mlp", &[], "{}").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.error().contains("not ready"));
    assert_eq!(server.stats().requests.shed, 1);
}

#[tokio::test]
async fn a_draining_server_answers_and_asks_clients_to_leave() {
    let server = server("fixed", &[]).await;
    let app = http::app(server.clone());
    let body =
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 8]}]})
            .to_string();
    assert!(!infer(&app, "fixed", &[], body.clone()).await.headers.contains_key("connection"));
    server.drain();
    let answer = infer(&app, "fixed", &[], body).await;
    assert_eq!((answer.status, &answer.headers["connection"]), (StatusCode::OK, &"close".parse().unwrap()));
    assert_eq!(get(&app, "/v2/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn many_clients_at_once_each_get_their_own_rows() {
    let server = server("add", &["--max-batch-size", "8"]).await;
    let app = http::app(server.clone());
    let requests = (0..200_usize).map(|client| {
        let app = app.clone();
        tokio::spawn(async move {
            let rows = 1 + client % 5;
            let numbers: Vec<usize> = (0..rows * 3).map(|number| client * 100 + number).collect();
            let tensor = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [rows, 3], "data": numbers});
            let answer = infer(&app, "add", &[], json!({"inputs": [tensor("a"), tensor("b")]}).to_string()).await;
            let doubled: Vec<f64> = numbers.iter().map(|number| 2.0 * *number as f64).collect();
            assert_eq!(answer.json()["outputs"][0]["data"], json!(doubled));
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap();
    }
    let stats = server.stats();
    assert_eq!((stats.requests.completed, stats.rows_arrived, stats.in_flight), (200, 600, 0));
    assert_eq!(stats.latency.count(), 200);
    assert_eq!(stats.queue_wait.count(), 200);
    assert!(stats.batches.iter().all(|cell| cell.rows <= 8 * cell.count));
}
