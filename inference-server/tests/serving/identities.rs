//! The identity that a cloud gives a pod, by its environment and token files, against small stand-ins for the clouds' token
//! services: what is asked, what is done with the answer, and that neither log nor termination message tells a secret.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use ortolan_protocol::failure::FailureReason::{CredentialsInvalid, SourceForbidden, SourceInvalid};

use crate::common::serve;
use crate::objects::{self, SECRET};
use crate::program::Program;
use crate::sources::bytes;

type Asked = Arc<Mutex<Vec<(String, HeaderMap, String)>>>;

/// A stand-in for all clouds at once: token services, and stores that take only the tokens that these gave out.
async fn cloud() -> (String, Asked) {
    let asked = Asked::default();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&asked));
    (serve(app).await, asked)
}

async fn answer(State(asked): State<Asked>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = String::from_utf8(axum::body::to_bytes(body, 1 << 16).await.unwrap().to_vec()).unwrap();
    let sent = format!("{}{body}", parts.uri);
    let path = parts.uri.path().to_owned();
    let header = |name: &str| parts.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let (authorization, session) = (header("authorization"), header("x-amz-security-token"));
    asked.lock().unwrap_or_else(PoisonError::into_inner).push((parts.uri.to_string(), parts.headers, body));
    let keys = "<AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>hushhush-key</SecretAccessKey>\
                <SessionToken>hushhush-session</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration>";
    let headers = [("etag", "\"1\""), ("last-modified", "Wed, 25 Nov 2026 00:00:00 GMT")];
    match path.as_str() {
        "/sts" if sent.contains("hushhush-file") => format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>{keys}</Credentials>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )
        .into_response(),
        "/sts" => {
            (StatusCode::FORBIDDEN, format!("<Error><Code>AccessDenied</Code><M>{sent}</M></Error>")).into_response()
        }
        "/agent" if authorization.contains("hushhush-file") => serde_json::json!({
            "AccessKeyId": "ASIA1", "SecretAccessKey": "hushhush-key", "Token": "hushhush-session",
            "Expiration": "2999-01-01T00:00:00Z",
        })
        .to_string()
        .into_response(),
        "/tenant/oauth2/v2.0/token" | "/computeMetadata/v1/instance/service-accounts/default/token" => {
            serde_json::json!({"access_token": "hushhush-session", "expires_in": 3600, "token_type": "Bearer"})
                .to_string()
                .into_response()
        }
        "/models/m.onnx" | "/models/m%2Eonnx"
            if session == "hushhush-session" || authorization == "Bearer hushhush-session" =>
        {
            (headers, bytes()).into_response()
        }
        _ => (StatusCode::FORBIDDEN, format!("<Error><Code>AccessDenied</Code><M>{sent}</M></Error>")).into_response(),
    }
}

/// As little as may be heard: everything that any library logs is looked through.
const LOUD: (&str, &str) = ("ORTOLAN_LOG", "trace");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_identity_is_exchanged_for_a_token_and_that_for_the_model() {
    let (cloud, asked) = cloud().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hushhush-file").unwrap();
    let (file, base) = (file.path().to_str().unwrap(), format!("http://{cloud}"));
    let (sts, agent) = (format!("{base}/sts"), format!("{base}/agent"));
    let irsa = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/ml"),
        ("AWS_ENDPOINT_URL_STS", &sts),
        ("AWS_ENDPOINT_URL", &base),
    ];
    let pod_identity = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file),
        ("AWS_ENDPOINT_URL", &base),
    ];
    let aks = [
        ("AZURE_FEDERATED_TOKEN_FILE", file),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_AUTHORITY_HOST", &base),
        ("AZURE_STORAGE_ACCOUNT_NAME", "mlmodels"),
        ("AZURE_STORAGE_ENDPOINT", &base),
    ];
    let gke = [("GCE_METADATA_HOST", cloud.as_str()), ("GOOGLE_BASE_URL", &base)];
    for (uri, environment, first) in [
        ("s3://models/m.onnx", &irsa[..], "/sts?Action=AssumeRoleWithWebIdentity"),
        ("s3://models/m.onnx", &pod_identity, "/agent"),
        ("az://models/m.onnx", &aks, "/tenant/oauth2/v2.0/token"),
        ("gs://models/m.onnx", &gke, "/computeMetadata/v1/instance/service-accounts/default/token"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let flags = ["--cloud-identity", "--cache-dir", cache.path().to_str().unwrap(), "--drain-delay", "0s"];
        let mut program = Program::start_in(uri, &flags, &[environment, &[LOUD]].concat()).ready().await;
        assert_eq!(program.stats().await.digest.as_deref(), Some(crate::sources::DIGEST));
        program.stop().await;
        let asked: Vec<String> = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner))
            .into_iter()
            .map(|(uri, _, _)| uri)
            .collect();
        assert!(asked[0].starts_with(first) && asked[1].starts_with("/models/m"), "{asked:?}");
        assert!(!program.said.contains(SECRET), "{uri}: the log tells a secret");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_that_are_refused_are_told_without_a_secret() {
    let (cloud, _) = cloud().await;
    let (store, _) = objects::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "another-hushhush").unwrap();
    let (file, base, store) = (file.path().to_str().unwrap(), format!("http://{cloud}"), format!("http://{store}"));
    let sts = format!("{base}/sts");
    let web = vec![
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/ml"),
        ("AWS_ENDPOINT_URL_STS", &sts),
    ];
    let no_file = vec![("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/ml")];
    let agent = vec![
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.169.254/latest"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file),
    ];
    let keys = vec![
        ("AWS_ACCESS_KEY_ID", "AKIDHUSHHUSH0001"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_ENDPOINT_URL", store.as_str()),
    ];
    for (uri, mut environment, reason, words) in [
        ("s3://models/m.onnx", web, SourceForbidden, "gives no token to the pod's service account"),
        ("s3://models/m.onnx", no_file, CredentialsInvalid, "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ("s3://models/m.onnx", agent, SourceInvalid, "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        ("s3://models/403.SignatureDoesNotMatch", keys, SourceForbidden, "AWS_SECRET_ACCESS_KEY"),
    ] {
        environment.push(LOUD);
        let mut program = Program::start_in(uri, &[], &environment);
        assert_eq!(program.exit().await.code(), Some(1), "{}", program.said);
        let failure = program.failure();
        assert_eq!(failure.reason, reason, "{}", failure.message);
        assert!(failure.message.contains(words) && !failure.message.contains("/nowhere"), "{}", failure.message);
        for secret in [SECRET, "AKIDHUSHHUSH0001"] {
            assert!(!program.said.contains(secret) && !failure.message.contains(secret), "{uri}: {}", program.said);
        }
    }
}
