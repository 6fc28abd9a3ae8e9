//! Models in a registry and in a hub: small servers that speak the documented part of their protocols, and also answer as none
//! should. A real registry is asked in the tests on a cluster.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ortolan_protocol::failure::FailureReason;
use serde_json::{Value, json};

use crate::common::{serve, sha256, test_file as file};
use crate::sources::{DIGEST, Place, bytes};

const BASIC: &str = "Basic bWw6aHVzaC1odXNo"; // ml:hush-hush

/// What a registry holds: manifests by tag and digest, blobs by digest.
#[derive(Default)]
struct Shelf {
    manifests: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    /// Who asks must show a token, which is to be had for a password.
    is_closed: bool,
    asked: Vec<String>,
}

type Shared = State<Arc<Mutex<Shelf>>>;

impl Shelf {
    /// Puts an artifact with these layers on the shelf; gives the digest of its manifest.
    fn push(&mut self, tag: &str, config: &str, layers: &[(&str, Option<&str>, Vec<u8>)]) -> String {
        let layers: Vec<Value> = layers
            .iter()
            .map(|(kind, title, content)| {
                let digest = format!("sha256:{}", sha256(content));
                self.blobs.insert(digest.clone(), content.clone());
                let annotations = title.map(|title| json!({"org.opencontainers.image.title": title}));
                json!({"mediaType": kind, "digest": digest, "size": content.len(), "annotations": annotations})
            })
            .collect();
        let config = json!({"mediaType": config, "digest": format!("sha256:{}", sha256(b"{}")), "size": 2});
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.put(tag, &json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}))
    }

    fn put(&mut self, tag: &str, manifest: &Value) -> String {
        let text = manifest.to_string().into_bytes();
        let digest = sha256(&text);
        self.manifests.insert(tag.to_owned(), text.clone());
        self.manifests.insert(format!("sha256:{digest}"), text);
        digest
    }
}

async fn start(shelf: Shelf) -> (String, Arc<Mutex<Shelf>>) {
    let shelf = Arc::new(Mutex::new(shelf));
    let app = Router::new()
        .route("/v2/models/digits/{kind}/{name}", get(give))
        .route("/token", get(token))
        .with_state(Arc::clone(&shelf));
    (serve(app).await, shelf)
}

