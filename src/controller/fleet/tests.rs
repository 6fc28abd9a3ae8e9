//! What is remembered from look to look, with pods and statistics as they come.

use std::time::Duration;

use ortolan_protocol::stats::{BatchCell, Phase};
use serde_json::json;

use super::*;
use crate::api::ModelDeployment;

fn model() -> DesiredModel {
    let object: ModelDeployment = serde_json::from_value(json!({
        "apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": "digits", "namespace": "ml", "uid": "0b51"},
        "spec": {"model": {"uri": "file:///m.onnx"}, "scaling": {"maxReplicas": 4, "latency": {"target": "1s"}}},
    }))
    .unwrap();
    DesiredModel::parse(&object).unwrap()
}

/// A pod that was ready so many seconds after it was made, or is not ready.
fn pod(uid: &str, ready_after: Option<u32>) -> Arc<PodFacts> {
    Arc::new(PodFacts {
        uid: uid.into(),
        revision: "a".into(),
        address: None,
        alive: true,
        ready: ready_after.is_some(),
        cold_start: ready_after.map(f64::from),
    })
}

fn subject() -> Subject {
    let model = model();
    Subject { uid: model.uid, scaling: model.scaling, previous: Some(1), hopeless: None }
}

/// What a server tells that has answered `completed` requests, of 10 ms each, when it was up for `uptime` seconds.
fn stats(uptime: f64, completed: u64) -> Stats {
    let mut stats = Stats {
        instance: "one".into(),
        digest: Some("00ff".into()),
        phase: Phase::Ready,
        uptime_seconds: uptime,
        cpus: 1.0,
        rows_arrived: completed,
        max_batch_rows: 8,
        batches: vec![BatchCell {
            limit: 1,
            count: completed + 1,
            rows: completed + 1,
            seconds: 0.01 * (completed + 1) as f64,
        }],
        ..Stats::default()
    };
    stats.requests.admitted = completed;
    (0..completed).for_each(|_| stats.latency.record(0.01));
    stats
}

/// Pods that were asked, and those of them that said something.
fn looked(pods: &[Arc<PodFacts>], told: Vec<(&str, Stats)>) -> Look {
    let mut told: HashMap<_, _> = told.into_iter().collect();
    let mut answer = |uid: &str| told.remove(uid).map_or(Answer::Silence, |stats| Answer::Told(Box::new(stats)));
    let pods = pods.iter().map(|pod| PodLook { pod: pod.clone(), answer: answer(&pod.uid) });
    Look { pods: pods.collect(), missing: 0, rolling_out: false }
}

fn look(fleet: &Fleet, pods: &[Arc<PodFacts>], told: Vec<(&str, Stats)>, now: f64) -> Looked {
    fleet.look(&subject(), looked(pods, told), now)
}

fn observation(fleet: &Fleet, pods: &[Arc<PodFacts>], now: f64) -> Observation {
    fleet.lock()["0b51"].observation(&looked(pods, vec![]), now)
}

#[test]
fn a_new_digest_wakes_a_reconcile_and_is_known_by_pod() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    assert!(look(&fleet, &pods, vec![("p", stats(1.0, 0))], 1.0).due);
    assert_eq!(fleet.view(&model(), Some(1), 1.0).digests["p"], "00ff");
}

#[test]
fn what_is_read_and_not_loaded_binds_nobody() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    let loading = Stats { phase: Phase::Loading, digest: Some("bad0".into()), ..stats(1.0, 0) };
    assert!(look(&fleet, &pods, vec![("p", loading)], 1.0).due, "it is shown");
    let view = fleet.view(&model(), Some(1), 1.0);
    assert_eq!((view.digests.get("p"), view.read["p"].as_str()), (None, "bad0"));
    assert!(fleet.unknown("0b51", &pods).contains("p"), "it is asked again until it has loaded");
    // The next process found other bytes, and those are a model.
    assert!(look(&fleet, &pods, vec![("p", stats(1.0, 0))], 2.0).due);
    let view = fleet.view(&model(), Some(1), 2.0);
    assert_eq!((view.digests["p"].as_str(), view.read.get("p")), ("00ff", None));
    assert!(fleet.unknown("0b51", &pods).is_empty());
}

