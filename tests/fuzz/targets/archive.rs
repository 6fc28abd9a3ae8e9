//! Files that may be archives, as they come from anywhere: what is unpacked stays where it belongs.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ortolan_server::engine;
use ortolan_server::fetch::{Source, Wanted, fetch};
use tokio::runtime::Runtime;

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime")
    })
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

fuzz_target!(|content: &[u8]| {
    let place = tempfile::tempdir_in("/dev/shm").expect("room for a folder");
    let (file, cache) = (place.path().join("it"), place.path().join("cache"));
    fs::write(&file, content).expect("room for a file");
    fs::create_dir(&cache).expect("room for a folder");
    let wanted = Wanted::anything(&cache, 1 << 20, engine::data_files);
    match runtime().block_on(fetch(&Source::File(file.clone()), &wanted)) {
        Ok(fetched) => {
            assert!(fetched.path == file || fetched.path.starts_with(&cache));
            assert!(fetched.bytes <= 1 << 20);
            assert!(names(&cache).iter().all(|name| !name.starts_with('.')), "parts are left: {:?}", names(&cache));
        }
        Err(failure) => {
            assert!(!failure.message.is_empty() && !failure.message.contains("/dev/shm"), "{failure:?}");
            assert!(names(&cache).is_empty(), "something is left: {:?}", names(&cache));
        }
    }
    let mut outside = names(place.path());
    outside.sort();
    assert_eq!(outside, ["cache", "it"], "something was written elsewhere");
});
