//! docs/troubleshooting.md and the code name the same reasons.

use std::{collections::BTreeSet, fs};

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap_or_default()
}

/// What stands in quotation marks on the lines that `picks`.
fn quoted(text: &str, picks: impl Fn(&str) -> bool) -> BTreeSet<String> {
    text.lines().filter(|line| picks(line)).filter_map(|line| Some(line.split('"').nth(1)?.to_owned())).collect()
}

#[test]
fn every_reason_is_explained_and_nothing_else_is() {
    let conditions = read("src/api/conditions.rs");
    let (_, reasons) = conditions.split_once("pub mod reason {").unwrap();
    let mut named = quoted(reasons, |line| line.contains("pub const "));
    named.extend(quoted(&read("protocol/src/failure.rs"), |line| {
        line.trim_start().starts_with("Self::") && line.contains(" => \"")
    }));
    assert!(named.len() > 40, "the reasons are not found where they were: {named:?}");
    let page = read("docs/troubleshooting.md");
    let explained: BTreeSet<_> =
        page.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
    let missing: Vec<_> = named.difference(&explained).collect();
    let unknown: Vec<_> = explained.difference(&named).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md does not explain {missing:?}");
    assert!(unknown.is_empty(), "docs/troubleshooting.md explains {unknown:?}, which no condition has");
}
