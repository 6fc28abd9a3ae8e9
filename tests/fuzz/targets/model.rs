//! Files that are said to be models: what is looked at, and changed, before ONNX Runtime sees them.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use ortolan_server::engine;

fuzz_target!(|content: &[u8]| {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("room for a file");
    file.write_all(content).expect("room for a file");
    if let Err(failure) = engine::look_at(file.path(), &[]) {
        assert!(!failure.message.is_empty() && !failure.message.contains("/dev/shm"), "{failure:?}");
    }
});