#[test]
fn the_same_bytes_wake_a_reconcile_once_more_when_they_are_loaded() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    look(&fleet, &pods, vec![("p", Stats { phase: Phase::Loading, ..stats(1.0, 0) })], 1.0);
    assert!(look(&fleet, &pods, vec![("p", stats(2.0, 0))], 2.0).due);
}

#[test]
fn the_first_look_at_a_server_brings_its_warm_up_and_the_second_its_work() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    look(&fleet, &pods, vec![("p", stats(1.0, 5))], 1.0);
    let first = observation(&fleet, &pods, 1.0);
    assert_eq!((first.pods.len(), first.unheard, first.first_batches.len()), (0, 1, 1));
    look(&fleet, &pods, vec![("p", stats(2.0, 25))], 2.0);
    let second = observation(&fleet, &pods, 2.0);
    assert_eq!((second.pods[0].rows_arrived, second.unheard, second.first_batches.len()), (20, 0, 0));
}

#[test]
fn a_server_that_misses_a_look_is_unheard_and_later_silent() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    look(&fleet, &pods, vec![("p", stats(1.0, 0))], 1.0);
    look(&fleet, &pods, vec![("p", stats(2.0, 9))], 2.0);
    let missed = observation(&fleet, &pods, 3.0);
    assert_eq!((missed.pods.len(), missed.unheard, missed.silent), (0, 1, 0));
    let later = observation(&fleet, &pods, 6.0);
    assert_eq!((later.unheard, later.silent), (0, 1));
}

#[test]
fn nonsense_is_silence() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    look(&fleet, &pods, vec![("p", stats(1.0, 10))], 1.0);
    look(&fleet, &pods, vec![("p", stats(2.0, 3))], 2.0);
    assert_eq!(observation(&fleet, &pods, 2.0).silent, 1, "counters went backwards without a restart");
}

#[test]
fn a_cold_start_is_measured_once_and_only_by_who_saw_it() {
    let fleet = Fleet::default();
    look(&fleet, &[pod("old", Some(50))], vec![], 1.0);
    assert_eq!(observation(&fleet, &[], 1.0).cold_start, None, "ready before the first look: since when is not known");
    look(&fleet, &[pod("old", Some(50)), pod("new", None)], vec![], 2.0);
    look(&fleet, &[pod("old", Some(50)), pod("new", Some(7))], vec![], 3.0);
    look(&fleet, &[pod("old", None), pod("new", None)], vec![], 4.0);
    look(&fleet, &[pod("old", Some(59)), pod("new", Some(58))], vec![], 5.0);
    assert_eq!(observation(&fleet, &[], 5.0).cold_start, Some(7.0), "faltering is no start");
}

#[test]
fn numbers_are_written_when_they_move_and_taken_back_when_nobody_tells_any() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    look(&fleet, &pods, vec![("p", stats(1.0, 0))], 1.0);
    look(&fleet, &pods, vec![("p", stats(2.0, 100))], 2.0);
    let change = fleet.view(&model(), Some(1), 2.0).numbers;
    assert!(matches!(change, Change::Write(numbers) if (numbers.throughput - 100.0).abs() < 1.0), "{change:?}");
    fleet.written("0b51", change, 2.0);
    assert_eq!(fleet.view(&model(), Some(1), 3.0).numbers, Change::Keep);
    for second in 3..15 {
        look(&fleet, &pods, vec![], f64::from(second));
    }
    assert_eq!(fleet.view(&model(), Some(1), 14.0).numbers, Change::Clear);
}

