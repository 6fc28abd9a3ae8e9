//! Models as they are loaded: which are refused and why, and which are run in batches.

use std::path::Path;
use std::sync::Arc;

use ortolan_protocol::failure::{Failure, FailureReason};
use ortolan_server::fetch::Fetched;
use ortolan_server::load::Plan;
use ortolan_server::serving::Model;
use ortolan_server::stats::Counters;
use ortolan_server::{engine, load};

use crate::common::{config, fetched, model, runtime_library};

async fn loaded(path: &Path) -> Result<Model, Failure> {
    load_fetched(fetched(path).await).await
}

async fn load_fetched(fetched: Fetched) -> Result<Model, Failure> {
    engine::initialize(&runtime_library()).unwrap();
    let config = config("mlp", &[]);
    load::load(fetched, Plan::from(&config), Arc::new(Counters::default())).await
}

#[tokio::test]
async fn models_that_cannot_be_served_are_refused_with_the_reason() {
    for (name, reason, words) in [
        ("refused-sequence", FailureReason::ModelUnsupported, "'y' is a sequence, and"),
        ("refused-operator", FailureReason::ModelUnsupported, "Frobnicate"),
        ("refused-opset", FailureReason::ModelUnsupported, "Opset 99"),
        ("refused-external", FailureReason::ModelInvalid, "'w' in '../../etc/weights.bin', which is no file below"),
        ("refused-external-attribute", FailureReason::ModelInvalid, "'w' in '../../etc/weights.bin', which is no file"),
        ("refused-graph", FailureReason::ModelInvalid, "'missing'"),
    ] {
        let failure = loaded(&model(name)).await.err().unwrap();
        assert_eq!(failure.reason, reason, "{name}: {}", failure.message);
        assert!(failure.message.contains(words), "{name}: {}", failure.message);
        assert!(
            !failure.message.contains("/models/") && !failure.message.contains("onnxruntime_src"),
            "{}",
            failure.message
        );
    }
}

#[tokio::test]
async fn files_that_are_no_models_or_damaged_ones_are_refused() {
    let whole = std::fs::read(model("mlp")).unwrap();
    let cases: [(&[u8], &str); 3] =
        [(b"hello", "starts with text"), (&whole[..whole.len() / 2], "cut off"), (b"", "empty")];
    for (bytes, words) in cases {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let failure = loaded(file.path()).await.err().unwrap();
        assert_eq!(failure.reason, FailureReason::ModelInvalid);
        assert!(failure.message.contains(words), "{}", failure.message);
    }
}

#[tokio::test]
async fn a_model_with_any_byte_flipped_is_served_or_refused_but_breaks_nothing() {
    let whole = std::fs::read(model("classifier")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for position in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[position] ^= 0x41;
        std::fs::write(file.path(), &damaged).unwrap();
        if let Err(failure) = loaded(file.path()).await {
            assert!(!failure.message.contains(file.path().to_str().unwrap()), "{}", failure.message);
        }
    }
}

#[tokio::test]
async fn only_models_that_give_a_row_for_each_row_are_run_in_batches() {
    for (name, expected) in [
        ("mlp", true),
        ("add", true),
        ("classifier", true),
        ("types", true),
        ("sequence", true),
        ("fixed", false),
        ("scalar", false),
        ("cross", false),
        ("nonzero", false),
    ] {
        assert_eq!(loaded(&model(name)).await.unwrap().has_rows, expected, "{name}");
    }
}

#[tokio::test]
async fn a_model_that_is_replaced_between_its_digest_and_its_loading_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::copy(model("mlp"), &path).unwrap();
    let fetched = fetched(&path).await;
    std::fs::copy(model("add"), &path).unwrap();
    let failure = load_fetched(fetched).await.err().unwrap();
    assert_eq!(failure.reason, FailureReason::DigestMismatch, "{}", failure.message);
}
