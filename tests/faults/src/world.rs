//! What is in the cluster, as an observer of its own sees it: past the proxies, with an administrator's rights.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::Value;

/// The kinds that are looked at.
const KINDS: &[(&str, &str, &str)] = &[
    ("ortolan.dev", "v1alpha1", "ModelDeployment"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "ControllerRevision"),
    ("", "v1", "Service"),
    ("", "v1", "ConfigMap"),
    ("policy", "v1", "PodDisruptionBudget"),
    ("", "v1", "Pod"),
];

/// Objects by namespace, and by kind and name inside it.
type Objects = BTreeMap<String, BTreeMap<(String, String), Value>>;

/// The cluster.
#[derive(Clone)]
pub struct World {
    /// With an administrator's rights.
    pub client: Client,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    objects: Objects,
    pods: BTreeMap<String, Pods>,
}

/// What became of the pods of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// The UIDs of all pods that there ever were.
    pub created: BTreeSet<String>,
    /// The fewest that were ready at once since [`World::watch_floor`].
    pub fewest_ready: Option<usize>,
}

impl World {
    /// Begins to watch.
    pub fn watch(client: Client) -> Self {
        let world = Self { client, seen: Arc::default() };
        for (group, version, kind) in KINDS {
            tokio::spawn(world.clone().follow(ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))));
        }
        world
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn follow(self, kind: ApiResource) {
        let ours = if kind.kind == "ModelDeployment" {
            watcher::Config::default()
        } else {
            watcher::Config::default().labels("app.kubernetes.io/managed-by=ortolan,ortolan.dev/model")
        };
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &kind);
        let mut events = watcher(api, ours).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    self.take(&kind, &object, true);
                }
                Ok(watcher::Event::Delete(object)) => self.take(&kind, &object, false),
                // Begun anew after an error; nothing that is looked at here goes unseen for long.
                Ok(watcher::Event::Init | watcher::Event::InitDone) | Err(_) => {}
            }
        }
    }

    fn take(&self, kind: &ApiResource, object: &DynamicObject, exists: bool) {
        let (Some(namespace), Some(name)) = (&object.metadata.namespace, &object.metadata.name) else { return };
        let mut seen = self.lock();
        let objects = seen.objects.entry(namespace.clone()).or_default();
        let key = (kind.kind.clone(), name.clone());
        if exists {
            objects.insert(key, serde_json::to_value(object).unwrap_or_default());
        } else {
            objects.remove(&key);
        }
        if kind.kind == "Pod" {
            let ready = objects.values().filter(|object| is_ready(object)).count();
            let pods = seen.pods.entry(namespace.clone()).or_default();
            pods.created.extend(object.metadata.uid.clone());
            pods.fewest_ready = pods.fewest_ready.map(|fewest| fewest.min(ready));
        }
    }

    /// All objects of a namespace.
    pub fn objects(&self, namespace: &str) -> Vec<Value> {
        self.lock().objects.get(namespace).into_iter().flatten().map(|(_, object)| object.clone()).collect()
    }

    /// What became of the pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Pods {
        self.lock().pods.get(namespace).cloned().unwrap_or_default()
    }

    /// From now on the fewest ready pods of a namespace are remembered.
    pub fn watch_floor(&self, namespace: &str) {
        let mut seen = self.lock();
        let ready = seen.objects.get(namespace).into_iter().flatten().filter(|(_, object)| is_ready(object)).count();
        seen.pods.entry(namespace.to_owned()).or_default().fewest_ready = Some(ready);
    }
}

/// Whether an object is a pod that is not on its way out.
pub fn is_alive(object: &Value) -> bool {
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    object["kind"] == "Pod"
        && object["metadata"]["deletionTimestamp"].is_null()
        && !["Succeeded", "Failed"].contains(&phase)
}

/// Whether an object is a pod that answers.
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    is_alive(object)
        && conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
