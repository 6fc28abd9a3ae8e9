//! A new operator that is shown an old world: as after a restart next to an API server that lags behind.
//!
//! Each scenario is played to its end; then new operators start one after the other, each with a list of one kind, or of
//! all kinds, as it was before the scenario, and with watches that stay silent for a while. Nothing may be taken away,
//! and nothing made that would have to be taken away again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::{
    checks::steps::{Course, WITHIN},
    fault::Fault,
    report::Row,
    rig::{Goal, Lab, Rig},
    scenario::Scenario,
};

/// How long the world stays old.
const OLD_FOR: Duration = Duration::from_secs(3);

/// Plays a scenario and restarts its operator with old lists: one row for each set of lists.
pub async fn restarts(lab: &Lab, scenario: &Scenario, course: &Course) -> Vec<Row> {
    let started = Instant::now();
    let (mut rig, lists) = match prepared(lab, scenario, course).await {
        Ok(prepared) => prepared,
        Err(error) => return vec![row(scenario, "all lists", started, Err(error))],
    };
    let mut sets: Vec<(String, BTreeMap<String, Vec<u8>>)> = lists
        .iter()
        .map(|(kind, list)| (format!("list of {kind}"), BTreeMap::from([(kind.clone(), list.clone())])))
        .collect();
    sets.push(("lists of all kinds".to_owned(), lists));
    let mut rows = Vec::new();
    for (what, lists) in sets {
        let started = Instant::now();
        let result = restart(lab, &mut rig, course, lists).await;
        rows.push(row(scenario, &what, started, result));
    }
    rig.clear().await;
    rows
}

fn row(scenario: &Scenario, what: &str, started: Instant, result: anyhow::Result<()>) -> Row {
    Row {
        scenario: scenario.name.to_owned(),
        fault: "restarted with an old".to_owned(),
        hit: what.to_owned(),
        took: started.elapsed(),
        result: result.map_err(|error| format!("{error:#}")),
    }
}

/// The end of a scenario, and the lists as they were before it.
async fn prepared<'a>(
    lab: &'a Lab,
    scenario: &Scenario,
    course: &Course,
) -> anyhow::Result<(Rig<'a>, BTreeMap<String, Vec<u8>>)> {
    let mut rig = Rig::new(lab, &format!("{}-stale", scenario.name)).await?;
    rig.start(Fault::Calm).await?;
    let mut expected = course.states.iter();
    for act in scenario.base {
        rig.act(*act).await?;
        rig.reach(Goal::Same(expected.next().context("no course")?), WITHIN).await?;
    }
    let paths = rig.lists(WITHIN).await?;
    let mut lists = BTreeMap::new();
    for (kind, path) in paths {
        lists.insert(kind, rig.proxy()?.read(&path).await?);
    }
    for act in scenario.acts {
        rig.act(*act).await?;
        rig.reach(Goal::Same(expected.next().context("no course")?), WITHIN).await?;
    }
    Ok((rig, lists))
}

async fn restart(
    lab: &Lab,
    rig: &mut Rig<'_>,
    course: &Course,
    lists: BTreeMap<String, Vec<u8>>,
) -> anyhow::Result<()> {
    let before = lab.world.pods(&rig.namespace).created;
    let last = course.states.last().context("no course")?;
    lab.world.watch_floor(&rig.namespace);
    let ready = lab.world.pods(&rig.namespace).fewest_ready;
    rig.start(Fault::Stale { lists }).await?;
    rig.lists(WITHIN).await?;
    tokio::time::sleep(OLD_FOR).await;
    let pods = lab.world.pods(&rig.namespace);
    ensure!(pods.fewest_ready == ready, "servers were taken away by what was old: {:?}", rig.writes());
    ensure!(pods.created == before, "servers were made by what was old: {:?}", rig.writes());
    rig.proxy()?.set(Fault::Calm);
    rig.reach(Goal::Same(last), WITHIN).await?;
    let pods = lab.world.pods(&rig.namespace);
    ensure!(
        pods.fewest_ready == ready && pods.created == before,
        "servers were changed afterwards: {:?}",
        rig.writes()
    );
    Ok(())
}
