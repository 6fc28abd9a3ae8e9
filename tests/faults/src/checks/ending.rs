//! The namespace of a model is deleted, and takes its time. The operator hears of the children first and of the model
//! last: what it would put back is refused, and that is no trouble and no reason to go on calling.

use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    checks::steps::WITHIN,
    fault::{Disturbance, Fault},
    report::Row,
    rig::{Goal, Lab, Rig},
    scenario::Act,
};

/// How long the namespace stays after it was deleted.
const LASTS: Duration = Duration::from_secs(15);
/// Calls that one operator with one model may make in that time.
const CALLS: usize = 40;

/// A namespace that is deleted while something in it has a finalizer.
pub async fn namespace(lab: &Lab) -> Row {
    let started = Instant::now();
    let mut refused = 0;
    let result = play(lab, &mut refused).await;
    Row {
        scenario: "create".to_owned(),
        fault: "its namespace is deleted".to_owned(),
        hit: format!("({refused} calls refused)"),
        took: started.elapsed(),
        result: result.map_err(|error| format!("{error:#}")),
    }
}

async fn play(lab: &Lab, refused: &mut usize) -> anyhow::Result<()> {
    let client = &lab.world.client;
    let mut rig = Rig::new(lab, "ending").await?;
    let (maps, namespaces) =
        (Api::<ConfigMap>::namespaced(client.clone(), "ending"), Api::<Namespace>::all(client.clone()));
    let hold = json!({"metadata": {"name": "hold", "finalizers": ["ortolan.dev/hold"]}});
    maps.create(&PostParams::default(), &serde_json::from_value(hold)?).await?;
    rig.start(Fault::Calm).await?;
    rig.act(Act::Create(2)).await?;
    rig.reach(Goal::Settled, WITHIN).await?;
    rig.proxy()?.set(Fault::Disturb(Disturbance::Mute { kinds: &["modeldeployments"] }));
    let before = rig.log.entries().len();
    namespaces.delete("ending", &DeleteParams::default()).await?;
    tokio::time::sleep(LASTS).await;
    let calls = rig.log.entries().split_off(before);
    *refused = calls.iter().filter(|entry| entry.status == 403).count();
    ensure!(calls.len() <= CALLS, "{} calls in {} s are too many\n{}", calls.len(), LASTS.as_secs(), rig.last_words());
    rig.proxy()?.set(Fault::Calm);
    let free = json!({"metadata": {"finalizers": null}});
    maps.patch("hold", &PatchParams::default(), &Patch::Merge(free)).await?;
    let ended = Instant::now();
    while namespaces.get_opt("ending").await?.is_some() {
        ensure!(ended.elapsed() < WITHIN, "the namespace does not end");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let warnings = rig.warnings();
    ensure!(warnings.is_empty(), "the operator warned of it:\n{}\n{}", warnings.join("\n"), rig.last_words());
    Ok(())
}
