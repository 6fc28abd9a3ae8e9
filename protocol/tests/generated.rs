//! The committed gRPC code is what `proto/inference.proto` generates.

use std::{env, fs, path::Path, process::Command};

const FILE: &str = "inference.rs";

#[test]
fn the_generated_code_is_what_the_proto_file_says() {
    let protoc = env::var("PROTOC").unwrap_or_else(|_| "protoc".to_owned());
    assert!(
        Command::new(&protoc).arg("--version").output().is_ok(),
        "this test needs protoc (Debian: apt-get install protobuf-compiler, or set PROTOC)"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".inference")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_protos(&[root.join("proto/inference.proto")], &[root.join("proto")])
        .unwrap();
    let generated = fs::read_to_string(out.path().join(FILE)).unwrap();
    let committed = root.join("src/generated").join(FILE);
    if env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    assert!(
        fs::read_to_string(&committed).unwrap_or_default() == generated,
        "src/generated/{FILE} is out of date: UPDATE_GENERATED=1 cargo test -p ortolan-protocol --all-features --test generated"
    );
}
