//! Models in object stores, spoken to as their documentation says: what is asked, how it is signed, and what becomes of
//! each refusal. A real S3 server checks the signatures in tests/e2e/test_sources.py.

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ortolan_protocol::failure::FailureReason::{
    self, CredentialsInvalid, SourceForbidden, SourceInvalid, SourceNotFound, SourceUnreachable,
};

use crate::common::serve;
use crate::sources::{DIGEST, Place, bytes};

/// What no message may hold.
pub const SECRET: &str = "hushhush";
const ACCESS_KEY: &str = "AKIDHUSHHUSH0001";

/// What a store was asked: `GET /path?query`, and the headers.
pub type Asked = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// Starts a store that has the object `digits/v 1+2.onnx` in `models` and refuses everything else as its path says; gives
/// its address.
pub async fn start() -> (String, Asked) {
    let asked = Asked::default();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&asked));
    (serve(app).await, asked)
}

async fn answer(State(asked): State<Asked>, request: Request) -> Response {
    let line = format!("{} {}", request.method(), request.uri());
    let mut all = asked.lock().unwrap_or_else(PoisonError::into_inner);
    all.push((line, request.headers().clone()));
    let times = all.len();
    // A store may repeat in its answer whatever it was sent.
    let echo = format!("{:?} {ACCESS_KEY} {SECRET}", request.headers());
    let error = |status: u16, code: &str| {
        let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{echo}</Message></Error>");
        (StatusCode::from_u16(status).unwrap(), [("x-ms-error-code", code.to_owned())], xml).into_response()
    };
    let headers = [("etag", "\"1\""), ("last-modified", "Wed, 25 Nov 2026 00:00:00 GMT")];
    // Each of the clouds encodes other characters.
    let decode = |path: &str, code: (&str, &str)| path.replace(code.0, code.1);
    let codes = [("%2F", "/"), ("%2E", "."), ("%20", " "), ("%2B", "+")];
    match codes.into_iter().fold(request.uri().path().to_owned(), |path, code| decode(&path, code)).as_str() {
        "/models/flaky" if times == 1 => error(503, "SlowDown"),
        "/models/flaky" if times == 2 => {
            let pieces = vec![Ok(Bytes::from_static(b"\x08\x0a")), Err(std::io::Error::other("broken off"))];
            (headers, [("content-length", "5054")], Body::from_stream(tokio_stream::iter(pieces))).into_response()
        }
        "/models/flaky" | "/models/digits/v 1+2.onnx" => (headers, bytes()).into_response(),
        "/models/elsewhere" => (
            StatusCode::MOVED_PERMANENTLY,
            [("x-amz-bucket-region", "eu-west-1")],
            "<Error><Code>PermanentRedirect</Code></Error>",
        )
            .into_response(),
        "/models/hop" => {
            (StatusCode::TEMPORARY_REDIRECT, [("location", "http://169.254.169.254/latest/")]).into_response()
        }
        "/models/late" => {
            let (mut parts, body) = error(403, "RequestTimeTooSkewed").into_parts();
            parts.headers.insert("date", "Wed, 25 Nov 2015 00:00:00 GMT".parse().unwrap());
            Response::from_parts(parts, body)
        }
        "/models/endless" => {
            let x = || Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1024]));
            (StatusCode::FORBIDDEN, Body::from_stream(tokio_stream::iter(std::iter::repeat_with(x)))).into_response()
        }
        path => match path.trim_start_matches("/models/").split_once('.') {
            Some((status, code)) => error(status.parse().unwrap(), code),
            None if path.starts_with("/models/") => error(404, "NoSuchKey"),
            None => error(404, "NoSuchBucket"),
        },
    }
}

fn asked(asked: &Asked) -> Vec<(String, HeaderMap)> {
    std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner))
}

fn s3(store: &str) -> Place {
    Place::with(&[
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", SECRET),
        ("AWS_REGION", "eu-central-1\n"),
        ("AWS_ENDPOINT_URL", &format!("http://{store}/")),
    ])
}

