//! The committed gRPC code and descriptors are what `proto/inference.proto` generates.

use std::{env, fs, path::Path, process::Command};

/// The code, and the descriptors that reflection answers with.
const FILES: [&str; 2] = ["inference.rs", "inference.bin"];
/// What is told over REST, too: under the same names, as protobuf's JSON has them.
const IN_JSON: [&str; 12] = [
    "ModelConfig",
    "ModelInput",
    "ModelOutput",
    "ModelInstanceGroup",
    "ModelDynamicBatching",
    "ModelTransactionPolicy",
    "ModelStatistics",
    "ModelStatisticsResponse",
    "InferStatistics",
    "InferBatchStatistics",
    "StatisticDuration",
    "RepositoryIndexResponse.ModelIndex",
];

#[test]
fn the_generated_code_is_what_the_proto_file_says() {
    let protoc = env::var("PROTOC").unwrap_or_else(|_| "protoc".to_owned());
    assert!(
        Command::new(&protoc).arg("--version").output().is_ok(),
        "this test needs protoc (Debian: apt-get install protobuf-compiler, or set PROTOC)"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let mut build = tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".inference")
        .emit_rerun_if_changed(false)
        .file_descriptor_set_path(out.path().join(FILES[1]))
        .field_attribute("data_type", "#[serde(serialize_with = \"data_type_name\")]")
        .field_attribute("ModelInstanceGroup.kind", "#[serde(serialize_with = \"kind_name\")]")
        .field_attribute("ModelConfig.dynamic_batching", "#[serde(skip_serializing_if = \"Option::is_none\")]")
        .out_dir(out.path());
    for message in IN_JSON {
        build = build.type_attribute(format!(".inference.{message}"), "#[derive(serde::Serialize)]");
    }
    build.compile_protos(&[root.join("proto/inference.proto")], &[root.join("proto")]).unwrap();
    for file in FILES {
        let generated = fs::read(out.path().join(file)).unwrap();
        let committed = root.join("src/generated").join(file);
        if env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&committed, &generated).unwrap();
        }
        assert!(
            fs::read(&committed).unwrap_or_default() == generated,
            "src/generated/{file} is out of date: UPDATE_GENERATED=1 cargo test -p ortolan-protocol --all-features --test generated"
        );
    }
}
