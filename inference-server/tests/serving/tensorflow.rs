//! TensorFlow Serving's REST protocol, right and wrong.

use axum::Router;
use axum::http::{Request, StatusCode};
use ortolan_server::http;
use serde_json::{Value, json};

use crate::common::{Answer, app, empty_server, expectations, get, send, server};

async fn post(app: &Router, path: &str, body: impl ToString) -> Answer {
    send(app, Request::post(format!("/v1/models/{path}")).body(body.to_string().into()).unwrap()).await
}

async fn answer(app: &Router, path: &str, body: Value) -> Value {
    let answer = post(app, path, &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{body}: {answer:?}");
    answer.json()
}

async fn refused(app: &Router, path: &str, body: Value) -> String {
    let answer = post(app, path, &body).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {answer:?}");
    answer.error()
}

/// Nested lists, row by row.
fn nested(shape: &[usize], data: &[Value]) -> Value {
    match shape {
        [] => data[0].clone(),
        [_] => json!(data),
        [rows, inner @ ..] => {
            (0..*rows).map(|row| nested(inner, &data[row * data.len() / rows..(row + 1) * data.len() / rows])).collect()
        }
    }
}

fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(flat).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

#[tokio::test]
async fn every_model_answers_by_column_what_onnx_runtime_says_in_python() {
    for case in expectations() {
        let name = case["model"].as_str().unwrap();
        let app = app(name).await;
        let inputs: serde_json::Map<String, Value> = case["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|input| {
                let shape: Vec<usize> = serde_json::from_value(input["shape"].clone()).unwrap();
                (input["name"].as_str().unwrap().to_owned(), nested(&shape, input["data"].as_array().unwrap()))
            })
            .collect();
        let only = (inputs.len() == 1).then(|| inputs.values().next().unwrap().clone());
        for inputs in [Some(Value::Object(inputs)), only].into_iter().flatten() {
            let found = answer(&app, &format!("{name}:predict"), json!({"inputs": inputs})).await;
            let expected = case["outputs"].as_array().unwrap();
            for output in expected {
                let found = if expected.len() == 1 {
                    &found["outputs"]
                } else {
                    &found["outputs"][output["name"].as_str().unwrap()]
                };
                let numbers: Vec<f64> = serde_json::from_value(output["data"].clone()).unwrap();
                let found = flat(found);
                assert_eq!(found.len(), numbers.len(), "{name}");
                assert!(found.iter().zip(&numbers).all(|(one, two)| (one - two).abs() < 1e-5), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn instances_are_answered_row_by_row() {
    let mlp = app("mlp").await;
    let rows = vec![vec![0.5; 64], vec![-0.5; 64]];
    let by_row = answer(&mlp, "mlp:predict", json!({"signature_name": "serving_default", "instances": rows})).await;
    let by_column = answer(&mlp, "mlp/versions/1:predict", json!({"inputs": rows})).await;
    assert_eq!(by_row["predictions"].as_array().unwrap().len(), 2);
    assert_eq!(by_row["predictions"], by_column["outputs"]);
    let named: Vec<Value> = rows.iter().map(|row| json!({"x": row})).collect();
    assert_eq!(answer(&mlp, "mlp:predict", json!({"instances": named})).await, by_row);
    // Two inputs, one output.
    let add = app("add").await;
    let instances = json!([{"a": [1, 2, 3], "b": [1, 1, 1]}, {"b": [0, 0, 0], "a": [4, 5, 6]}]);
    let found = answer(&add, "add:predict", json!({"instances": instances})).await;
    assert_eq!(found, json!({"predictions": [[2.0, 3.0, 4.0], [4.0, 5.0, 6.0]]}));
    // One input, two outputs, of which one has a single element for each row.
    let classifier = app("classifier").await;
    let found = answer(&classifier, "classifier:predict", json!({"instances": [[0, 0, 0, 0]]})).await;
    let row = &found["predictions"][0];
    assert_eq!(row["label"], 0);
    assert_eq!(row["probabilities"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn every_data_type_goes_through() {
    let app = app("types").await;
    for (name, data) in [
        ("bool", json!([true, false])),
        ("uint8", json!([0, 255])),
        ("int64", json!([i64::MIN, i64::MAX])),
        ("uint64", json!([0, u64::MAX])),
        ("fp16", json!([0.5, -65504.0])),
        ("bf16", json!([0.5, -2.0])),
        ("fp32", json!([0.5, -2.0])),
        ("fp64", json!([0.1, 1e300])),
        ("bytes", json!(["", "ä"])),
    ] {
        let mut columns = serde_json::Map::new();
        for other in [
            "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "fp16", "bf16", "fp32",
            "fp64", "bytes",
        ] {
            let zero = match other {
                "bool" => json!([[false, false]]),
                "bytes" => json!([["", ""]]),
                _ => json!([[0, 0]]),
            };
            columns.insert(other.to_owned(), if other == name { json!([data]) } else { zero });
        }
        let found = answer(&app, "types:predict", json!({"inputs": columns})).await;
        assert_eq!(found["outputs"][format!("{name}_out")], json!([data]), "{name}");
        let row = answer(&app, "types:predict", json!({"instances": [by_row(&columns)]})).await;
        assert_eq!(row["predictions"][0][format!("{name}_out")], data, "{name}");
        if name == "fp16" {
            columns.insert("fp16".to_owned(), json!([[70_000, 0]]));
            assert!(refused(&app, "types:predict", json!({"inputs": columns})).await.contains("FP16 can hold"));
        }
        columns.insert("bytes".to_owned(), json!([[{"b64": "w6Q="}, "plain"]]));
        if name != "fp16" {
            let found = answer(&app, "types:predict", json!({"inputs": columns})).await;
            assert_eq!(found["outputs"]["bytes_out"], json!([["ä", "plain"]]));
        }
        for (wrong, words) in [("!", "not base64"), ("/w==", "not UTF-8")] {
            columns.insert("bytes".to_owned(), json!([[{"b64": wrong}, "plain"]]));
            let mut only = columns.clone();
            only.insert("fp16".to_owned(), json!([[0, 0]]));
            assert!(refused(&app, "types:predict", json!({"inputs": only})).await.contains(words));
        }
    }
}

fn by_row(columns: &serde_json::Map<String, Value>) -> Value {
    columns.iter().map(|(name, value)| (name.clone(), value[0].clone())).collect::<serde_json::Map<_, _>>().into()
}

#[tokio::test]
async fn wrong_bodies_say_what_was_expected() {
    let add = app("add").await;
    let deep = format!(r#"{{"inputs":{{"a":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(post(&add, "add:predict", deep).await.status, StatusCode::BAD_REQUEST);
    for (body, words) in [
        (json!({}), "neither instances nor inputs"),
        (json!({"instances": [], "inputs": []}), "has both"),
        (json!({"instances": []}), "no instances"),
        (json!({"instances": {}}), "invalid type: map"),
        (json!({"instances": [[1, 2, 3]]}), "each must be named"),
        (json!({"inputs": [[1, 2, 3]]}), "each must be named"),
        (json!({"signature_name": "train", "instances": [1]}), "no signature 'train'"),
        (json!({"instances": [{"a": [1, 2, 3]}]}), "lacks 'b'"),
        (json!({"instances": [{"a": [1, 2, 3], "c": [1]}]}), "no input 'c'; it has 'a', 'b'"),
        (json!({"instances": [{"a": [1, 2, 3], "b": [1, 2, 3]}, {"a": [1, 2, 3]}]}), "1 of 2 instances have 'b'"),
        (json!({"instances": [{"a": [1, 2, 3], "b": [1, 2, 3]}, 5]}), "instance 1 must be an object"),
        (json!({"inputs": {"a": [[1, 2, 3]], "b": [[1, 2]]}}), "'b' must have shape [-1, 3], not [1, 2]"),
        (json!({"inputs": {"a": [[1, 2, 3]], "b": [[1, 2, 3], [1]]}}), "nested exactly"),
        (json!({"inputs": {"a": [1, 2, 3], "b": [[1, 2, 3]]}}), "'a' must have 2 dimensions"),
        (json!({"inputs": {"a": [[1, 2, "x"]], "b": [[1, 2, 3]]}}), "a string is not a number"),
        (json!({"inputs": {"a": [[1, 2, null]], "b": [[1, 2, 3]]}}), "'a': invalid type: null"),
        (json!({"inputs": {"a": [[1, 2, {}]], "b": [[1, 2, 3]]}}), "'a': invalid type: map"),
    ] {
        let error = refused(&add, "add:predict", body.clone()).await;
        assert!(error.contains(words), "{body}: {error}");
    }
    for (body, words) in [("", "the body is empty"), ("[]", "a JSON object"), ("{", "EOF")] {
        let answer = post(&add, "add:predict", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().contains(words), "{body}: {}", answer.error());
    }
    // An answer without rows cannot be given row by row.
    let scalar = app("scalar").await;
    let error = refused(&scalar, "scalar:predict", json!({"instances": [[1, 2], [3, 4]]})).await;
    assert!(error.contains("does not split into 2 rows; ask by column"), "{error}");
    assert_eq!(answer(&scalar, "scalar:predict", json!({"inputs": [[1, 2], [3, 4]]})).await, json!({"outputs": 10.0}));
}

#[tokio::test]
async fn no_rows_are_answered_with_none() {
    let mlp = app("mlp").await;
    assert_eq!(answer(&mlp, "mlp:predict", json!({"inputs": []})).await, json!({"outputs": []}));
}

#[tokio::test]
async fn examples_are_classified_and_regressed() {
    let zipmap = app("zipmap-names").await;
    let body = json!({"examples": [{"x": [0, 0, 0, 0]}, {"x": [1, 0, 0, 0]}]});
    let found = answer(&zipmap, "zipmap-names:classify", body).await;
    assert_eq!(found["results"].as_array().unwrap().len(), 2);
    assert_eq!(found["results"][0][1][0], "green");
    assert!((found["results"][0][1][1].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-6);
    let classifier = app("classifier").await;
    let shared = json!({"context": {"x": [0, 0, 0, 0]}, "examples": [{}, {}]});
    assert_eq!(answer(&classifier, "classifier:classify", shared).await["results"][1][2][0], "2");
    let log = app("log").await;
    for examples in [json!([{"x": 1}, {"x": [1]}]), json!([{"x": [1.0]}, {"x": 1}])] {
        assert_eq!(answer(&log, "log:regress", json!({"examples": examples})).await, json!({"results": [0.0, 0.0]}));
    }
    for (path, body, words) in [
        ("log:regress", json!({}), "missing field `examples`"),
        ("log:regress", json!({"examples": []}), "no examples"),
        ("log:regress", json!({"examples": [{"y": 1}]}), "no input 'y'"),
        ("log:regress", json!({"examples": [{"x": 1}, {}]}), "example 1 lacks 'x'"),
        ("log:regress", json!({"examples": [{}]}), "lacks 'x'"),
    ] {
        let error = refused(&log, path, body.clone()).await;
        assert!(error.contains(words), "{body}: {error}");
    }
    let error = refused(&classifier, "classifier:regress", json!({"examples": [{"x": [0, 0, 0, 0]}]})).await;
    assert!(error.contains("cannot regress"), "{error}");
}

#[tokio::test]
async fn status_and_metadata_are_as_tensorflow_serving_writes_them() {
    let loaded = server("mlp", &[]).await;
    let app = http::app(loaded.clone());
    let status = json!({"error_code": "OK", "error_message": ""});
    let version = json!({"version": "1", "state": "AVAILABLE", "status": status});
    let expected = json!({"name": "mlp", "ready": true, "model_version_status": [version]});
    for path in ["/v1/models/mlp", "/v1/models/mlp/versions/1"] {
        assert_eq!(get(&app, path).await.json(), expected, "{path}");
    }
    for path in ["/v1/models/mlp/metadata", "/v1/models/mlp/versions/1/metadata"] {
        let metadata = get(&app, path).await.json();
        assert_eq!(metadata["model_spec"], json!({"name": "mlp", "signature_name": "", "version": "1"}));
        let signature = &metadata["metadata"]["signature_def"]["signature_def"]["serving_default"];
        assert_eq!(signature["method_name"], "tensorflow/serving/predict");
        let shape = json!({"dim": [{"size": "-1", "name": ""}, {"size": "64", "name": ""}], "unknown_rank": false});
        assert_eq!(signature["inputs"], json!({"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x"}}));
    }
    let empty = http::app(empty_server("mlp", &[]));
    assert_eq!(get(&empty, "/v1/models/mlp").await.json()["model_version_status"][0]["state"], "START");
    assert_eq!(get(&empty, "/v1/models/mlp/metadata").await.status, StatusCode::SERVICE_UNAVAILABLE);
    loaded.drain();
    assert_eq!(get(&app, "/v1/models/mlp").await.json()["model_version_status"][0]["state"], "UNLOADING");
}

#[tokio::test]
async fn verbs_that_are_not_there_are_404_and_the_wrong_method_405() {
    let app = app("mlp").await;
    for path in ["mlp:train", "mlp:", "other:predict", "mlp/versions/2:predict"] {
        assert_eq!(post(&app, path, json!({"instances": [1]})).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let answer = post(&app, "mlp", "{}").await;
    assert_eq!((answer.status, answer.headers["allow"].as_bytes()), (StatusCode::METHOD_NOT_ALLOWED, &b"GET,HEAD"[..]));
    let answer = get(&app, "/v1/models/mlp:predict").await;
    assert_eq!((answer.status, answer.headers["allow"].as_bytes()), (StatusCode::METHOD_NOT_ALLOWED, &b"POST"[..]));
}