async fn give(State(shelf): Shared, Path((kind, name)): Path<(String, String)>, headers: HeaderMap) -> Response {
    let mut shelf = shelf.lock().unwrap();
    shelf.asked.push(format!("{kind}/{name}"));
    if shelf.is_closed && headers.get("authorization").is_none_or(|shown| shown != "Bearer short-lived") {
        let host = headers["host"].to_str().unwrap();
        let challenge = format!(
            "Bearer realm=\"http://{host}/token\",service=\"registry\",scope=\"repository:models/digits:pull\""
        );
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
    }
    let found = if kind == "manifests" { shelf.manifests.get(&name) } else { shelf.blobs.get(&name) };
    found.cloned().map_or_else(|| StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
}

async fn token(Query(asked): Query<HashMap<String, String>>, headers: HeaderMap) -> Response {
    assert_eq!((asked["service"].as_str(), asked["scope"].as_str()), ("registry", "repository:models/digits:pull"));
    match headers.get("authorization") {
        Some(shown) if shown == BASIC => axum::Json(json!({"token": "short-lived"})).into_response(),
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const FILE: &str = "application/octet-stream";

#[tokio::test]
async fn an_artifact_is_known_by_its_manifest_and_brings_the_files_that_the_model_names() {
    let mut shelf = Shelf::default();
    let both = [
        (FILE, Some("onnx/external.onnx"), file("external.onnx")),
        (FILE, Some("onnx/external.bin"), file("external.bin")),
        (FILE, Some("README.md"), b"read me".to_vec()),
    ];
    let digest = shelf.push("1", EMPTY, &both);
    let (registry, shelf) = start(shelf).await;
    let uri = format!("oci+http://{registry}/models/digits:1");
    let place = Place::new();
    let fetched = place.fetch(&uri, None).await.unwrap();
    assert_eq!(
        (fetched.digest.as_str(), fetched.bytes, fetched.companions[0].as_str()),
        (&*digest, 2860, "external.bin")
    );
    fetched.check_unchanged().unwrap();
    assert_eq!(std::fs::read(fetched.path.with_file_name("external.bin")).unwrap(), file("external.bin"));
    assert_eq!(shelf.lock().unwrap().asked.len(), 3, "what the model does not name is not fetched");

    // The tag moves; who is bound to the digest is not led astray, and who is not sees the new model.
    let moved = shelf.lock().unwrap().push("1", EMPTY, &[(FILE, None, bytes())]);
    assert_eq!(place.fetch(&uri, Some(&digest)).await.unwrap().bytes, 2860);
    let at = format!("oci+http://{registry}/models/digits@sha256:{digest}");
    assert_eq!(place.fetch(&at, None).await.unwrap().digest, digest);
    assert_eq!(place.fetch(&uri, None).await.unwrap().digest, moved);

    shelf.lock().unwrap().manifests.clear();
    let failure = Place::new().fetch(&uri, Some(&digest)).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::SourceNotFound);
    assert!(failure.message.contains(&format!("there is no {registry}/models/digits:1")), "{}", failure.message);
}

#[tokio::test]
async fn what_was_fetched_is_found_again_by_its_manifest_and_nothing_else_in_its_place_is() {
    let mut shelf = Shelf::default();
    let both =
        [(FILE, Some("external.onnx"), file("external.onnx")), (FILE, Some("external.bin"), file("external.bin"))];
    let digest = shelf.push("1", EMPTY, &both);
    let one = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{digest}"), "size": 1});
    let list = shelf.put("list", &json!({"schemaVersion": 2, "manifests": [one]}));
    let single = shelf.push("single", EMPTY, &[(FILE, None, bytes())]);
    let (registry, shelf) = start(shelf).await;
    for (tag, digest, files) in [("1", &digest, 2), ("list", &list, 2), ("single", &single, 1)] {
        let place = Place::new();
        let uri = format!("oci+http://{registry}/models/digits:{tag}");
        let first = place.fetch(&uri, None).await.unwrap();
        let before = shelf.lock().unwrap().asked.len();
        let again = place.fetch(&uri, Some(digest)).await.unwrap();
        assert_eq!((&again.digest, &again.path, again.bytes), (&first.digest, &first.path, first.bytes), "{tag}");
        again.check_unchanged().unwrap();
        assert_eq!(shelf.lock().unwrap().asked.len(), before, "{tag}: nobody is asked");
        let folder = first.path.parent().unwrap();
        for spoiled in
            [folder.join(".manifest-0.json"), folder.join(if files > 1 { "external.bin" } else { "model.onnx" })]
        {
            let mut bytes = std::fs::read(&spoiled).unwrap();
            bytes.push(b' ');
            std::fs::write(&spoiled, bytes).unwrap();
            place.fetch(&uri, Some(digest)).await.unwrap().check_unchanged().unwrap();
            let asked = std::mem::take(&mut shelf.lock().unwrap().asked);
            assert!(asked.len() > files, "{tag}: fetched again: {asked:?}");
        }
    }
}

#[tokio::test]
async fn archives_and_lists_of_one_manifest_are_taken_too() {
    let mut shelf = Shelf::default();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes().len() as u64);
    archive.append_data(&mut header, "digits/model.onnx", &bytes()[..]).unwrap();
    let archive = archive.into_inner().unwrap();
    let layers = [
        ("application/vnd.cncf.model.weight.v1.tar", None, archive),
        ("application/vnd.cncf.model.doc.v1.tar", None, b"no archive at all".to_vec()),
    ];
    let digest = shelf.push("packed", "application/vnd.cncf.model.config.v1+json", &layers);
    let one = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{digest}"), "size": 1});
    let list = shelf.put("list", &json!({"schemaVersion": 2, "manifests": [one]}));
    shelf.put("lists", &json!({"schemaVersion": 2, "manifests": [one, one]}));
    let (registry, _) = start(shelf).await;
    for (tag, known) in [("packed", &digest), ("list", &list)] {
        let fetched = Place::new().fetch(&format!("oci+http://{registry}/models/digits:{tag}"), None).await.unwrap();
        assert_eq!(&fetched.digest, known);
        assert!(fetched.path.ends_with(format!("{DIGEST}.onnx")) && fetched.bytes == 5054);
    }
    let failure = Place::new().fetch(&format!("oci+http://{registry}/models/digits:lists"), None).await.unwrap_err();
    assert!(failure.message.contains("a list of 2 manifests"), "{}", failure.message);
}

#[tokio::test]
async fn a_closed_registry_is_shown_a_token_for_the_password_of_the_secret() {
    let mut shelf = Shelf { is_closed: true, ..Shelf::default() };
    shelf.push("1", EMPTY, &[(FILE, None, bytes())]);
    let (registry, _) = start(shelf).await;
    let uri = format!("oci+http://{registry}/models/digits:1");
    let packed = BASIC.trim_start_matches("Basic ");
    let docker =
        |host: &str| json!({"auths": {host: {"auth": packed}, "other.example.com": {"auth": packed}}}).to_string();
    let (mine, others) = (docker(&registry), docker("mine.example.com"));
    for keys in [&[("username", "ml"), ("password", "hush-hush")][..], &[(".dockerconfigjson", &mine)]] {
        assert_eq!(Place::with(keys).fetch(&uri, None).await.unwrap().bytes, 5054);
    }
    for (keys, reason, words) in [
        (&[("username", "ml"), ("password", "hush")][..], FailureReason::SourceForbidden, "does not let in those"),
        (&[(".dockerconfigjson", &others)], FailureReason::CredentialsInvalid, "it has some for: "),
        (&[(".dockerconfigjson", "hush")], FailureReason::CredentialsInvalid, "docker-registry"),
    ] {
        let failure = Place::with(keys).fetch(&uri, None).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{}", failure.message);
        assert!(failure.message.contains(words) && !failure.message.contains("hush"), "{}", failure.message);
    }
    let failure = Place::new().fetch(&uri, None).await.unwrap_err();
    assert!(failure.message.contains("kubernetes.io/dockerconfigjson"), "{}", failure.message);
}

#[tokio::test]
async fn a_registry_that_is_not_to_be_trusted_changes_nothing() {
    let mut shelf = Shelf::default();
    let digest = shelf.push("1", EMPTY, &[(FILE, None, bytes())]);
    let layer = format!("sha256:{DIGEST}");
    shelf.blobs.insert(layer, b"other bytes".to_vec());
    shelf.push("image", "application/vnd.oci.image.config.v1+json", &[(FILE, None, bytes())]);
    shelf.manifests.insert("text".to_owned(), b"hello".to_vec());
    let long = shelf.push("long", EMPTY, &[(FILE, None, vec![0; 2 << 20])]);
    shelf.manifests.insert(format!("sha256:{}", "0".repeat(64)), shelf.manifests["1"].clone());
    let (registry, shelf) = start(shelf).await;
    let at = |tag: &str| format!("oci+http://{registry}/models/digits:{tag}");
    let zeros = "0".repeat(64);
    shelf.lock().unwrap().blobs.insert(format!("sha256:{DIGEST}"), b"other bytes".to_vec());
    for (tag, sha256, reason, words) in [
        ("1", None, FailureReason::DigestMismatch, "other bytes for a layer"),
        ("1", Some(digest.as_str()), FailureReason::DigestMismatch, "other bytes for a layer"),
        ("1", Some(zeros.as_str()), FailureReason::SourceInvalid, "another manifest"),
        ("image", None, FailureReason::SourceInvalid, "container image"),
        ("text", None, FailureReason::SourceInvalid, "its manifest is not one"),
        ("long", Some(long.as_str()), FailureReason::ModelTooLarge, "larger than"),
        ("none", None, FailureReason::SourceNotFound, "404"),
    ] {
        let place = Place::new();
        let failure = place.fetch(&at(tag), sha256).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{tag}: {}", failure.message);
        assert!(failure.message.contains(words), "{tag}: {}", failure.message);
        assert!(place.files().is_empty(), "{tag}: {:?}", place.files());
    }
}

/// A hub with one repository: its files lie on another host, as the real one's do.
async fn hub() -> String {
    let store = serve(Router::new().route(
        "/lfs/{name}",
        get(|Path(name): Path<String>, headers: HeaderMap| async move {
            assert!(!headers.contains_key("authorization"), "the token is shown to the store of files");
            file(&name)
        }),
    ))
    .await;
    let commit = "c0ffee".repeat(6);
    let missing = |code: &'static str| (StatusCode::NOT_FOUND, [("x-error-code", code)]).into_response();
    let let_in = |headers: &HeaderMap| headers.get("authorization").is_some_and(|shown| shown == "Bearer hf_hush");
    let told = commit.clone();
    let revision = move |Path((name, revision)): Path<(String, String)>, headers: HeaderMap| async move {
        match (name.as_str(), revision.as_str()) {
            ("digits", "main" | "v1") => axum::Json(json!({"id": "org/digits", "sha": told})).into_response(),
            ("digits", _) => missing("RevisionNotFound"),
            ("gated", _) if !let_in(&headers) => {
                (StatusCode::UNAUTHORIZED, [("x-error-code", "GatedRepo")]).into_response()
            }
            ("gated", _) => axum::Json(json!({"sha": told})).into_response(),
            _ => (StatusCode::UNAUTHORIZED, [("x-error-code", "RepoNotFound")]).into_response(),
        }
    };
    let resolve = move |Path((name, at, path)): Path<(String, String, String)>, headers: HeaderMap| async move {
        assert_eq!(at, commit, "all files are read at one commit");
        match path.as_str() {
            "onnx/external.onnx" | "onnx/external.bin" if name == "digits" || let_in(&headers) => {
                let to = format!("http://{store}/lfs/{}", path.trim_start_matches("onnx/"));
                (StatusCode::FOUND, [(header::LOCATION, to)]).into_response()
            }
            _ => missing("EntryNotFound"),
        }
    };
    let app = Router::new()
        .route("/api/models/org/{name}/revision/{revision}", get(revision))
        .route("/org/{name}/resolve/{commit}/{*path}", get(resolve));
    serve(app).await
}

#[tokio::test]
async fn a_repository_of_a_hub_is_read_at_one_commit_and_its_refusals_say_what_is_missing() {
    let endpoint = format!("http://{}", hub().await);
    let open = [("HF_ENDPOINT", endpoint.as_str())];
    let token = [open[0], ("HF_TOKEN", "hf_hush")];
    for (keys, uri) in [
        (&open[..], "hf://org/digits/onnx/external.onnx"),
        (&open, "hf://org/digits@v1/onnx/external.onnx"),
        (&token, "hf://org/gated/onnx/external.onnx"),
    ] {
        let fetched = Place::with(keys).fetch(uri, None).await.unwrap();
        assert_eq!((fetched.bytes, fetched.companions[0].as_str()), (2860, "external.bin"), "{uri}");
    }
    for (keys, uri, reason, words) in [
        (&open[..], "hf://org/digits@v2/onnx/external.onnx", FailureReason::SourceNotFound, "no revision 'v2'"),
        (
            &open,
            "hf://org/digits/other.onnx",
            FailureReason::SourceNotFound,
            "no file 'other.onnx' in repository 'org/digits'",
        ),
        (&open, "hf://org/gated/onnx/external.onnx", FailureReason::SourceForbidden, "the repository is gated"),
        (&open, "hf://org/none/m.onnx", FailureReason::SourceForbidden, "no such repository, or it is private"),
        (&token, "hf://org/none/m.onnx", FailureReason::SourceForbidden, "the owner of HF_TOKEN may not"),
        (
            &[open[0], ("HF_TOKENS", "hf_hush")],
            "hf://org/digits/m.onnx",
            FailureReason::CredentialsInvalid,
            "HF_TOKENS,",
        ),
        (&[("HF_ENDPOINT", "hub")], "hf://org/digits/m.onnx", FailureReason::CredentialsInvalid, "HF_ENDPOINT"),
    ] {
        let failure = Place::with(keys).fetch(uri, None).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{uri}: {}", failure.message);
        assert!(failure.message.contains(words) && !failure.message.contains("hush"), "{uri}: {}", failure.message);
    }
}
