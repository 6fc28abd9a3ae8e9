//! Situations and the status they lead to, as a person reads it.

use std::fmt::Write;

use super::*;
use crate::{
    api::{ModelDeployment, conditions},
    scale::{Cause, Limit},
    status::problems::Stage,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn model(scaling: &serde_json::Value) -> DesiredModel {
    let object: ModelDeployment = serde_json::from_value(serde_json::json!({
        "apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": "digits", "namespace": "ml", "uid": "0b51", "generation": 3},
        "spec": {"model": {"uri": "file:///m.onnx"}, "scaling": scaling},
    }))
    .unwrap();
    DesiredModel::parse(&object).unwrap()
}

struct Situation {
    model: DesiredModel,
    previous: ModelDeploymentStatus,
    rollout: rollout::Plan,
    revisions: BTreeMap<String, RevisionFacts>,
    decision: Option<Decision>,
    apply_error: Option<String>,
    needs_a_person: bool,
    resolving: bool,
    routed: bool,
    numbers: numbers::Change,
}

impl Situation {
    fn new() -> Self {
        Self {
            model: model(&serde_json::json!({"minReplicas": 2})),
            previous: ModelDeploymentStatus::default(),
            rollout: rollout::Plan { candidate: Some("a".into()), ..rollout::Plan::default() },
            revisions: BTreeMap::from([("a".to_owned(), RevisionFacts::default())]),
            decision: None,
            apply_error: None,
            needs_a_person: false,
            resolving: false,
            routed: true,
            numbers: numbers::Change::Keep,
        }
    }

    fn serving() -> Self {
        let facts = RevisionFacts { replicas: 2, ready: 2, digest: Some("00ff".into()), ..RevisionFacts::default() };
        Self {
            rollout: rollout::Plan { stable: Some("a".into()), ..rollout::Plan::default() },
            revisions: BTreeMap::from([("a".to_owned(), facts)]),
            ..Self::new()
        }
    }

    fn problem(mut self, revision: &str, reason: &'static str, stage: Stage, permanent: bool) -> Self {
        let facts = self.revisions.entry(revision.to_owned()).or_default();
        facts.problem = Some(Problem { reason, message: format!("{reason} happened"), stage, permanent });
        self
    }

    fn status(&self, now: Timestamp) -> ModelDeploymentStatus {
        derive(&Facts {
            model: &self.model,
            previous: &self.previous,
            rollout: &self.rollout,
            revisions: &self.revisions,
            desired: 2,
            decision: self.decision.as_ref(),
            numbers: self.numbers,
            resolving: self.resolving,
            routed: self.routed,
            apply_error: self.apply_error.clone(),
            needs_a_person: self.needs_a_person,
            now,
        })
    }

    fn text(&self) -> String {
        self.status(NOW).conditions.iter().fold(String::new(), |mut text, condition| {
            writeln!(text, "{}={} {}: {}", condition.type_, condition.status, condition.reason, condition.message)
                .unwrap();
            text
        })
    }
}

#[test]
fn the_first_look_writes_every_condition() {
    insta::assert_snapshot!(Situation { routed: false, ..Situation::new() }.text());
}

#[test]
fn a_model_that_serves() {
    insta::assert_snapshot!(Situation::serving().text());
}

#[test]
fn a_model_that_serves_is_carried_out_once_its_digest_is_known() {
    let mut situation = Situation { resolving: true, ..Situation::serving() };
    situation.revisions.get_mut("a").unwrap().digest = None;
    insta::assert_snapshot!(situation.text());
    // Servers that never tell are not waited for for ever, nor again and again.
    situation.resolving = false;
    let settled = situation.status(NOW);
    let reconciling = |status: &ModelDeploymentStatus| status.conditions.iter().any(|c| c.type_ == "Reconciling");
    assert!(!reconciling(&settled));
    situation = Situation { resolving: true, previous: settled, ..situation };
    assert!(!reconciling(&situation.status(NOW)));
}

#[test]
fn a_model_that_is_not_found() {
    insta::assert_snapshot!(Situation::new().problem("a", "SourceNotFound", Stage::Artifact, true).text());
}

#[test]
fn a_source_that_cannot_be_reached_is_tried_again() {
    insta::assert_snapshot!(Situation::new().problem("a", "SourceUnreachable", Stage::Artifact, false).text());
}

#[test]
fn a_file_that_is_no_model() {
    let mut situation = Situation::new().problem("a", "ModelInvalid", Stage::Load, true);
    situation.revisions.get_mut("a").unwrap().digest = Some("00ff".into());
    insta::assert_snapshot!(situation.text());
}