#[tokio::test]
async fn an_object_of_s3_comes_whole_and_the_request_is_signed() {
    let (store, calls) = start().await;
    let place = s3(&store);
    let fetched = place.fetch("s3://models/digits/v 1+2.onnx", Some(DIGEST)).await.unwrap();
    assert_eq!((fetched.digest.as_str(), fetched.bytes), (DIGEST, 5054));
    assert_eq!(place.files(), [format!("{DIGEST}.onnx")]);
    let [(line, headers)] = &asked(&calls)[..] else { panic!("one request") };
    assert_eq!(line, "GET /models/digits/v%201%2B2.onnx");
    let authorization = headers["authorization"].to_str().unwrap();
    let signed = format!("AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/");
    assert!(authorization.starts_with(&signed) && authorization.contains("/eu-central-1/s3/aws4_request"));
    assert_eq!(headers["x-amz-security-token"], SECRET);
    // What is in the cache is not asked for again; without a Secret nothing is signed.
    place.fetch("s3://models/digits/v 1+2.onnx", Some(DIGEST)).await.unwrap();
    assert!(asked(&calls).is_empty());
    let public = Place::with(&[("AWS_ENDPOINT_URL_S3", &format!("http://{store}"))]);
    public.fetch("s3://models/digits/v 1+2.onnx", Some(DIGEST)).await.unwrap();
    assert!(!asked(&calls)[0].1.contains_key("authorization"));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_by_the_same_rules_as_for_any_source() {
    let (store, calls) = start().await;
    let place = s3(&store);
    assert_eq!(place.fetch("s3://models/flaky", None).await.unwrap().digest, DIGEST);
    assert_eq!(asked(&calls).len(), 3, "busy, broken off, whole");
    place.fetch("s3://models/503.SlowDown", None).await.unwrap_err();
    assert_eq!(asked(&calls).len(), 3, "once, and twice again");
    place.fetch("s3://models/403.AccessDenied", None).await.unwrap_err();
    assert_eq!(asked(&calls).len(), 1);
    let failure = place.limited(5053).fetch("s3://models/digits/v 1+2.onnx", None).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::ModelTooLarge);
    let failure = s3(&store).fetch("s3://models/digits/v 1+2.onnx", Some(&"0".repeat(64))).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::DigestMismatch);
}

#[tokio::test]
async fn refusals_of_s3_name_bucket_and_key_and_never_what_was_sent() {
    let (store, _) = start().await;
    for (uri, reason, words) in [
        ("s3://nowhere/k", SourceNotFound, "there is no bucket 'nowhere'"),
        ("s3://models/missing", SourceNotFound, "no object 'missing' in bucket 'models'"),
        ("s3://models/403.InvalidAccessKeyId", SourceForbidden, "AWS_ACCESS_KEY_ID"),
        ("s3://models/403.SignatureDoesNotMatch", SourceForbidden, "AWS_SECRET_ACCESS_KEY"),
        ("s3://models/400.ExpiredToken", SourceForbidden, "AWS_SESSION_TOKEN"),
        ("s3://models/403.AccessDenied", SourceForbidden, "may not read object '403.AccessDenied'"),
        ("s3://models/late", SourceForbidden, "ahead of the store's"),
        ("s3://models/elsewhere", CredentialsInvalid, "eu-west-1"),
        ("s3://models/hop", SourceInvalid, "307"),
        ("s3://models/endless", SourceForbidden, "403"),
        ("s3://models/503.SlowDown", SourceUnreachable, "503 (SlowDown)"),
    ] {
        let failure = s3(&store).fetch(uri, None).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{uri}: {}", failure.message);
        assert!(failure.message.contains(words), "{uri}: {}", failure.message);
        assert!(!failure.message.contains(SECRET) && !failure.message.contains(ACCESS_KEY), "{}", failure.message);
    }
}

