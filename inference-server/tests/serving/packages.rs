//! Models of several files, in folders and in archives, and what hostile ones try.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use flate2::Compression;
use flate2::write::GzEncoder;
use ortolan_protocol::failure::{Failure, FailureReason};
use ortolan_server::fetch::Fetched;
use ortolan_server::inside::Inside;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::common::{serve, sha256, test_file as file};
use crate::sources::{DIGEST, Place};

/// What `sha256sum external.onnx external.bin | sha256sum` says.
const TOGETHER: &str = "bb49188ff11efdaf4d58a54ee11fbe904c07fffb9fd1b996333ae873774e01e1";

/// The model whose weights are in another file, and that file.
fn external() -> [(&'static str, Vec<u8>); 2] {
    ["external.onnx", "external.bin"].map(|name| (name, file(name)))
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = header(EntryType::Regular, content.len());
        archive.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn header(kind: EntryType, bytes: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::default());
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

fn zip(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Fetches an archive from a web server.
async fn fetched(place: &Place, archive: Vec<u8>) -> Result<Fetched, Failure> {
    let source = serve(Router::new().route("/m", get(|| async { archive }))).await;
    place.fetch(&format!("http://{source}/m"), None).await
}

async fn from_disk(place: &Place, path: &Path) -> Result<Fetched, Failure> {
    place.fetch(path.to_str().unwrap(), None).await
}

fn names(fetched: &Fetched) -> Vec<&str> {
    fetched.companions.iter().map(Inside::as_str).collect()
}

#[tokio::test]
async fn a_folder_is_served_from_where_it_lies_with_the_digest_that_sha256sum_tells() {
    let folder = folder(&external());
    for path in [folder.path().join("external.onnx"), folder.path().to_owned()] {
        let place = Place::new();
        let fetched = from_disk(&place, &path).await.unwrap();
        assert_eq!(
            (fetched.digest.as_str(), fetched.bytes, &names(&fetched)[..]),
            (TOGETHER, 2860, &["external.bin"][..])
        );
        assert_eq!(fetched.path, folder.path().join("external.onnx"));
        fetched.check_unchanged().unwrap();
        assert!(place.files().is_empty());
    }
    let fetched = from_disk(&Place::new(), folder.path()).await.unwrap();
    fs::write(folder.path().join("external.bin"), "changed").unwrap();
    assert_eq!(fetched.check_unchanged().unwrap_err().reason, FailureReason::DigestMismatch);
}

#[tokio::test]
async fn files_beside_a_model_come_from_the_web_with_it_and_are_found_in_the_cache_again() {
    let app = Router::new()
        .route("/a/external.onnx", get(|| async { file("external.onnx") }))
        .route("/a/external.bin", get(|| async { file("external.bin") }))
        .route("/b/external.onnx", get(|| async { file("external.onnx") }))
        .route("/c/external.onnx", get(|| async { file("external.onnx") }))
        .route("/c/external.bin", get(|| async { StatusCode::FORBIDDEN }));
    let source = serve(app).await;
    let (place, uri) = (Place::new(), format!("http://{source}/a/external.onnx"));
    let first = place.fetch(&uri, Some(TOGETHER)).await.unwrap();
    assert_eq!((first.digest.as_str(), names(&first)), (TOGETHER, vec!["external.bin"]));
    assert_eq!(place.files(), [TOGETHER]);
    let offline = "http://127.0.0.1:9/a/external.onnx";
    let again = place.fetch(offline, Some(TOGETHER)).await.unwrap();
    assert_eq!((&again.path, &again.digest, names(&again)), (&first.path, &first.digest, names(&first)));
    fs::write(first.path.with_file_name("external.bin"), "changed").unwrap();
    place.fetch(offline, Some(TOGETHER)).await.unwrap_err();
    place.fetch(&uri, Some(TOGETHER)).await.unwrap();

    // What is not there is missed when the model is loaded, by the name of the tensor; what is refused is told at once.
    let alone = Place::new().fetch(&format!("http://{source}/b/external.onnx"), None).await.unwrap();
    assert!(alone.companions.is_empty());
    let failure = Place::new().fetch(&format!("http://{source}/c/external.onnx"), None).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::SourceForbidden);
    let failure = Place::new().limited(2859).fetch(&uri, None).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::ModelTooLarge, "{}", failure.message);
}

#[tokio::test]
async fn a_model_is_taken_out_of_an_archive_with_what_belongs_to_it() {
    let beside = [external().to_vec(), vec![("README.md", b"read me".to_vec())]].concat();
    let below: Vec<_> = [("m/external.onnx", file("external.onnx")), ("m/external.bin", file("external.bin"))].into();
    for (archive, folder) in
        [(tar(&beside), ""), (gzip(&tar(&beside)), ""), (zip(&beside), ""), (tar(&below), "m/"), (zip(&below), "m/")]
    {
        let digest = sha256(&archive);
        let on_disk = tempfile::NamedTempFile::new().unwrap();
        fs::write(on_disk.path(), &archive).unwrap();
        let place = Place::new();
        for fetched in [fetched(&place, archive).await.unwrap(), from_disk(&place, on_disk.path()).await.unwrap()] {
            assert_eq!(
                (&fetched.digest, fetched.bytes),
                (&digest, 2860),
                "the archive's digest is the one that is known"
            );
            assert_eq!(names(&fetched), ["external.bin"]);
            assert!(fetched.path.ends_with(format!("{TOGETHER}/{folder}external.onnx")), "{:?}", fetched.path);
            fetched.check_unchanged().unwrap();
        }
    }
    let place = Place::new();
    let alone = fetched(&place, tar(&[("a/net.ONNX", file("mlp.onnx")), ("b.txt", vec![])])).await.unwrap();
    assert_eq!(place.files(), [format!("{DIGEST}.onnx")], "a model in one file stays one");
    assert_eq!(fs::read(&alone.path).unwrap(), file("mlp.onnx"));
}

/// A tar with one entry of a kind that leads elsewhere.
fn link(kind: EntryType, target: &str) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    archive.append_link(&mut header(kind, 0), "external.bin", target).unwrap();
    let model = file("external.onnx");
    archive.append_data(&mut header(EntryType::Regular, model.len()), "external.onnx", model.as_slice()).unwrap();
    archive.into_inner().unwrap()
}

