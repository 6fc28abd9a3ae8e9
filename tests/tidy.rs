//! What no compiler and no lint checks: the direction of dependencies between rooms, and their sizes.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each room of the operator and what it may use of the crate, besides itself.
const ROOMS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("scale", &["api"]),
    ("rollout", &["api"]),
    ("render", &["api"]),
    ("status", &["api", "scale", "rollout", "render"]),
    ("traces", &["trace_span"]),
    ("metrics", &["trace_span"]),
    ("operations", &["metrics"]),
    ("observe", &["api", "metrics", "scale"]),
    ("cluster", &["api", "metrics", "operations", "status"]),
    (
        "controller",
        &["api", "scale", "rollout", "render", "status", "observe", "cluster", "metrics", "operations", "trace_span"],
    ),
];

/// Rooms without clock, client or runtime.
const PURE: &[&str] = &["api", "scale", "rollout", "render", "status"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

fn files_of(room: &str) -> Vec<PathBuf> {
    let mut files = rust_files(&root().join("src").join(room));
    files.extend(Some(root().join(format!("src/{room}.rs"))).filter(|file| file.exists()));
    assert!(!files.is_empty(), "there is no room {room}");
    files
}

/// The names that follow `crate::` in a file, those in braces included.
fn used(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in text.split("crate::").skip(1) {
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut word) = (1, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => names.push(std::mem::take(&mut word)),
                    c if depth == 1 => word.push(c),
                    _ => {}
                }
                if depth == 0 {
                    names.push(word);
                    break;
                }
            }
        } else {
            names.push(rest.to_owned());
        }
    }
    let first =
        |name: &String| name.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned();
    names.iter().map(first).filter(|name| !name.is_empty()).collect()
}

#[test]
fn rooms_use_only_what_they_may() {
    for (room, allowed) in ROOMS {
        for file in files_of(room) {
            for name in used(&fs::read_to_string(&file).unwrap()) {
                assert!(
                    name == *room || allowed.contains(&name.as_str()),
                    "{} uses crate::{name}; {room} may use only {allowed:?}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn every_room_is_known() {
    for file in rust_files(&root().join("src")) {
        let inside = file.strip_prefix(root().join("src")).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        let known = ["main", "lib", "cli"].contains(&&*room) || ROOMS.iter().any(|(name, _)| *name == room);
        assert!(known, "{} is in no room that tests/tidy.rs knows", file.display());
    }
}

#[test]
fn pure_rooms_deny_clocks_and_clients() {
    for room in PURE {
        let module = root().join(format!("src/{room}/mod.rs"));
        let text = fs::read_to_string(&module).unwrap();
        let denial = "#![deny(clippy::disallowed_methods, clippy::disallowed_types)]";
        assert!(text.contains(denial), "{} does not hold {denial}", module.display());
        for file in files_of(room) {
            let text = fs::read_to_string(&file).unwrap();
            for word in ["tokio::", "tracing::", "kube::Client", "kube::Api", "std::fs", "std::net"] {
                assert!(!text.contains(word), "{} is in a pure room and uses {word}", file.display());
            }
        }
    }
}

#[test]
fn files_stay_small_enough_to_be_read() {
    for folder in ["src", "protocol/src", "inference-server/src", "tests"] {
        for file in rust_files(&root().join(folder)) {
            if file.components().any(|part| part.as_os_str() == "generated") {
                continue;
            }
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= 550, "{} has {lines} lines: it asks to be two rooms", file.display());
        }
    }
}