#[test]
fn a_new_revision_that_does_not_start_beside_one_that_serves() {
    let mut situation = Situation::serving().problem("b", "ModelInvalid", Stage::Load, true);
    situation.rollout.candidate = Some("b".into());
    insta::assert_snapshot!(situation.text());
}

#[test]
fn a_source_that_cannot_be_reached_until_the_deadline() {
    let mut situation = Situation::new().problem("a", "SourceUnreachable", Stage::Artifact, false);
    situation.revisions.get_mut("a").unwrap().late = true;
    insta::assert_snapshot!(situation.text());
}

#[test]
fn a_server_that_does_not_come_back_is_waited_for_until_the_deadline_and_stays_stalled() {
    let mut situation = Situation::serving().problem("a", "Unschedulable", Stage::Workload, false);
    situation.revisions.get_mut("a").unwrap().ready = 1;
    let stalled = |status: &ModelDeploymentStatus| {
        let found = status.conditions.iter().find(|condition| condition.type_ == conditions::STALLED)?;
        Some((found.reason.clone(), found.last_transition_time.0))
    };
    let mut at = |seconds: i64| {
        situation.previous = situation.status(Timestamp::from_second(seconds).unwrap());
        stalled(&situation.previous)
    };
    assert_eq!((at(0), at(299)), (None, None));
    let late = Some(("ProgressDeadlineExceeded".to_owned(), Timestamp::from_second(300).unwrap()));
    assert_eq!((at(300), at(301)), (late.clone(), late));
    situation.revisions.get_mut("a").unwrap().ready = 2;
    assert_eq!(stalled(&situation.status(NOW)), None);
}

#[test]
fn what_keeps_the_stable_revision_is_said_while_the_new_one_starts() {
    let mut situation = Situation::serving().problem("a", "NodeLost", Stage::Workload, false);
    situation.revisions.get_mut("a").unwrap().ready = 0;
    situation.rollout.candidate = Some("b".into());
    situation.revisions.insert("b".into(), RevisionFacts { replicas: 1, ..RevisionFacts::default() });
    insta::assert_snapshot!(situation.text());
}

#[test]
fn a_write_that_a_quota_refuses_says_so() {
    let error = "cannot apply Deployment ml/digits-default-a: deployments.apps \"digits-default-a\" is forbidden: exceeded quota: q";
    let situation = Situation { apply_error: Some(error.to_owned()), routed: false, ..Situation::new() };
    let ready = situation.status(NOW).conditions.remove(0);
    assert_eq!((ready.type_.as_str(), ready.reason.as_str()), ("Ready", "QuotaExceeded"));
}

#[test]
fn a_rollout_under_way() {
    let mut situation = Situation::serving();
    situation.rollout.candidate = Some("b".into());
    situation.revisions.insert("b".into(), RevisionFacts { replicas: 1, ..RevisionFacts::default() });
    insta::assert_snapshot!(situation.text());
}

/// Whether `Reconciling` holds, and with which message.
fn reconciling(situation: &Situation) -> Option<String> {
    let status = situation.status(NOW);
    let found = status.conditions.into_iter().find(|condition| condition.type_ == conditions::RECONCILING)?;
    Some(format!("{}: {}", found.reason, found.message))
}

#[test]
fn servers_that_load_adds_are_no_change_under_way() {
    let mut situation = Situation::serving();
    situation.revisions.get_mut("a").unwrap().ready = 1;
    assert_eq!(reconciling(&situation).as_deref(), Some("Starting: 1 of 2 servers answer"), "they are of a new spec");
    situation.previous = situation.status(NOW);
    assert!(reconciling(&situation).is_some(), "and still are");
    situation.revisions.get_mut("a").unwrap().ready = 2;
    assert_eq!(reconciling(&situation), None);
    situation.previous = situation.status(NOW);
    situation.revisions.get_mut("a").unwrap().ready = 1;
    assert_eq!(reconciling(&situation), None, "the spec was carried out before");
    situation.previous.observed_generation = Some(2);
    assert!(reconciling(&situation).is_some(), "but another one was");
}

#[test]
fn a_change_is_under_way_until_the_servers_of_other_revisions_are_gone() {
    let mut situation = Situation::serving();
    situation.previous = situation.status(NOW);
    // On the way to b somebody went back to a: one server of each, as many as there should be.
    let one = RevisionFacts { replicas: 1, ready: 1, ..RevisionFacts::default() };
    situation.revisions = BTreeMap::from([("a".to_owned(), one.clone()), ("b".to_owned(), one)]);
    let message = "RollingOut: the servers of revision b are being taken away";
    assert_eq!(reconciling(&situation).as_deref(), Some(message));
}

