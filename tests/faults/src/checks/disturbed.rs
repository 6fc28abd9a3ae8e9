//! An update while the API server refuses, loses or delays calls: nobody is served less, nobody calls without end, and
//! afterwards all is as if nothing had been.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{
    checks::steps::{Course, WITHIN},
    fault::{Disturbance, Fault},
    report::Row,
    rig::{Goal, Lab, Rig},
    scenario::Scenario,
};

/// How long the disturbance lasts, all its parts together.
const LASTS: Duration = Duration::from_secs(20);
/// Calls that one operator with one model may make in that time, besides its watches: three tries of some forty calls,
const CALLS: usize = 150;
/// and how often the watch of one kind may be begun.
const WATCHES: usize = 8;

/// What is tried, in words, and what comes one after the other.
pub const DISTURBANCES: &[(&str, &[Disturbance])] = &[
    ("conflicts", &[Disturbance::Refuse { code: 409, retry_after: None }]),
    ("429 with Retry-After", &[Disturbance::Refuse { code: 429, retry_after: Some(4) }]),
    ("500", &[Disturbance::Refuse { code: 500, retry_after: None }]),
    ("504", &[Disturbance::Refuse { code: 504, retry_after: None }]),
    ("500 for Deployments only", &[Disturbance::RefuseKind { kind: "deployments", code: 500 }]),
    ("503 for everything", &[Disturbance::RefuseAll { code: 503 }]),
    ("lost answers", &[Disturbance::Reset]),
    ("no answers to writes", &[Disturbance::Silent]),
    ("no answers to anything", &[Disturbance::SilentAll]),
    ("answers 2 s late", &[Disturbance::Slow(Duration::from_secs(2))]),
    ("watches cut off in the middle", &[Disturbance::Truncate]),
    ("watches that are told 410 Gone", &[Disturbance::Gone]),
    // What the watch of Deployments tells is newer than what that of pods told, as after a failure of both.
    (
        "watches that lag, those of pods longest",
        &[Disturbance::Mute { kinds: &["deployments", "pods"] }, Disturbance::Mute { kinds: &["pods"] }],
    ),
];

/// Plays a scenario under a disturbance.
pub async fn update(lab: &Lab, scenario: &Scenario, course: &Course, index: usize) -> Row {
    let words = DISTURBANCES[index].0;
    let started = Instant::now();
    let mut calls = 0;
    let result = play(lab, scenario, course, (index, &mut calls)).await;
    Row {
        scenario: scenario.name.to_owned(),
        fault: words.to_owned(),
        hit: format!("({calls} calls in {} s)", LASTS.as_secs()),
        took: started.elapsed(),
        result: result.map_err(|error| format!("{error:#}")),
    }
}

async fn play(
    lab: &Lab,
    scenario: &Scenario,
    course: &Course,
    (index, calls): (usize, &mut usize),
) -> anyhow::Result<()> {
    let mut rig = Rig::new(lab, &format!("{}-disturbed-{index}", scenario.name)).await?;
    rig.start(Fault::Calm).await?;
    let mut expected = course.states.iter();
    for act in scenario.base {
        rig.act(*act).await?;
        rig.reach(Goal::Same(expected.next().context("no course")?), WITHIN).await?;
    }
    lab.world.watch_floor(&rig.namespace);
    let (parts, before) = (DISTURBANCES[index].1, rig.log.entries().len());
    rig.proxy()?.set(Fault::Disturb(parts[0]));
    let (began, mut told) = (Instant::now(), None);
    for act in scenario.acts {
        rig.act(*act).await?;
    }
    for (part, ends) in parts.iter().zip(1..) {
        rig.proxy()?.set(Fault::Disturb(*part));
        while began.elapsed() < LASTS * ends / u32::try_from(parts.len())? {
            tokio::time::sleep(Duration::from_millis(200)).await;
            told = told.or_else(|| apply_failed(&rig.state()));
        }
    }
    *calls = rig.log.entries().len() - before;
    rig.proxy()?.set(Fault::Calm);
    bounded(&rig, before)?;
    if matches!(parts, [Disturbance::RefuseKind { .. }]) {
        let told = told.context("the status told nothing of it")?;
        ensure!(told.contains("Deployment") && told.contains("500"), "the status told: {told}");
    }
    rig.reach(Goal::Same(expected.next().context("no course")?), WITHIN).await?;
    let pods = lab.world.pods(&rig.namespace);
    let fewest = pods.fewest_ready.unwrap_or_default();
    ensure!(fewest >= scenario.floor, "only {fewest} servers were ready at once, {} are promised", scenario.floor);
    let made = pods.created.len();
    ensure!(made <= course.pods, "{made} pods were made, {} undisturbed\n{}", course.pods, rig.last_words());
    rig.clear().await;
    Ok(())
}

/// Whether there were few calls since there were `before` of them.
fn bounded(rig: &Rig<'_>, before: usize) -> anyhow::Result<()> {
    let entries = rig.log.entries();
    let calls = entries[before..].iter().map(|entry| &entry.call);
    let others = calls.clone().filter(|call| !call.is_watching()).count();
    let seconds = LASTS.as_secs();
    ensure!(others <= CALLS, "{others} calls besides watches in {seconds} s, not {CALLS}\n{}", rig.last_words());
    let mut begun = BTreeMap::<&str, usize>::new();
    calls.filter(|call| call.verb == "watch").for_each(|call| *begun.entry(call.kind()).or_default() += 1);
    for (kind, times) in begun {
        ensure!(times <= WATCHES, "{times} watches of {kind} in {seconds} s, not {WATCHES}\n{}", rig.last_words());
    }
    Ok(())
}

/// What the status tells of writes that failed.
fn apply_failed(state: &Value) -> Option<String> {
    let conditions = state["ModelDeployment/m"]["status"]["conditions"].as_array()?;
    let failed = conditions.iter().find(|condition| condition["reason"] == "ApplyFailed")?;
    Some(failed["message"].as_str().unwrap_or_default().to_owned())
}
