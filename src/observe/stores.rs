//! Watch caches of everything the operator reads, and the streams that fill them.
//!
//! Only objects that carry our labels are watched, except ModelDeployments themselves. Each stream yields the objects
//! that changed, for the controller to know whom to reconcile.

use std::{fmt::Debug, hash::Hash};

use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{Store, store::WriterDropped},
        watcher,
    },
};
use serde::de::DeserializeOwned;

use crate::api::names;

/// The caches.
#[derive(Clone)]
pub struct Stores {
    /// Snapshots of revisions.
    pub revisions: Store<ControllerRevision>,
    /// One for each revision.
    pub deployments: Store<Deployment>,
    /// One for each model.
    pub services: Store<Service>,
    /// One for each model.
    pub budgets: Store<PodDisruptionBudget>,
    /// The servers.
    pub pods: Store<Pod>,
}

impl Stores {
    /// Waits until each cache holds what there was when its watch began.
    pub async fn filled(&self) -> Result<(), WriterDropped> {
        self.revisions.wait_until_ready().await?;
        self.deployments.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.budgets.wait_until_ready().await?;
        self.pods.wait_until_ready().await
    }
}

/// A cache and the stream that fills it while it is polled; its items are the objects that changed.
pub fn watch<K>(client: &Client) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + use<K>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (reader, writer) = reflector::store();
    let ours = watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY, names::MANAGER));
    let changes = watcher(Api::<K>::all(client.clone()), ours)
        .default_backoff()
        .modify(|object| object.meta_mut().managed_fields = None)
        .reflect(writer)
        .touched_objects()
        .boxed();
    (reader, changes)
}