/// A tar whose entry has a name that the builder would not write.
fn named(name: &str) -> Vec<u8> {
    let mut header = header(EntryType::Regular, 1);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    let mut archive = Builder::new(Vec::new());
    archive.append(&header, &b"x"[..]).unwrap();
    archive.into_inner().unwrap()
}

#[tokio::test]
async fn hostile_archives_are_refused_whole_and_leave_nothing() {
    let mlp = || file("mlp.onnx");
    let twice = tar(&[("m.onnx", mlp()), ("m.onnx", mlp())]);
    let shadowed = tar(&[("m", mlp()), ("m/m.onnx", mlp())]);
    let half = zip(&[("m.onnx", mlp())]);
    let cases = [
        (named("../m.onnx"), "'../m.onnx' leads out"),
        (named("/etc/m.onnx"), "'/etc/m.onnx' leads out"),
        (zip(&[("a/../../m.onnx", mlp())]), "leads out"),
        (zip(&[("..\\m.onnx", mlp())]), "leads out"),
        (link(EntryType::Symlink, "/etc/passwd"), "'external.bin' is neither a file nor a folder"),
        (link(EntryType::Link, "/etc/passwd"), "'external.bin' is neither a file nor a folder"),
        (link(EntryType::Char, "/dev/null"), "'external.bin' is neither a file nor a folder"),
        (twice, "'m.onnx' is there twice"),
        (shadowed, "'m/m.onnx' is there twice"),
        (half[..half.len() / 2].to_vec(), "damaged or cut off"),
        (gzip(&tar(&[("m.onnx", mlp())]))[..3000].to_vec(), "damaged or cut off"),
        (tar(&[("a.onnx", mlp()), ("b.onnx", mlp())]), "several .onnx files ('a.onnx', 'b.onnx')"),
        (zip(&[("archive/data.pkl", vec![]), ("archive/version", vec![])]), "a Python pickle"),
        (zip(&[("model/saved_model.pb", vec![])]), "a TensorFlow SavedModel"),
        (tar(&[("notes.txt", vec![])]), "there is only 'notes.txt'"),
    ];
    for (archive, words) in cases {
        let place = Place::new();
        let failure = fetched(&place, archive).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::ModelInvalid, "{words}: {}", failure.message);
        assert!(failure.message.contains(words), "{words}: {}", failure.message);
        assert!(place.files().is_empty(), "{words}: {:?}", place.files());
    }
}

#[tokio::test]
async fn archives_that_grow_beyond_the_limit_are_left() {
    let zeros = vec![0; 4 << 20];
    let many: Vec<(String, Vec<u8>)> = (0..10_001).map(|number| (format!("{number}"), vec![])).collect();
    let many: Vec<_> = many.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    for (archive, reason) in [
        (gzip(&tar(&[("m.onnx", zeros.clone())])), FailureReason::ModelTooLarge),
        (zip(&[("m.onnx", zeros.clone())]), FailureReason::ModelTooLarge),
        // What is left out is inflated all the same.
        (gzip(&tar(&[("m.pkl", zeros.clone()), ("m.onnx", file("mlp.onnx"))])), FailureReason::ModelTooLarge),
        (gzip(&tar(&many)), FailureReason::ModelTooLarge),
        (zip(&many), FailureReason::ModelInvalid),
    ] {
        let place = Place::new().limited(if reason == FailureReason::ModelInvalid { 4 << 20 } else { 1 << 20 });
        let failure = fetched(&place, archive).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{}", failure.message);
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

#[tokio::test]
async fn links_beside_a_model_are_not_followed() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), file("external.bin")).unwrap();
    let folder = folder(&external()[..1]);
    let beside = folder.path().join("external.bin");
    let refused = async |words: &str| {
        let failure = from_disk(&Place::new(), folder.path()).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::SourceInvalid, "{}", failure.message);
        assert!(failure.message.contains(words) && failure.message.contains("'external.bin'"), "{}", failure.message);
    };
    std::os::unix::fs::symlink(secret.path(), &beside).unwrap();
    refused("a link").await;
    fs::remove_file(&beside).unwrap();
    fs::hard_link(secret.path(), &beside).unwrap();
    refused("another name elsewhere").await;
    fs::remove_file(&beside).unwrap();
    fs::create_dir(&beside).unwrap();
    refused("not a file").await;
}
