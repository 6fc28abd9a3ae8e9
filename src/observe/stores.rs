//! Watch caches of everything the operator reads, and the streams that fill them.
//!
//! Only objects that carry our labels are watched, except ModelDeployments themselves. Each stream yields the objects
//! that changed, for the controller to know whom to reconcile.
//!
//! Whether the caches are filled is told by [`Filling`] and not by `Store::wait_until_ready`: that one wakes only the
//! last of several waiters (kube-runtime 5.0, `DelayedInit`), and the controller is a waiter already.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, reflector, reflector::Store, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::api::names;

/// The caches of what the operator makes.
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

/// Counts the caches that do not yet hold what there was when their watch began.
#[derive(Clone, Debug)]
pub struct Filling(Arc<watch::Sender<usize>>);

impl Default for Filling {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Filling {
    /// Waits until all caches are filled.
    pub async fn done(&self) {
        // The sender lives in `self`: the channel cannot close.
        let _ = self.0.subscribe().wait_for(|left| *left == 0).await;
    }
}

/// Watches what carries our labels.
pub fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY, names::MANAGER))
}

/// A cache and the stream that fills it while it is polled; its items are the objects that changed.
pub fn watch<K>(
    client: &Client,
    config: watcher::Config,
    filling: &Filling,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + use<K>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (reader, writer) = reflector::store();
    let filling = filling.clone();
    filling.0.send_modify(|left| *left += 1);
    let mut filled = false;
    let changes = watcher(Api::<K>::all(client.clone()), config)
        .default_backoff()
        .modify(|object| object.meta_mut().managed_fields = None)
        .reflect(writer)
        .inspect(move |event| {
            if matches!(event, Ok(watcher::Event::InitDone)) && !filled {
                filled = true;
                filling.0.send_modify(|left| *left -= 1);
            }
        })
        .touched_objects()
        .boxed();
    (reader, changes)
}
