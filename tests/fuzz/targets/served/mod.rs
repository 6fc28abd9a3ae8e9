//! A server in this process, with a real model in ONNX Runtime.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use clap::Parser;
use http_body_util::BodyExt;
use ortolan_server::arguments::{Arguments, Command};
use ortolan_server::config::Config;
use ortolan_server::fetch::{Source, Wanted, fetch};
use ortolan_server::load::Plan;
use ortolan_server::serving::Server;
use ortolan_server::{engine, load};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

/// Small enough that a wrong count of bytes is noticed.
const MOST_BYTES: &str = "64KiB";

/// A port of a server, and what runs it.
pub struct Port {
    runtime: Runtime,
    app: Router,
}

impl Port {
    /// The port that `app` makes of a server with a model of the inference server's tests.
    pub fn new(model: &str, app: impl FnOnce(Arc<Server>) -> Router) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let app = runtime.block_on(async { app(server(model).await) });
        Self { runtime, app }
    }

    /// Sends a request, and waits for all of its answer: head, body and trailers.
    pub fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Bytes, Option<HeaderMap>) {
        self.runtime.block_on(async {
            let answer = self.app.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
            let (parts, body) = answer.into_parts();
            let body = body.collect().await.expect("answers are complete");
            let trailers = body.trailers().cloned();
            (parts.status, parts.headers, body.to_bytes(), trailers)
        })
    }
}

async fn server(model: &str) -> Arc<Server> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../inference-server/tests/models");
    let file = models.join(format!("{model}.onnx"));
    let library = std::env::var("ORT_DYLIB_PATH").expect("ORT_DYLIB_PATH names ONNX Runtime's library");
    let path = file.to_str().expect("a path in UTF-8");
    let line = ["ortolan-server", "serve", "--name", "m", "--model", path, "--onnxruntime", &library, "--threads", "1"];
    let line = line.into_iter().chain(["--max-request-bytes", MOST_BYTES]);
    let Arguments { command: Command::Serve(arguments) } = Arguments::parse_from(line) else {
        panic!("another command")
    };
    let config = Config::try_from(*arguments).expect("good settings");
    engine::initialize(&config.onnxruntime).expect("the runtime");
    let server = Arc::new(Server::new(&config, Instant::now()));
    let wanted = Wanted::anything(Path::new("unused"), 1 << 20, engine::data_files);
    let fetched = fetch(&Source::File(file), &wanted).await.expect("a file");
    let counters = Arc::clone(server.counters());
    server.loaded(load::load(fetched, Plan::from(&config), counters).await.expect("a model"));
    server
}