#[tokio::test]
async fn settings_that_lead_nowhere_are_named() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (id, secret) = (("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET));
    let closed = format!("http://{closed}");
    for (keys, reason, words) in [
        (vec![id], CredentialsInvalid, "no key AWS_SECRET_ACCESS_KEY"),
        (vec![secret], CredentialsInvalid, "no key AWS_ACCESS_KEY_ID"),
        (vec![("AWS_SESSION_TOKEN", SECRET)], CredentialsInvalid, "no key AWS_ACCESS_KEY_ID"),
        (vec![id, secret, ("AWS_PROFILE", SECRET)], CredentialsInvalid, "a key AWS_PROFILE, but read are"),
        (vec![("AWS_REGION", "eu west")], CredentialsInvalid, "AWS_REGION"),
        (vec![("AWS_ENDPOINT_URL", "minio:9000")], CredentialsInvalid, "AWS_ENDPOINT_URL"),
        (vec![("AWS_ENDPOINT_URL", "https://user:hushhush@minio")], CredentialsInvalid, "AWS_ENDPOINT_URL"),
        (vec![id, secret, ("AWS_ENDPOINT_URL", "http://169.254.169.254")], SourceInvalid, "link-local"),
        (vec![id, secret, ("AWS_ENDPOINT_URL", "http://s3.invalid")], SourceUnreachable, "does not resolve"),
        (vec![id, secret, ("AWS_ENDPOINT_URL", &closed)], SourceUnreachable, "connection refused"),
    ] {
        let failure = Place::with(&keys).fetch("s3://models/k", None).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{keys:?}: {}", failure.message);
        assert!(failure.message.contains(words), "{keys:?}: {}", failure.message);
        assert!(!failure.message.contains(SECRET) && !failure.message.contains(ACCESS_KEY), "{}", failure.message);
    }
}

/// A service account's key, made for this test.
fn service_account() -> String {
    let made = Command::new("openssl").args(["genrsa", "-traditional", "2048"]).output().unwrap();
    serde_json::json!({
        "type": "service_account", "client_email": "ml@example.org", "private_key_id": "k1",
        "private_key": String::from_utf8(made.stdout).unwrap(),
    })
    .to_string()
}

#[tokio::test]
async fn an_object_of_google_comes_by_a_service_accounts_key_or_for_nobody() {
    let (store, calls) = start().await;
    let base = format!("http://{store}");
    let account = service_account();
    for key in ["GOOGLE_SERVICE_ACCOUNT_KEY", "key.json"] {
        let place = Place::with(&[(key, &account), ("GOOGLE_BASE_URL", &base)]);
        place.fetch("gs://models/digits/v 1+2.onnx", Some(DIGEST)).await.unwrap();
        let [(line, headers)] = &asked(&calls)[..] else { panic!("one request") };
        assert_eq!(line, "GET /models/digits%2Fv%201%2B2%2Eonnx");
        let token = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
        assert_eq!(token.split('.').count(), 3, "a signed JSON Web Token");
    }
    let place = Place::with(&[(("GOOGLE_BASE_URL"), base.as_str())]);
    place.fetch("gs://models/digits/v 1+2.onnx", Some(DIGEST)).await.unwrap();
    assert!(!asked(&calls)[0].1.contains_key("authorization"));
    let broken = account.replace("BEGIN", "BEGINN");
    let user = r#"{"type": "authorized_user", "refresh_token": "hushhush"}"#;
    for (json, uri, reason, words) in [
        ("hushhush", "gs://models/k", CredentialsInvalid, "GOOGLE_SERVICE_ACCOUNT_KEY"),
        (user, "gs://models/k", CredentialsInvalid, "type service_account"),
        (&broken, "gs://models/k", CredentialsInvalid, "not an RSA key"),
        (&account, "gs://nowhere/k", SourceNotFound, "no bucket 'nowhere'"),
        (&account, "gs://models/403.AccessDenied", SourceForbidden, "may not read"),
    ] {
        let keys = [("GOOGLE_SERVICE_ACCOUNT_KEY", json), ("GOOGLE_BASE_URL", &base)];
        let failure = Place::with(&keys).fetch(uri, None).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{uri}: {}", failure.message);
        assert!(failure.message.contains(words) && !failure.message.contains(SECRET), "{}", failure.message);
    }
}

#[tokio::test]
async fn an_object_of_azure_comes_by_the_accounts_key_a_signature_or_for_nobody() {
    let (store, calls) = start().await;
    let base = format!("http://{store}");
    let own = [("AZURE_STORAGE_ACCOUNT_NAME", "mlmodels"), ("AZURE_STORAGE_ENDPOINT", base.as_str())];
    let with = |keys: &[(&'static str, &'static str)]| Place::with(&[&own[..], keys].concat());
    let uri = "az://models/digits/v 1+2.onnx";
    with(&[("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaGh1c2g=")]).fetch(uri, Some(DIGEST)).await.unwrap();
    let [(line, headers)] = &asked(&calls)[..] else { panic!("one request") };
    assert_eq!(line, "GET /models/digits/v%201+2.onnx");
    assert!(headers["authorization"].to_str().unwrap().starts_with("SharedKey mlmodels:"));
    with(&[("AZURE_STORAGE_SAS_TOKEN", "?sv=2026-01-01&sp=r&sig=hushhush%3D")]).fetch(uri, Some(DIGEST)).await.unwrap();
    let [(line, headers)] = &asked(&calls)[..] else { panic!("one request") };
    assert!(line.contains("sig=hushhush%3D") && !headers.contains_key("authorization"), "{line}");
    with(&[]).fetch(uri, Some(DIGEST)).await.unwrap();
    assert!(!asked(&calls)[0].1.contains_key("authorization"));
    let sas = [("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=hushhush")];
    for (keys, uri, reason, words) in [
        (&[("AZURE_STORAGE_ACCOUNT_KEY", "hush hush!")][..], uri, CredentialsInvalid, "AZURE_STORAGE_ACCOUNT_KEY"),
        (&[("AZURE_STORAGE_KEY", "hushhush")], uri, CredentialsInvalid, "AZURE_STORAGE_KEY, but read are"),
        (&[("AZURE_CLIENT_SECRET", "hushhush")], uri, CredentialsInvalid, "AZURE_CLIENT_ID"),
        (&sas, "az://models/404.ContainerNotFound", SourceNotFound, "no container 'models'"),
        (&sas, "az://models/404.BlobNotFound", SourceNotFound, "no object '404.BlobNotFound'"),
        (&sas, "az://models/403.AuthenticationFailed", SourceForbidden, "wrong or expired"),
        (&[], "az://models/403.AuthorizationFailure", SourceForbidden, "spec.model.credentialsSecret"),
        (&[], "az://models/409.PublicAccessNotPermitted", SourceForbidden, "is not public"),
    ] {
        let failure = with(keys).fetch(uri, None).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{uri}: {}", failure.message);
        assert!(failure.message.contains(words) && !failure.message.contains(SECRET), "{}", failure.message);
    }
    let failure = Place::with(&[]).fetch(uri, None).await.unwrap_err();
    assert!(failure.message.contains("no key AZURE_STORAGE_ACCOUNT_NAME"), "{}", failure.message);
}
