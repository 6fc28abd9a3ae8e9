//! The name of a child is taken by somebody else's object: it stays as it is, the model says at once that a person is
//! needed, nobody calls without end, and when the object is gone all is as it should be.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    checks::steps::WITHIN,
    fault::Fault,
    report::Row,
    rig::{Goal, Lab, Rig},
    scenario::{Act, MODEL},
};

/// How long a person takes.
const LASTS: Duration = Duration::from_secs(20);
/// Calls that one operator may make in that time: a try takes one, and is made four times a minute.
const CALLS: usize = 10;

/// A Service that is not ours.
pub async fn service(lab: &Lab) -> Row {
    let started = Instant::now();
    let result = play(lab).await;
    Row {
        scenario: "create".to_owned(),
        fault: "the name is taken by somebody else".to_owned(),
        hit: "Service".to_owned(),
        took: started.elapsed(),
        result: result.map_err(|error| format!("{error:#}")),
    }
}

async fn play(lab: &Lab) -> anyhow::Result<()> {
    let mut rig = Rig::new(lab, "taken").await?;
    let services = Api::<Service>::namespaced(lab.world.client.clone(), &rig.namespace);
    let service = json!({"metadata": {"name": MODEL}, "spec": {"ports": [{"port": 80}]}});
    let made = services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    rig.start(Fault::Calm).await?;
    rig.act(Act::Create(2)).await?;
    let says_so = |state: &Value| condition(state, "Stalled").is_some_and(|stalled| stalled["status"] == "True");
    let state = rig.until("Stalled", WITHIN, says_so).await?;
    let stalled = condition(&state, "Stalled").cloned().unwrap_or_default();
    let message = stalled["message"].as_str().unwrap_or_default();
    ensure!(stalled["reason"] == "ApplyFailed" && message.contains("belongs to someone else"), "{stalled:#}");
    ensure!(condition(&state, "Reconciling").is_none(), "a person is waited for, and more: {state:#}");
    ensure!(state["ModelDeployment/m"]["status"]["observedGeneration"] == 1, "not observed: {state:#}");
    let before = rig.log.entries().len();
    tokio::time::sleep(LASTS).await;
    let calls = rig.log.entries().len() - before;
    ensure!(calls <= CALLS, "{calls} calls in {} s are too many\n{}", LASTS.as_secs(), rig.last_words());
    let now = services.get(MODEL).await?;
    ensure!(now.metadata.resource_version == made.metadata.resource_version, "it was changed: {now:?}");
    services.delete(MODEL, &DeleteParams::default()).await.context("the Service cannot be deleted")?;
    rig.reach(Goal::Settled, WITHIN).await?;
    rig.clear().await;
    Ok(())
}

fn condition<'a>(state: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = state["ModelDeployment/m"]["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == type_)
}
