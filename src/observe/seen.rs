//! What the caches hold of one model.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, Deployment},
        core::v1::{Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt, runtime::reflector::Store};

use super::stores::Stores;
use crate::api::{names, validated::DesiredModel};

/// The children of one model, by the UID of their owner: what another object of the same name left behind is not ours.
#[derive(Clone, Default)]
pub struct Seen {
    /// By revision.
    pub revisions: BTreeMap<String, Arc<ControllerRevision>>,
    /// By revision.
    pub deployments: BTreeMap<String, Arc<Deployment>>,
    /// The Service.
    pub service: Option<Arc<Service>>,
    /// The PodDisruptionBudget.
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// Pods of all revisions, those on their way out included.
    pub pods: Vec<Arc<Pod>>,
}

impl Seen {
    /// Looks the model's children up.
    pub fn of(model: &DesiredModel, stores: &Stores) -> Self {
        let deployments = by_revision(owned(model, &stores.deployments));
        let pods = stores.pods.state_filter(|pod| {
            pod.namespace().as_ref() == Some(&model.namespace)
                && label(pod, names::MODEL) == Some(&model.name)
                && label(pod, names::REVISION).is_some_and(|revision| deployments.contains_key(revision))
        });
        Self {
            revisions: by_revision(owned(model, &stores.revisions)),
            service: owned(model, &stores.services).into_iter().next(),
            budget: owned(model, &stores.budgets).into_iter().next(),
            deployments,
            pods,
        }
    }

    /// The pods of a revision that are not on their way out.
    pub fn pods_of<'a>(&'a self, revision: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods.iter().filter(move |pod| label(pod.as_ref(), names::REVISION) == Some(revision) && is_alive(pod))
    }
}

fn owned<K>(model: &DesiredModel, store: &Store<K>) -> Vec<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state_filter(|child| {
        child.namespace().as_ref() == Some(&model.namespace)
            && child.owner_references().iter().any(|owner| owner.uid == model.uid)
    })
}

fn by_revision<K: Resource>(children: Vec<Arc<K>>) -> BTreeMap<String, Arc<K>> {
    children.into_iter().filter_map(|child| Some((label(child.as_ref(), names::REVISION)?.to_owned(), child))).collect()
}

fn label<'a, K: Resource>(object: &'a K, key: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(key).map(String::as_str)
}

/// Neither told to stop nor ended.
pub fn is_alive(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// When a pod became ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// Whether a pod answers requests.
pub fn is_ready(pod: &Pod) -> bool {
    is_alive(pod) && ready_since(pod).is_some()
}

/// Seconds from a pod's creation until it was ready, for one that has become ready for the first time.
pub fn cold_start(pod: &Pod) -> Option<f64> {
    let restarts =
        pod.status.as_ref()?.container_statuses.iter().flatten().map(|container| container.restart_count).sum::<i32>();
    let created = pod.metadata.creation_timestamp.as_ref()?.0;
    let seconds = ready_since(pod)?.duration_since(created).as_secs_f64().max(0.0);
    (restarts == 0).then_some(seconds)
}