#[test]
fn a_failure_that_is_over_is_a_change_under_way_until_all_servers_answer() {
    let mut situation = Situation::new().problem("a", "SourceNotFound", Stage::Artifact, true);
    situation.previous = situation.status(NOW);
    situation.revisions = BTreeMap::from([("a".to_owned(), RevisionFacts { ready: 1, ..RevisionFacts::default() })]);
    assert_eq!(reconciling(&situation).as_deref(), Some("Starting: 1 of 2 servers answer"));
}

#[test]
fn a_server_that_was_lost() {
    let mut situation = Situation::serving().problem("a", "Unschedulable", Stage::Workload, false);
    situation.revisions.get_mut("a").unwrap().ready = 1;
    insta::assert_snapshot!(situation.text());
}

#[test]
fn a_target_that_needs_more_servers_than_allowed() {
    let decision = Decision {
        replicas: 4,
        cause: Cause::Load,
        limited: Some(Limit::MaxReplicas { wanted: 6 }),
        reason: "6 servers are needed, maxReplicas is 4".into(),
    };
    let scaling = serde_json::json!({"maxReplicas": 4, "latency": {"target": "50ms"}});
    insta::assert_snapshot!(
        Situation { model: model(&scaling), decision: Some(decision), ..Situation::serving() }.text()
    );
}

#[test]
fn an_operator_that_has_just_started_says_what_the_one_before_it_said() {
    let limited = Some(Limit::MaxReplicas { wanted: 6 });
    let decision = Decision { replicas: 2, cause: Cause::Load, limited, reason: "6 servers are needed".into() };
    let model = model(&serde_json::json!({"maxReplicas": 4, "latency": {"target": "50ms"}}));
    let mut situation = Situation { model, decision: Some(decision), ..Situation::serving() };
    situation.previous = situation.status(NOW);
    situation.decision = None;
    assert_eq!(situation.status(NOW), situation.previous);
}

#[test]
fn a_failed_write_keeps_the_observed_generation() {
    let error = Some("cannot apply Service ml/digits: no".to_owned());
    let previous = ModelDeploymentStatus { observed_generation: Some(2), ..ModelDeploymentStatus::default() };
    let failed = Situation { apply_error: error, routed: false, previous, ..Situation::new() };
    assert_eq!(failed.status(NOW).observed_generation, Some(2));
    assert_eq!(Situation::new().status(NOW).observed_generation, Some(3));
    insta::assert_snapshot!(failed.text());
}

#[test]
fn what_only_a_person_can_put_right_is_stalled_at_once() {
    let apply_error = Some("Service ml/digits belongs to someone else".to_owned());
    let blocked = Situation { apply_error, needs_a_person: true, routed: false, ..Situation::new() };
    assert_eq!(blocked.status(NOW).observed_generation, Some(3), "nothing else will be said about it");
    insta::assert_snapshot!(blocked.text());
}

#[test]
fn a_transition_time_moves_only_with_the_status() {
    let later = Timestamp::from_second(1000).unwrap();
    let mut situation = Situation::serving();
    situation.previous = situation.status(NOW);
    let ready = |status: &ModelDeploymentStatus, type_: &str| {
        status.conditions.iter().find(|condition| condition.type_ == type_).unwrap().last_transition_time.0
    };
    assert_eq!(situation.status(later), situation.previous, "an unchanged world has an unchanged status");
    situation.revisions.get_mut("a").unwrap().ready = 1;
    let status = situation.status(later);
    assert_eq!(ready(&status, conditions::READY), NOW);
    assert_eq!(ready(&status, conditions::WORKLOAD_AVAILABLE), later);
}

#[test]
fn the_digest_stays_known_while_no_server_tells_it() {
    let mut situation = Situation::serving();
    situation.previous = situation.status(NOW);
    situation.revisions.get_mut("a").unwrap().digest = None;
    assert_eq!(situation.status(NOW).stable.unwrap().digest.as_deref(), Some("sha256:00ff"));
}

#[test]
fn servers_of_one_revision_with_different_models_are_said() {
    let mut situation = Situation::serving();
    situation.revisions.get_mut("a").unwrap().other_digest = Some("aa00".into());
    insta::assert_snapshot!(situation.text());
}

#[test]
fn a_server_that_refuses_changed_bytes_beside_those_that_serve() {
    let situation = Situation::serving().problem("a", "DigestChanged", Stage::Artifact, true);
    insta::assert_snapshot!(situation.text());
}

