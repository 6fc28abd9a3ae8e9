//! What the operator makes of pods as a real cluster showed them: tests/problems/*.yaml were captured by
//! tests/e2e/test_failures.py with CAPTURE=tests/problems.

use std::{fmt::Write, fs, path::PathBuf};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Event, Pod},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use ortolan::{
    observe::seen::is_alive,
    status::problems::{Problem, Sight, digest, is_late, root_cause},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Captured {
    now: Time,
    pods: Vec<Pod>,
    deployment: Deployment,
    events: Vec<Event>,
}

#[test]
fn each_captured_pod_leads_to_its_problem() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/problems");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() > 20, "the captured pods are not where they were");
    let mut text = String::new();
    for file in files {
        let captured: Captured = serde_yaml::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let name = file.file_stem().unwrap().to_string_lossy();
        writeln!(text, "{name}{}", said(&captured)).unwrap();
    }
    insta::assert_snapshot!(text);
}

fn said(captured: &Captured) -> String {
    let (alive, ended): (Vec<_>, Vec<_>) = captured.pods.iter().partition(|pod| is_alive(pod));
    let sight = Sight {
        deployment: Some(&captured.deployment),
        pods: &alive,
        ended: &ended,
        events: &captured.events,
        previous: &[],
        now: captured.now.0,
    };
    let late = if is_late(&captured.deployment) { ", late" } else { "" };
    let digest = digest(&sight).map(|digest| format!(", digest {digest}")).unwrap_or_default();
    let Some(Problem { reason, message, stage, permanent }) = root_cause(&sight) else {
        return format!("{late}{digest}: no problem\n");
    };
    format!("{late}{digest}: {reason}, {stage:?}, permanent: {permanent}\n  {message}\n")
}
