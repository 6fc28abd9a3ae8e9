//! What the tests share: models, servers in this process, and requests to them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use clap::Parser;
use ortolan_server::arguments::{Arguments, Command};
use ortolan_server::config::Config;
use ortolan_server::fetch::{Fetched, Source, Wanted, fetch};
use ortolan_server::load::Plan;
use ortolan_server::serving::Server;
use ortolan_server::{engine, http, load};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tower::ServiceExt;

/// Where the ONNX Runtime library is; a test that cannot find it fails.
pub fn runtime_library() -> PathBuf {
    std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).filter(|path| path.is_file()).expect(
        "these tests need the ONNX Runtime library: run them by make, or export ORT_DYLIB_PATH=\"$(tools/onnxruntime)\" first",
    )
}

/// Serves what stands in for others on this machine, for as long as the test runs; gives its address.
pub async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// The SHA-256 in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// A file beside the models of the tests.
pub fn test_file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)).unwrap()
}

/// A model of the tests.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(format!("{name}.onnx"))
}

/// The settings for a model of the tests, with more flags.
pub fn config(name: &str, flags: &[&str]) -> Config {
    let (path, library) = (model(name), runtime_library());
    let mut line = vec!["ortolan-server", "serve", "--name", name, "--threads", "1"];
    line.extend(["--model", path.to_str().unwrap(), "--onnxruntime", library.to_str().unwrap()]);
    line.extend(flags);
    let Arguments { command: Command::Serve(arguments) } = Arguments::parse_from(line) else {
        panic!("another command")
    };
    Config::try_from(*arguments).unwrap()
}

/// A server that has nothing yet.
pub fn empty_server(name: &str, flags: &[&str]) -> Arc<Server> {
    Arc::new(Server::new(&config(name, flags), Instant::now()))
}

/// A file as the server fetches it.
pub async fn fetched(path: &Path) -> Fetched {
    let wanted = Wanted::anything(Path::new("unused"), 1 << 20, engine::data_files);
    fetch(&Source::File(path.to_owned()), &wanted).await.unwrap()
}

/// A server that has loaded its model.
pub async fn server(name: &str, flags: &[&str]) -> Arc<Server> {
    let config = config(name, flags);
    engine::initialize(&config.onnxruntime).unwrap();
    let server = Arc::new(Server::new(&config, Instant::now()));
    let loaded = load::load(fetched(&model(name)).await, Plan::from(&config), Arc::clone(server.counters())).await;
    server.loaded(loaded.unwrap());
    server
}

/// The REST port of a server that has loaded its model.
pub async fn app(name: &str) -> Router {
    http::app(server(name, &[]).await)
}

/// An answer over REST.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn error(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/json", "{self:?}");
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

pub async fn send(app: &Router, request: Request<Body>) -> Answer {
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    Answer { status: parts.status, headers: parts.headers, body: to_bytes(body, usize::MAX).await.unwrap() }
}

pub async fn get(app: &Router, path: &str) -> Answer {
    send(app, Request::get(path).body(Body::empty()).unwrap()).await
}

pub async fn call(app: &Router, method: Method, path: &str) -> Answer {
    send(app, Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await
}

pub async fn infer(app: &Router, model: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let mut request = Request::post(format!("/v2/models/{model}/infer"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(app, request.body(body.into()).unwrap()).await
}

/// The answers that ONNX Runtime's Python package gave.
pub fn expectations() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/expected.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Numbers are close; everything else is equal.
pub fn assert_close(found: &Value, expected: &Value) {
    let numbers = |value: &Value| -> Vec<f64> {
        value["data"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    for field in ["name", "datatype", "shape"] {
        assert_eq!(found[field], expected[field]);
    }
    let (found, expected) = (numbers(found), numbers(expected));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }
}
