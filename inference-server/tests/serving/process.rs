//! The real program: started, asked, stopped under load, and started with models that cannot be served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ortolan_protocol::failure::FailureReason;
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient;
use ortolan_protocol::stats::Phase;
use ortolan_server::memory;
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::json;

use crate::common::model;
use crate::program::{PATIENCE, Program, add_model, body, client, message};
use crate::sources;

/// What the clients of a test share.
#[derive(Default)]
struct Load {
    answered: AtomicUsize,
    goodbyes: AtomicUsize,
    is_over: AtomicBool,
}

impl Load {
    async fn rest(self: Arc<Self>, url: String) {
        let client = client();
        while !self.is_over.load(Ordering::SeqCst) {
            let response = client.post(&url).body(body()).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            self.goodbyes.fetch_add(usize::from(response.headers().contains_key("connection")), Ordering::SeqCst);
            let answer: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
            assert_eq!(answer["outputs"][0]["data"], json!([2.0, 4.0, 6.0]));
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn grpc(self: Arc<Self>, address: String) {
        let mut client =
            GrpcInferenceServiceClient::new(tonic::transport::Endpoint::new(address).unwrap().connect().await.unwrap());
        while !self.is_over.load(Ordering::SeqCst) {
            let answer = client.model_infer(message()).await.unwrap().into_inner();
            assert_eq!(*answer.raw_output_contents[0], [2.0_f32, 4.0, 6.0].map(f32::to_le_bytes).concat());
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn until(&self, answered: usize) {
        let start = Instant::now();
        while self.answered.load(Ordering::SeqCst) < answered {
            assert!(start.elapsed() < PATIENCE, "the clients are not answered");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_under_load_it_loses_no_request() {
    let mut program = Program::start(&add_model(), &["--drain-delay", "1s"]).ready().await;
    let load = Arc::new(Load::default());
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(tokio::spawn(
            Arc::clone(&load).rest(format!("http://127.0.0.1:{}/v2/models/add/infer", program.http)),
        ));
        clients.push(tokio::spawn(Arc::clone(&load).grpc(format!("http://127.0.0.1:{}", program.grpc))));
    }
    load.until(200).await;
    program.signal(Signal::TERM);
    program.until("/readyz", StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(program.stats().await.phase, Phase::Draining);
    // Clients learn late that a server leaves: until then they are answered.
    load.until(load.answered.load(Ordering::SeqCst) + 200).await;
    load.is_over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    assert!(load.goodbyes.load(Ordering::SeqCst) > 0, "answers over HTTP/1.1 ask the client to leave");
    let stats = program.stats().await;
    assert_eq!(stats.requests.completed, load.answered.load(Ordering::SeqCst) as u64);
    assert_eq!(stats.requests.arrived, stats.requests.completed);
    assert_eq!(program.exit().await.code(), Some(0), "{}", program.said);
    assert!(program.said.contains("all requests are answered"), "{}", program.said);
}

#[tokio::test]
async fn a_request_that_was_begun_before_the_ports_closed_is_finished() {
    let mut program = Program::start(&add_model(), &["--drain-delay", "0s"]).ready().await;
    let mut stream = TcpStream::connect(("127.0.0.1", program.http)).unwrap();
    let (first, rest) = (&body()[..20], &body()[20..]);
    write!(stream, "POST /v2/models/add/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{first}", body().len())
        .unwrap();
    while program.stats().await.requests.arrived == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    program.signal(Signal::TERM);
    while TcpStream::connect(("127.0.0.1", program.http)).is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stream.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[2.0,4.0,6.0]"), "{answer}");
    assert_eq!(program.exit().await.code(), Some(0), "{}", program.said);
}

#[tokio::test]
async fn requests_that_came_just_before_the_ports_closed_are_answered() {
    let mut program = Program::start(&add_model(), &["--drain-delay", "0s"]).ready().await;
    let request =
        format!("POST /v2/models/add/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{}", body().len(), body());
    let begin = || {
        let mut stream = TcpStream::connect(("127.0.0.1", program.http)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let streams: Vec<TcpStream> = (0..50).map(|_| begin()).collect();
    program.signal(Signal::TERM);
    for mut stream in streams {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(program.exit().await.code(), Some(0), "{}", program.said);
}

#[tokio::test]
async fn clients_that_say_nothing_or_speak_too_slowly_are_sent_away() {
    let program = Program::start(&add_model(), &["--request-head-timeout", "50ms"]).ready().await;
    for (port, words) in [
        (program.http, ""),
        (program.grpc, ""),
        (program.ops, ""),
        // It may become a POST, or HTTP/2.
        (program.http, "P"),
        (program.ops, "P"),
        (program.http, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (program.grpc, "PRI"),
        (program.grpc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (program.http, "POST /v2/models/add/infer HTTP/1.1\r\nhos"),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(words.as_bytes()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        // What was said and never read makes the end of the connection a reset.
        if let Err(error) = stream.read_to_string(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{port} {words:?}");
        }
        assert!(!answer.contains("200"), "{answer}");
    }
}

#[tokio::test]
async fn clients_that_have_not_asked_for_anything_do_not_hold_up_a_drain() {
    let mut program = Program::start(&add_model(), &["--drain-delay", "0s", "--drain-timeout", "10m"]).ready().await;
    let settings = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    let beginnings = [
        (program.http, ""),
        (program.http, "P"),
        (program.http, "POST /v2/models/add/infer HTTP/1.1\r\nhos"),
        (program.http, settings),
        (program.grpc, "PRI"),
        (program.grpc, settings),
    ];
    let _streams = beginnings.map(|(port, words)| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(words.as_bytes()).unwrap();
        stream
    });
    program.signal(Signal::TERM);
    assert_eq!(program.exit().await.code(), Some(0), "{}", program.said);
    assert!(program.said.contains("all requests are answered"), "{}", program.said);
}

#[tokio::test]
async fn what_killed_servers_left_in_the_cache_folder_is_removed_at_the_start() {
    let cache = tempfile::tempdir().unwrap();
    let names = [".part-aB3dE6".to_owned(), format!("{}.onnx", "0".repeat(64)), "kept.onnx".to_owned()];
    let files = names.map(|name| cache.path().join(name));
    for file in &files {
        std::fs::write(file, "x").unwrap();
    }
    let _program = Program::start(&add_model(), &["--cache-dir", cache.path().to_str().unwrap()]).ready().await;
    assert_eq!(files.map(|file| file.exists()), [false, false, true]);
}

#[tokio::test]
async fn told_to_stop_twice_it_leaves_at_once() {
    let mut program = Program::start(&add_model(), &["--drain-delay", "10m"]).ready().await;
    program.signal(Signal::TERM);
    program.until("/readyz", StatusCode::SERVICE_UNAVAILABLE).await;
    program.signal(Signal::INT);
    assert_eq!(program.exit().await.code(), Some(130));
}

#[tokio::test]
async fn a_client_that_never_finishes_is_not_waited_for_longer_than_the_timeout() {
    let mut program = Program::start(&add_model(), &["--drain-delay", "0s", "--drain-timeout", "100ms"]).ready().await;
    let mut stream = TcpStream::connect(("127.0.0.1", program.http)).unwrap();
    write!(stream, "POST /v2/models/add/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n").unwrap();
    while program.stats().await.requests.arrived == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    program.signal(Signal::TERM);
    assert_eq!(program.exit().await.code(), Some(0));
    assert!(program.said.contains("unfinished"), "{}", program.said);
}

#[tokio::test]
async fn the_ports_answer_while_the_model_is_fetched_and_the_wait_can_be_ended() {
    // A source that takes the connection and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut program = Program::start(&format!("http://{}/m.onnx", silent.local_addr().unwrap()), &[]).listening();
    assert_eq!(program.ops("/healthz").await.0, StatusCode::OK);
    assert_eq!(program.ops("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "not ready: fetching\n".to_owned()));
    let stats = program.stats().await;
    assert_eq!((stats.phase, stats.digest, stats.start_to_ready_seconds), (Phase::Fetching, None, None));
    for (path, status) in
        [("/v2/health/live", 200), ("/v2/health/ready", 503), ("/v2/models/add", 503), ("/v2/models/add/ready", 503)]
    {
        let response = program.client.get(format!("http://127.0.0.1:{}{path}", program.http)).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
    }
    program.signal(Signal::TERM);
    assert_eq!(program.exit().await.code(), Some(0));
}

#[tokio::test]
async fn the_operations_port_tells_how_it_goes_and_nothing_else() {
    let program = Program::start(&add_model(), &["--revision", "r7", "--max-batch-size", "4"]).ready().await;
    let url = format!("http://127.0.0.1:{}/v2/models/add/versions/r7/infer", program.http);
    for body in [body(), "{}".to_owned()] {
        program.client.post(&url).body(body).send().await.unwrap();
    }
    let stats = program.stats().await;
    assert_eq!((stats.model.as_str(), stats.revision.as_deref(), stats.phase), ("add", Some("r7"), Phase::Ready));
    assert_eq!((stats.requests.arrived, stats.requests.completed, stats.requests.refused), (2, 1, 1));
    assert_eq!(stats.requests.admitted, 1, "the other one has no rows");
    assert_eq!((stats.rows_arrived, stats.in_flight, stats.queued_rows, stats.max_batch_rows), (1, 0, 0, 4));
    assert_eq!((stats.latency.count(), stats.queue_wait.count()), (1, 1));
    assert_eq!(stats.digest.unwrap().len(), 64);
    assert!(
        stats.start_to_ready_seconds.unwrap() <= stats.uptime_seconds && stats.cpu_seconds > 0.0 && stats.cpus > 0.0
    );
    assert!(!stats.batches.is_empty());
    let (code, metrics) = program.ops("/metrics").await;
    assert_eq!(code, StatusCode::OK);
    for line in [
        r#"ortolan_server_requests_total{model="add",version="r7",outcome="completed"} 1"#,
        r#"ortolan_server_requests_total{model="add",version="r7",outcome="refused"} 1"#,
        r#"ortolan_server_request_duration_seconds_count{model="add",version="r7"} 1"#,
        r#"ortolan_server_ready{model="add",version="r7"} 1.0"#,
        r#"ortolan_server_request_errors_total{model="add",version="r7",kind="invalid_argument"} 1"#,
        r#"ortolan_server_request_errors_total{model="add",version="r7",kind="client_left"} 0"#,
        r#"ortolan_server_batch_size_rows_sum{model="add",version="r7"} 1.0"#,
        r#"ortolan_server_batch_size_rows_bucket{model="add",version="r7",le="1.0"} 1"#,
        r#"ortolan_server_execution_duration_seconds_count{model="add",version="r7"} 1"#,
        r#"ortolan_server_load_seconds{model="add",version="r7",step="fetch"} 0."#,
        r#"ortolan_server_load_seconds{model="add",version="r7",step="session"} 0."#,
        r#"ortolan_server_load_seconds{model="add",version="r7",step="warm_up"} 0."#,
        r#"ortolan_server_memory_resident_bytes{model="add",version="r7"} "#,
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    // Where nothing limits the memory there is nothing to tell.
    let is_told = |name: &String| memory::limit().is_some() || name != "ortolan_server_memory_limit_bytes";
    for name in named_in_dashboards_and_alerts().into_iter().filter(is_told) {
        let sample = metrics.lines().any(|line| line.split(['{', ' ']).next() == Some(&name));
        assert!(sample, "a dashboard or an alert names {name}, which is not in {metrics}");
    }
    for path in ["/v2", "/v2/models/add", "/"] {
        assert_eq!(program.ops(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}

/// The metrics of servers that the repository's dashboards and alerts name.
fn named_in_dashboards_and_alerts() -> Vec<String> {
    let mut names = Vec::new();
    for path in
        ["dashboards/ortolan-operator.json", "dashboards/ortolan-models.json", "charts/ortolan/files/alerts.yaml"]
    {
        let text = std::fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.extend(words.filter(|word| word.starts_with("ortolan_server_")).map(str::to_owned));
    }
    assert!(names.len() > 10, "{names:?}");
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_that_cannot_be_served_leave_their_reason_behind() {
    let (source, _) = sources::start().await;
    let text = tempfile::NamedTempFile::with_suffix(".onnx").unwrap();
    std::fs::write(text.path(), "hello").unwrap();
    let at = |path: &str| format!("http://{source}/{path}?secret=1");
    let wrong_digest = "0".repeat(64);
    let locked = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(locked.path(), &wrong_digest).unwrap();
    let lock = locked.path().to_str().unwrap();
    let cases: Vec<(String, Vec<&str>, FailureReason, &str)> = vec![
        (at("missing.onnx"), vec![], FailureReason::SourceNotFound, "answered 404"),
        (at("private"), vec![], FailureReason::SourceForbidden, "answered 403"),
        (at("metadata"), vec![], FailureReason::SourceInvalid, "link-local"),
        (at("text.onnx"), vec![], FailureReason::ModelInvalid, "starts with text"),
        (at("page"), vec![], FailureReason::ModelInvalid, "HTML"),
        (at("m.onnx"), vec!["--max-model-bytes", "5000"], FailureReason::ModelTooLarge, "5000 bytes"),
        (at("m.onnx"), vec!["--sha256", &wrong_digest], FailureReason::DigestMismatch, &wrong_digest),
        (text.path().to_str().unwrap().to_owned(), vec![], FailureReason::ModelInvalid, "what onnx.save writes"),
        ("file:///nowhere/m.onnx".to_owned(), vec![], FailureReason::SourceNotFound, "does not exist"),
        ("s3://bucket".to_owned(), vec![], FailureReason::SourceInvalid, "s3://BUCKET/KEY"),
        (at("m.onnx"), vec!["--lock-file", lock], FailureReason::DigestChanged, "began to serve"),
        (
            model("refused-sequence").to_str().unwrap().to_owned(),
            vec![],
            FailureReason::ModelUnsupported,
            "gives tensors",
        ),
        (
            model("refused-endless").to_str().unwrap().to_owned(),
            vec!["--load-timeout", "1s"],
            FailureReason::LoadTimedOut,
            "was not done within 1s",
        ),
        (add_model(), vec!["--threads", "0"], FailureReason::ConfigInvalid, "--threads is 0"),
        (
            add_model(),
            vec!["--otlp-endpoint", "secret:4318"],
            FailureReason::ConfigInvalid,
            "endpoint of traces must be a URL",
        ),
    ];
    let cache = tempfile::tempdir().unwrap();
    for (uri, mut flags, reason, words) in cases {
        flags.extend(["--cache-dir", cache.path().to_str().unwrap()]);
        let mut program = Program::start(&uri, &flags);
        assert_eq!(program.exit().await.code(), Some(1), "{uri}: {}", program.said);
        let failure = program.failure();
        assert_eq!(failure.reason, reason, "{uri}: {}", failure.message);
        assert!(failure.message.contains(words), "{uri}: {}", failure.message);
        assert!(program.said.contains(&failure.message), "the log says the same: {}", program.said);
        assert!(!failure.message.contains("secret") && !failure.message.contains("/nowhere"), "{}", failure.message);
    }
}

#[tokio::test]
async fn a_port_that_is_taken_and_a_library_that_is_none_are_said_plainly() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let no_library = tempfile::NamedTempFile::new().unwrap();
    let no_library: PathBuf = no_library.path().to_owned();
    let missing = "/nowhere/libonnxruntime.so";
    std::fs::write(&no_library, "not a library").unwrap();
    for (flags, words) in [
        (["--grpc-port", &port], format!("port {port} (gRPC) cannot be opened")),
        (["--onnxruntime", no_library.to_str().unwrap()], "the ONNX Runtime library cannot be loaded".to_owned()),
        (["--onnxruntime", missing], "does not exist".to_owned()),
    ] {
        let mut program = Program::start(&add_model(), &flags);
        assert_eq!(program.exit().await.code(), Some(1), "{}", program.said);
        let failure = program.failure();
        assert_eq!(failure.reason, FailureReason::ConfigInvalid, "{}", failure.message);
        assert!(failure.message.contains(&words) && !failure.message.contains("/nowhere"), "{}", failure.message);
    }
}