#[test]
fn numbers_of_servers_that_were_not_asked_are_reckoned_from_the_others() {
    let (fleet, pods) = (Fleet::default(), ["p", "q", "r", "s"].map(|uid| pod(uid, Some(2))));
    for second in 1..=2u32 {
        let mut look = looked(&pods, vec![("p", stats(f64::from(second), u64::from(second) * 100))]);
        look.pods[1..].iter_mut().for_each(|look| look.answer = Answer::NotAsked);
        fleet.look(&subject(), look, f64::from(second));
    }
    let change = fleet.view(&model(), Some(1), 2.0).numbers;
    assert!(matches!(change, Change::Write(numbers) if (numbers.throughput - 400.0).abs() < 1.0), "{change:?}");
    let mut look = looked(&pods, vec![]);
    look.pods.iter_mut().for_each(|look| look.answer = Answer::NotAsked);
    assert_eq!(fleet.lock()["0b51"].observation(&look, 2.0).silent, 0, "who was not asked is not silent");
}

#[test]
fn a_model_is_lively_while_there_are_requests_or_news_and_calm_after() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    let quiet = |second: u32| look(&fleet, &pods, vec![("p", stats(f64::from(second), 100))], f64::from(second));
    assert!(look(&fleet, &pods, vec![("p", stats(1.0, 0))], 1.0).lively, "a first look");
    assert!(look(&fleet, &pods, vec![("p", stats(2.0, 100))], 2.0).lively, "requests");
    let ends = (3..200).find(|second| {
        let looked = quiet(*second);
        fleet.written("0b51", fleet.view(&model(), Some(1), f64::from(*second)).numbers, f64::from(*second));
        !looked.lively
    });
    assert_eq!(ends, Some(92));
    let silent = |second: u32| look(&fleet, &pods, vec![], f64::from(second));
    assert!(silent(200).lively, "a silence is news");
    assert!((201..300).any(|second| !silent(second).lively), "and then it is none any more");
}

#[test]
fn words_that_change_for_a_moment_are_not_shown() {
    let (fleet, pods) = (Fleet::default(), [pod("p", Some(2))]);
    for second in 1..=3 {
        look(&fleet, &pods, vec![("p", stats(f64::from(second), 10))], f64::from(second));
    }
    let shown = fleet.view(&model(), Some(1), 3.0).decision.unwrap();
    for second in 4..=8 {
        look(&fleet, &pods, vec![], f64::from(second));
    }
    assert_eq!(fleet.view(&model(), Some(1), 8.0).decision, Some(shown), "silent for a moment");
    for second in 9..=15 {
        look(&fleet, &pods, vec![], f64::from(second));
    }
    assert_eq!(fleet.view(&model(), Some(1), 15.0).decision.unwrap().cause, Cause::Silent);
}

#[test]
fn a_status_that_was_written_holds_until_the_cache_has_a_newer_one() {
    let fleet = Fleet::default();
    let status = ModelDeploymentStatus { replicas: 7, ..ModelDeploymentStatus::default() };
    fleet.reported("0b51", ("41", Some("42".into())), ModelDeploymentStatus::default(), 1.0);
    fleet.reported("0b51", ("41", Some("43".into())), status.clone(), 2.0);
    assert_eq!((fleet.reported_ago("0b51", 5.0), fleet.reported_ago("another", 5.0)), (Some(3.0), None));
    for older in ["41", "42"] {
        assert_eq!(fleet.reported_over("0b51", older).map(|reported| reported.status), Some(status.clone()));
    }
    assert_eq!(fleet.reported_over("0b51", "43"), None);
    assert_eq!(fleet.reported_over("0b51", "41"), None, "forgotten since");
}

#[test]
fn a_new_operator_begins_with_the_number_that_status_tells_inside_the_bounds() {
    let fleet = Fleet::default();
    assert_eq!(fleet.view(&model(), Some(3), 0.0).desired, 3);
    assert_eq!(fleet.view(&model(), Some(9), 0.0).desired, 4);
    assert_eq!(fleet.view(&model(), None, 0.0).desired, 1);
    assert!(matches!(model().scaling, ScalingGoal::Latency { batch_delay: Duration::ZERO, .. }));
}
