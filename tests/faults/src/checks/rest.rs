//! A world in which nothing changes: no writes, and no reads but the watches.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::{
    checks::steps::WITHIN,
    fault::Fault,
    report::Row,
    rig::{Goal, Lab, Rig},
    scenario::Act,
};

/// How long nothing happens.
const LASTS: Duration = Duration::from_mins(2);

/// A model that nobody uses.
pub async fn idle(lab: &Lab) -> Row {
    let started = Instant::now();
    let result = watch_idle(lab).await;
    Row {
        scenario: "create".to_owned(),
        fault: format!("none, and no change for {} s", LASTS.as_secs()),
        hit: String::new(),
        took: started.elapsed(),
        result: result.map_err(|error| format!("{error:#}")),
    }
}

async fn watch_idle(lab: &Lab) -> anyhow::Result<()> {
    let mut rig = Rig::new(lab, "rest").await?;
    rig.start(Fault::Calm).await?;
    rig.act(Act::Create(2)).await?;
    rig.reach(Goal::Settled, WITHIN).await?;
    let before = rig.log.entries().len();
    tokio::time::sleep(LASTS).await;
    let calls: Vec<_> = rig.log.entries()[before..].iter().map(|entry| entry.call.to_string()).collect();
    ensure!(calls.is_empty(), "an unchanged world was called: {calls:?}");
    rig.clear().await;
    Ok(())
}
