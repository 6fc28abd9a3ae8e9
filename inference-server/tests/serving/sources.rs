//! Models over HTTP, from a server that also has everything a server should not have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use ortolan_protocol::failure::{Failure, FailureReason};
use ortolan_server::engine;
use ortolan_server::fetch::{Access, Digest, Fetched, Retries, Source, Wanted, fetch};
use tempfile::TempDir;

use crate::common::{model, serve};

/// SHA-256 of the model that the source gives, as sha256sum says.
pub const DIGEST: &str = "34472b2fcf55e48afb0c767db0638d92e361c2b2dc122ae5adab1ffba68eb02d";

type Calls = State<Arc<AtomicUsize>>;

/// Starts the source; gives its address and the number of calls that it had.
pub async fn start() -> (String, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let app = Router::new()
        .route("/m.onnx", get(whole))
        .route(
            "/pieces.onnx",
            get(|| async {
                Body::from_stream(tokio_stream::iter(
                    bytes()
                        .chunks(100)
                        .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
                        .collect::<Vec<_>>(),
                ))
            }),
        )
        .route("/hop", get(|| async { Redirect::temporary("/hop2?token=secret") }))
        .route("/hop2", get(|| async { Redirect::permanent("m.onnx") }))
        .route("/basic.onnx", get(|headers: HeaderMap| async move { let_in(&headers, "Basic bWw6aHVzaC1odXNo") }))
        .route("/bearer.onnx", get(|headers: HeaderMap| async move { let_in(&headers, "Bearer hush-hush") }))
        .route("/here", get(|| async { Redirect::temporary("/bearer.onnx") }))
        .route("/elsewhere", get(elsewhere))
        .route("/loop", get(|| async { Redirect::temporary("/loop") }))
        .route("/metadata", get(|| async { Redirect::temporary("http://169.254.169.254/latest/meta-data/") }))
        .route("/file", get(|| async { Redirect::temporary("file:///etc/passwd") }))
        .route("/nowhere", get(|| async { StatusCode::FOUND }))
        .route("/text.onnx", get(|| async { "not a model\n" }))
        .route("/page", get(|| async { axum::response::Html("<!DOCTYPE html><title>Download</title>") }))
        .route("/gone", get(|| async { StatusCode::GONE }))
        .route("/private", get(|| async { StatusCode::FORBIDDEN }))
        .route("/login", get(|| async { StatusCode::UNAUTHORIZED }))
        .route("/teapot", get(|| async { StatusCode::IM_A_TEAPOT }))
        .route(
            "/broken",
            get(|State(calls): Calls| async move { count(&calls, StatusCode::INTERNAL_SERVER_ERROR.into_response()) }),
        )
        .route("/flaky", get(flaky))
        .with_state(Arc::clone(&calls));
    (serve(app).await, calls)
}

pub fn bytes() -> Vec<u8> {
    std::fs::read(model("mlp")).unwrap()
}

async fn whole(State(calls): Calls) -> Response {
    count(&calls, bytes().into_response())
}

