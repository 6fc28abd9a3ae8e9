//! What the caches hold of one model, and what is needed of its children every second.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, Deployment},
        core::v1::{ConfigMap, Pod, PodSpec, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt};

use super::{
    index::{Child, Owner},
    stores::Stores,
};
use crate::api::{names, validated::DesiredModel};

/// The children of one model, by the UID of their owner: what another object of the same name left behind is not ours.
#[derive(Clone, Default)]
pub struct Seen {
    /// By revision.
    pub revisions: BTreeMap<String, Arc<ControllerRevision>>,
    /// By revision.
    pub deployments: BTreeMap<String, Arc<Deployment>>,
    /// Digest locks, by revision.
    pub locks: BTreeMap<String, Arc<ConfigMap>>,
    /// The Service.
    pub service: Option<Arc<Service>>,
    /// The PodDisruptionBudget.
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// The NetworkPolicy.
    pub policy: Option<Arc<NetworkPolicy>>,
    /// Pods of all revisions, those on their way out included.
    pub pods: Vec<Arc<Pod>>,
    /// Pods that the Service selects, too, and whose Deployment is gone: they answer until they are told to stop.
    pub strays: Vec<Arc<Pod>>,
}

impl Seen {
    /// Looks the model's children up.
    pub fn of(model: &DesiredModel, stores: &Stores) -> Self {
        let deployments = by_revision(stores.deployments.of(&model.uid));
        let pods = stores.pods.of(&pods_key(&model.namespace, &model.name));
        let seen = Self {
            revisions: by_revision(stores.revisions.of(&model.uid)),
            locks: by_revision(stores.locks.of(&model.uid)),
            service: stores.services.of(&model.uid).into_iter().next().map(Arc::new),
            budget: stores.budgets.of(&model.uid).into_iter().next().map(Arc::new),
            policy: stores.policies.of(&model.uid).into_iter().next().map(Arc::new),
            deployments,
            pods: pods.into_iter().map(Arc::new).collect(),
            strays: Vec::new(),
        };
        seen.with_own_pods()
    }

    /// Tells the pods that these Deployments made from others: those that are older belong to a deleted model of the same name.
    pub(super) fn with_own_pods(mut self) -> Self {
        let made = |object: &kube::core::ObjectMeta| object.creation_timestamp.as_ref().map(|time| time.0);
        let deployments = &self.deployments;
        (self.pods, self.strays) = std::mem::take(&mut self.pods).into_iter().partition(|pod| {
            let deployment = label(pod.as_ref(), names::REVISION).and_then(|revision| deployments.get(revision));
            deployment.is_some_and(|deployment| made(&pod.metadata) >= made(&deployment.metadata))
        });
        self
    }

    /// What all servers run that there are or are to be, those on their way out included.
    pub fn servers(&self) -> impl Iterator<Item = &PodSpec> {
        let deployments =
            self.deployments.values().filter_map(|deployment| deployment.spec.as_ref()?.template.spec.as_ref());
        deployments.chain(self.pods.iter().chain(&self.strays).filter_map(|pod| pod.spec.as_ref()))
    }

    /// The pods of a revision that are not on their way out.
    pub fn pods_of<'a>(&'a self, revision: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods.iter().filter(move |pod| label(pod.as_ref(), names::REVISION) == Some(revision) && is_alive(pod))
    }

    /// The pods of a revision that failed or are on their way out.
    pub fn ended_of<'a>(&'a self, revision: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods.iter().filter(move |pod| label(pod.as_ref(), names::REVISION) == Some(revision) && !is_alive(pod))
    }
}

impl Child for ControllerRevision {
    type Facts = ();

    fn facts(&self) {}
}

impl Child for Deployment {
    type Facts = DeploymentFacts;

    fn facts(&self) -> DeploymentFacts {
        let replicas = self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        DeploymentFacts { revision: revision(self), replicas: u32::try_from(replicas).unwrap_or_default() }
    }
}

impl Child for ConfigMap {
    type Facts = ();

    fn facts(&self) {}
}

impl Child for Service {
    type Facts = ();

    fn facts(&self) {}

    fn prune(&mut self) {
        self.status = None;
    }
}

impl Child for PodDisruptionBudget {
    type Facts = ();

    fn facts(&self) {}

    fn prune(&mut self) {
        // Moves with every pod that comes and goes.
        self.status = None;
    }
}

impl Child for NetworkPolicy {
    type Facts = ();

    fn facts(&self) {}
}

impl Child for Pod {
    type Facts = PodFacts;

    fn facts(&self) -> PodFacts {
        let address = self.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        PodFacts {
            uid: self.metadata.uid.as_deref().unwrap_or_default().into(),
            revision: revision(self),
            address,
            alive: is_alive(self),
            ready: is_ready(self),
            cold_start: cold_start(self),
        }
    }

    /// A pod's owner is a ReplicaSet: it is found by the namespace and the label of its model.
    fn owner(&self) -> Option<Owner> {
        let (namespace, name) = (self.namespace()?, label(self, names::MODEL)?.to_owned());
        Some(Owner { key: pods_key(&namespace, &name).into(), namespace, name })
    }
}

/// What is needed of a Deployment every second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentFacts {
    /// The revision that it runs.
    pub revision: Box<str>,
    /// The servers that it asks for.
    pub replicas: u32,
}

/// What is needed of a pod every second.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    /// Its UID.
    pub uid: Box<str>,
    /// The revision that it runs.
    pub revision: Box<str>,
    /// Where it listens, once it has an address.
    pub address: Option<IpAddr>,
    /// Neither told to stop nor ended.
    pub alive: bool,
    /// It answers requests.
    pub ready: bool,
    /// Seconds from its creation until it was ready, for one that has become ready for the first time.
    pub cold_start: Option<f64>,
}

/// By what the pods of a model are found.
pub fn pods_key(namespace: &str, model: &str) -> String {
    format!("{namespace}/{model}")
}

fn by_revision<K: Resource>(children: Vec<K>) -> BTreeMap<String, Arc<K>> {
    let revision = |child: &K| label(child, names::REVISION).map(str::to_owned);
    children.into_iter().filter_map(|child| Some((revision(&child)?, Arc::new(child)))).collect()
}

fn revision<K: Resource>(object: &K) -> Box<str> {
    label(object, names::REVISION).unwrap_or_default().into()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_whose_deployment_is_gone_is_still_a_server_and_no_pod_of_the_model() {
        let pod = |name: &str, revision: &str| -> Arc<Pod> {
            let labels = json!({names::MODEL: "digits", names::REVISION: revision});
            let spec = json!({"containers": [{"name": name}]});
            let pod = json!({"metadata": {"name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:01Z"}, "spec": spec});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let deployment = json!({
            "metadata": {"name": "new", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "template"}]}}},
        });
        let deployments = BTreeMap::from([("b".to_owned(), Arc::new(serde_json::from_value(deployment).unwrap()))]);
        let seen =
            Seen { deployments, pods: vec![pod("old", "a"), pod("new", "b")], ..Seen::default() }.with_own_pods();
        let names = |pods: &[Arc<Pod>]| pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&seen.pods), names(&seen.strays)), (vec!["new".to_owned()], vec!["old".to_owned()]));
        let servers: Vec<_> = seen.servers().map(|pod| &*pod.containers[0].name).collect();
        assert_eq!(servers, ["template", "new", "old"]);
    }
}