#[test]
fn numbers_of_servers_that_are_silent_are_taken_back() {
    let mut situation = Situation::serving();
    situation.previous = situation.status(NOW);
    situation.previous.variants[0].throughput = Some("500/s".into());
    assert_eq!(situation.status(NOW).variants[0].throughput.as_deref(), Some("500/s"));
    situation.numbers = numbers::Change::Clear;
    assert_eq!(situation.status(NOW).variants[0].throughput, None);
}

#[test]
fn events_tell_what_changed_and_nothing_when_nothing_did() {
    let serving = Situation::serving().status(NOW);
    let first = events::between(&ModelDeploymentStatus::default(), &serving);
    let reasons: Vec<_> = first.iter().map(|note| (note.warning, note.reason.as_str())).collect();
    assert_eq!(reasons, [(false, "Promoted"), (false, "Serving")]);
    assert_eq!(events::between(&serving, &serving), []);
    let broken = Situation::new().problem("a", "SourceNotFound", Stage::Artifact, true).status(NOW);
    let notes = events::between(&Situation::new().status(NOW), &broken);
    assert!(notes.iter().all(|note| note.warning && note.reason == "SourceNotFound"), "{notes:?}");
    let mut more = serving.clone();
    more.scaling.as_mut().unwrap().desired = 5;
    let notes = events::between(&serving, &more);
    assert_eq!(notes[0].reason, "ScaledUp");
    assert!(notes[0].text.starts_with("from 2 to 5 servers: "), "{}", notes[0].text);
}

#[test]
fn an_object_that_cannot_be_parsed_says_so_and_keeps_the_rest() {
    let serving = Situation::serving().status(NOW);
    let status = invalid(Some(4), &serving, "spec.model.uri must be …", NOW);
    assert_eq!(status.stable, serving.stable);
    assert_eq!(status.observed_generation, Some(4), "kstatus asks for Stalled only once the generation is observed");
    let stalled = status.conditions.iter().find(|condition| condition.type_ == conditions::STALLED).unwrap();
    assert_eq!((stalled.reason.as_str(), stalled.observed_generation), ("InvalidSpec", Some(4)));
}

#[test]
fn details_are_held_back_so_soon_after_a_write_and_news_are_not() {
    let serving = Situation::serving().status(NOW);
    let mut details = serving.clone();
    details.replicas = 3;
    details.variants[0].throughput = Some("7/s".into());
    details.conditions[0].message = "other words".into();
    assert_eq!(hold_back(&serving, &details, Some(0.5)), Some(Duration::from_millis(1500)));
    assert_eq!(hold_back(&serving, &details, Some(2.0)), None, "long ago");
    assert_eq!(hold_back(&serving, &details, None), None, "by another process");
    let broken = Situation::new().problem("a", "SourceNotFound", Stage::Artifact, true).status(NOW);
    let broken =
        ModelDeploymentStatus { stable: serving.stable.clone(), candidate: serving.candidate.clone(), ..broken };
    assert_eq!(hold_back(&serving, &broken, Some(0.5)), None, "a condition turned");
    let mut more = serving.clone();
    more.scaling.as_mut().unwrap().desired = 5;
    assert_eq!(hold_back(&serving, &more, Some(0.5)), None, "another number of servers");
    let next = ModelDeploymentStatus { observed_generation: Some(9), ..serving.clone() };
    assert_eq!(hold_back(&serving, &next, Some(0.5)), None, "another generation");
    let promoted = ModelDeploymentStatus { stable: None, ..serving.clone() };
    assert_eq!(hold_back(&serving, &promoted, Some(0.5)), None, "another revision");
}

/// Clients that go by the url leave the old servers while those still answer, and not before the new ones do.
#[test]
fn the_url_changes_to_tls_and_back_when_a_server_answers_there() {
    let mut situation = Situation::serving();
    let plain = situation.status(NOW);
    assert_eq!(plain.url.as_deref(), Some("http://digits.ml.svc"));
    let tls = serde_json::from_value(serde_json::json!({"certificateSecret": "web"})).unwrap();
    situation.model.revision.server.tls = Some(tls);
    assert_eq!(situation.status(NOW).url.as_deref(), Some("https://digits.ml.svc"), "nothing was said before");
    situation.previous = plain;
    situation.rollout.candidate = Some("b".into());
    situation.revisions.insert("b".to_owned(), RevisionFacts { replicas: 1, ..RevisionFacts::default() });
    assert_eq!(situation.status(NOW).url.as_deref(), Some("http://digits.ml.svc"), "no server has TLS yet");
    situation.revisions.get_mut("b").unwrap().ready = 1;
    assert_eq!(situation.status(NOW).url.as_deref(), Some("https://digits.ml.svc"));
}