fn let_in(headers: &HeaderMap, wanted: &str) -> Response {
    match headers.get("authorization") {
        Some(found) if found == wanted => bytes().into_response(),
        Some(_) => StatusCode::FORBIDDEN.into_response(),
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// The same server by another name.
async fn elsewhere(headers: HeaderMap) -> Redirect {
    let port = headers["host"].to_str().unwrap().rsplit(':').next().unwrap().to_owned();
    Redirect::temporary(&format!("http://localhost:{port}/bearer.onnx"))
}

/// Busy, then broken off in the middle, then good.
async fn flaky(State(calls): Calls) -> Response {
    match calls.fetch_add(1, Ordering::SeqCst) {
        0 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        1 => {
            let pieces = vec![Ok(Bytes::from_static(b"\x08\x0a")), Err(std::io::Error::other("broken off"))];
            Body::from_stream(tokio_stream::iter(pieces)).into_response()
        }
        _ => bytes().into_response(),
    }
}

fn count(calls: &AtomicUsize, response: Response) -> Response {
    calls.fetch_add(1, Ordering::SeqCst);
    response
}

pub struct Place {
    cache: TempDir,
    credentials: Option<TempDir>,
    max_bytes: u64,
}

impl Place {
    pub fn new() -> Self {
        Self { cache: tempfile::tempdir().unwrap(), credentials: None, max_bytes: 1 << 20 }
    }

    /// With a credentials Secret of these keys.
    pub fn with(keys: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (key, value) in keys {
            std::fs::write(folder.path().join(key), value).unwrap();
        }
        Self { credentials: Some(folder), ..Self::new() }
    }

    pub fn limited(self, max_bytes: u64) -> Self {
        Self { max_bytes, ..self }
    }

    pub async fn fetch(&self, uri: &str, sha256: Option<&str>) -> Result<Fetched, Failure> {
        let source: Source = uri.parse()?;
        let retries = Retries { times: 2, wait: Duration::from_millis(1) };
        let digest = sha256.map_or(Digest::Any, |sha256| Digest::Given(sha256.to_owned()));
        let access = Access { credentials: self.credentials.as_ref().map(TempDir::path), cloud_identity: false };
        let (max_bytes, cache) = (self.max_bytes, self.cache.path());
        let data_files = engine::data_files;
        let wanted = Wanted { digest, max_bytes, cache, retries, access, data_files, tell: &|_| {} };
        fetch(&source, &wanted).await
    }

    pub fn files(&self) -> Vec<String> {
        std::fs::read_dir(self.cache.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

#[tokio::test]
async fn a_model_comes_whole_with_its_digest_by_any_number_of_pieces_and_hops() {
    let (source, _) = start().await;
    for path in ["m.onnx", "pieces.onnx", "hop"] {
        let place = Place::new();
        let fetched = place.fetch(&format!("http://{source}/{path}"), Some(DIGEST)).await.unwrap();
        assert_eq!((fetched.digest.as_str(), fetched.bytes), (DIGEST, 5054), "{path}");
        assert_eq!(std::fs::read(&fetched.path).unwrap(), bytes());
        assert_eq!(place.files(), [format!("{DIGEST}.onnx")], "nothing else is left behind");
    }
}

#[tokio::test]
async fn a_model_that_is_in_the_cache_is_not_fetched_again_unless_it_was_changed() {
    let (source, calls) = start().await;
    let (place, uri) = (Place::new(), format!("http://{source}/m.onnx"));
    let first = place.fetch(&uri, Some(DIGEST)).await.unwrap();
    let again = place.fetch(&uri, Some(DIGEST)).await.unwrap();
    assert_eq!((again.path, again.digest, again.bytes), (first.path.clone(), first.digest.clone(), first.bytes));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    std::fs::write(&first.path, b"changed").unwrap();
    let again = place.fetch(&uri, Some(DIGEST)).await.unwrap();
    assert_eq!((again.path, again.digest, again.bytes), (first.path.clone(), first.digest.clone(), first.bytes));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert_eq!(std::fs::read(&first.path).unwrap(), bytes());
}

#[tokio::test]
async fn failures_say_their_class_and_the_host_but_no_path_and_no_secret() {
    let (source, _) = start().await;
    for (path, reason, words) in [
        ("gone", FailureReason::SourceNotFound, "410"),
        ("missing", FailureReason::SourceNotFound, "404"),
        ("private", FailureReason::SourceForbidden, "403"),
        ("login", FailureReason::SourceForbidden, "401"),
        ("teapot", FailureReason::SourceInvalid, "418"),
        ("broken", FailureReason::SourceUnreachable, "500"),
        ("nowhere", FailureReason::SourceUnreachable, "leads nowhere"),
        ("loop", FailureReason::SourceInvalid, "more than 10 times"),
        ("metadata", FailureReason::SourceInvalid, "link-local"),
        ("file", FailureReason::SourceInvalid, "'file'"),
    ] {
        let place = Place::new();
        let failure = place.fetch(&format!("http://user:secret@{source}/{path}?secret=1"), None).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{path}: {}", failure.message);
        assert!(failure.message.contains(words), "{path}: {}", failure.message);
        assert!(
            !failure.message.contains("secret") && !failure.message.contains(&format!("/{path}")),
            "{}",
            failure.message
        );
        assert!(place.files().is_empty(), "{path} left {:?}", place.files());
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    let (source, calls) = start().await;
    let fetched = Place::new().fetch(&format!("http://{source}/flaky"), None).await.unwrap();
    assert_eq!((fetched.digest.as_str(), calls.load(Ordering::SeqCst)), (DIGEST, 3));
    Place::new().fetch(&format!("http://{source}/broken"), None).await.unwrap_err();
    assert_eq!(calls.load(Ordering::SeqCst), 6, "once, and twice again");
    let wrong = "0".repeat(64);
    let failure = Place::new().fetch(&format!("http://{source}/m.onnx"), Some(&wrong)).await.unwrap_err();
    assert_eq!(calls.load(Ordering::SeqCst), 7, "other bytes will not become the right ones");
    assert_eq!(failure.reason, FailureReason::DigestMismatch);
    assert!(failure.message.contains(DIGEST) && failure.message.contains(&wrong), "{}", failure.message);
}

#[tokio::test]
async fn a_model_over_the_limit_is_left_whether_it_says_its_size_or_not() {
    let (source, _) = start().await;
    for path in ["m.onnx", "pieces.onnx"] {
        let place = Place { max_bytes: 5053, ..Place::new() };
        let failure = place.fetch(&format!("http://{source}/{path}"), None).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::ModelTooLarge, "{path}: {}", failure.message);
        assert!(failure.message.contains("5053") && place.files().is_empty());
    }
}

#[tokio::test]
async fn sources_that_cannot_be_reached_are_named_with_the_cause() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (uri, words) in [
        (format!("http://{closed}/m.onnx"), vec!["connection refused".to_owned(), closed.to_string()]),
        (
            "http://models.invalid/m.onnx".to_owned(),
            vec!["its name does not resolve".to_owned(), "models.invalid".to_owned()],
        ),
    ] {
        let failure = Place::new().fetch(&uri, None).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::SourceUnreachable, "{}", failure.message);
        assert!(words.iter().all(|word| failure.message.contains(word)), "{}", failure.message);
    }
}

#[tokio::test]
async fn credentials_go_to_the_place_that_the_uri_names_and_to_no_other() {
    let (source, _) = start().await;
    let at = |path: &str| format!("http://{source}/{path}");
    let basic = [("username", "ml"), ("password", "hush-hush\n")];
    Place::with(&basic).fetch(&at("basic.onnx"), Some(DIGEST)).await.unwrap();
    let bearer = [("token", "hush-hush"), ("unrelated", "x")];
    Place::with(&bearer).fetch(&at("bearer.onnx"), Some(DIGEST)).await.unwrap();
    Place::with(&bearer).fetch(&at("here"), Some(DIGEST)).await.unwrap();
    for (keys, path, reason, words) in [
        (&bearer[..], "elsewhere", FailureReason::SourceForbidden, "401"),
        (&[], "bearer.onnx", FailureReason::CredentialsInvalid, "no key token, or username and password"),
        (&[("token", "wrong")], "bearer.onnx", FailureReason::SourceForbidden, "credentials Secret"),
        (&basic[..1], "basic.onnx", FailureReason::CredentialsInvalid, "no key password"),
        (&basic[1..], "basic.onnx", FailureReason::CredentialsInvalid, "no key username"),
        (&[("token", "a"), ("username", "b")], "basic.onnx", FailureReason::CredentialsInvalid, "remove one"),
        (&[("token", "hush\nhush")], "basic.onnx", FailureReason::CredentialsInvalid, "characters"),
    ] {
        let failure = Place::with(keys).fetch(&at(path), None).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{}", failure.message);
        assert!(failure.message.contains(words), "{}", failure.message);
        assert!(!failure.message.contains("hush"), "{}", failure.message);
    }
    let failure = Place::new().fetch(&at("bearer.onnx"), None).await.unwrap_err();
    assert!(failure.message.contains("spec.model.credentialsSecret"), "{}", failure.message);
}
