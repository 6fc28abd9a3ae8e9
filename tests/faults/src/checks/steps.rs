//! Every scenario once without a fault, then once for each write and each event of it, with a fault there.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{
    fault::{Fault, Moment},
    report::{MISSED, Row},
    rig::{Goal, Lab, Rig},
    scenario::Scenario,
};

/// The longest until a scenario ends as it should, on a busy machine.
pub const WITHIN: Duration = Duration::from_secs(90);

/// How a scenario goes when nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// The state at the end of the base and of each act.
    pub states: Vec<Value>,
    /// Writes during the acts.
    pub writes: usize,
    /// Events during the acts.
    pub events: usize,
    /// Pods that were made in all.
    pub pods: usize,
    /// How long it took.
    pub took: Duration,
}

/// Plays a scenario with nothing wrong.
pub async fn undisturbed(lab: &Lab, scenario: &Scenario) -> anyhow::Result<Course> {
    play_through(lab, scenario).await.with_context(|| format!("{} failed without a fault", scenario.name))
}

async fn play_through(lab: &Lab, scenario: &Scenario) -> anyhow::Result<Course> {
    let started = Instant::now();
    let mut rig = Rig::new(lab, &format!("{}-undisturbed", scenario.name)).await?;
    rig.start(Fault::Calm).await?;
    let mut course = Course::default();
    for act in scenario.base {
        rig.act(*act).await?;
        course.states.push(rig.reach(Goal::Settled, WITHIN).await?);
    }
    rig.log.arm();
    for act in scenario.acts {
        rig.act(*act).await?;
        course.states.push(rig.reach(Goal::Settled, WITHIN).await?);
    }
    let pods = lab.world.pods(&rig.namespace);
    course.writes = rig.log.writes();
    course.events = rig.log.events();
    course.pods = pods.created.len();
    course.took = started.elapsed();
    rig.clear().await;
    Ok(course)
}

impl fmt::Display for Course {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writes, events, pods, took, .. } = self;
        write!(formatter, "{writes} writes, {events} events, {pods} pods, {:.1} s", took.as_secs_f64())
    }
}

/// The faults around every write of a scenario.
pub fn kills(course: &Course) -> Vec<Fault> {
    let writes = 1..=course.writes;
    writes.flat_map(|write| [Moment::Before, Moment::After].map(|moment| Fault::Kill { write, moment })).collect()
}

/// The loss of each event of a scenario.
pub fn losses(course: &Course) -> Vec<Fault> {
    (1..=course.events).map(|event| Fault::Lose { event }).collect()
}

/// Plays a scenario with a fault.
pub async fn disturbed(lab: &Lab, scenario: &Scenario, course: &Course, fault: Fault) -> Row {
    let (words, short) = match &fault {
        Fault::Kill { write, moment: Moment::Before } => (format!("killed before write {write}"), format!("b{write}")),
        Fault::Kill { write, moment: Moment::After } => (format!("killed after write {write}"), format!("a{write}")),
        Fault::Lose { event } => (format!("lost event {event}"), format!("e{event}")),
        other => (format!("{other:?}"), "x".to_owned()),
    };
    let started = Instant::now();
    let mut hit = String::new();
    let result = play(lab, scenario, course, (fault, &format!("{}-{short}", scenario.name), &mut hit)).await;
    let result = result.map_err(|error| format!("{error:#}"));
    Row { scenario: scenario.name.to_owned(), fault: words, hit, took: started.elapsed(), result }
}

async fn play(
    lab: &Lab,
    scenario: &Scenario,
    course: &Course,
    (fault, name, hit): (Fault, &str, &mut String),
) -> anyhow::Result<()> {
    let mut rig = Rig::new(lab, name).await?;
    let mut expected = course.states.iter();
    if matches!(fault, Fault::Lose { .. }) {
        // What a lost event leaves behind is made up for by listing anew.
        rig.relist = 8;
    }
    rig.start(fault).await?;
    for act in scenario.base {
        rig.act(*act).await?;
        if let Some(state) = expected.next() {
            rig.reach(Goal::Same(state), WITHIN).await?;
        }
    }
    lab.world.watch_floor(&rig.namespace);
    rig.log.arm();
    for act in scenario.acts {
        rig.act(*act).await?;
        if let Some(state) = expected.next() {
            let reached = rig.reach(Goal::Same(state), WITHIN).await;
            *hit = rig.log.hit().unwrap_or_else(|| MISSED.to_owned());
            reached?;
        }
    }
    let pods = lab.world.pods(&rig.namespace);
    ensure!(pods.created.len() <= course.pods, "{} pods were made, {} undisturbed", pods.created.len(), course.pods);
    let fewest = pods.fewest_ready.unwrap_or_default();
    ensure!(fewest >= scenario.floor, "only {fewest} servers were ready at once, {} are promised", scenario.floor);
    rig.clear().await;
    Ok(())
}
