//! Watch caches of everything the operator reads, and the watches that fill them.
//!
//! Only objects that carry our labels are watched, except ModelDeployments themselves. Each watch is a task of its own,
//! so that a list of ten thousand objects is read beside the others, and says which models its changes concern.
//!
//! Whether the caches are filled is told by [`Filling`] and not by `Store::wait_until_ready`: that one wakes only the
//! last of several waiters (kube-runtime 5.0, `DelayedInit`), and the controller is a waiter already. Until its cache is
//! filled a watch wakes nobody: every model is reconciled anyway when the ModelDeployments come in.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, channel::mpsc};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{ConfigMap, Pod, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio::{sync::watch, task::JoinSet};

use super::{
    index::{Child, Index},
    models::Watched,
    relist,
};
use crate::{api::names, metrics::Metrics};

/// Objects that are read at once while a cache is filled. They are packed one by one, but a page of them is read as a whole,
/// and all caches are filled at the same time.
const PAGE: u32 = 100;

/// The caches of what the operator makes.
#[derive(Clone, Debug, Default)]
pub struct Stores {
    /// Snapshots of revisions.
    pub revisions: Index<ControllerRevision>,
    /// One for each revision.
    pub deployments: Index<Deployment>,
    /// Digest locks of revisions.
    pub locks: Index<ConfigMap>,
    /// One for each model.
    pub services: Index<Service>,
    /// One for each model.
    pub budgets: Index<PodDisruptionBudget>,
    /// One for each model, or none.
    pub policies: Index<NetworkPolicy>,
    /// The servers.
    pub pods: Index<Pod>,
}

impl Stores {
    /// Fills the caches for as long as `tasks` live, from the start after each `relist`, and wakes the models whose
    /// children change.
    pub fn watch(
        client: &Client,
        (filling, relist): (&Filling, Duration),
        (wake, metrics): (&Wake, &Metrics),
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let stores = Self::default();
        let mut watching = Watching { client, filling, relist, wake, metrics, tasks };
        let Self { revisions, deployments, locks, services, budgets, policies, pods } = &stores;
        watching.begin(revisions);
        watching.begin(deployments);
        watching.begin(locks);
        watching.begin(services);
        watching.begin(budgets);
        watching.begin(policies);
        watching.begin(pods);
        stores
    }
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

    fn one_more(&self) {
        self.0.send_modify(|left| *left += 1);
    }

    fn one_less(&self) {
        self.0.send_modify(|left| *left -= 1);
    }
}

/// What the watches of all kinds of children share.
struct Watching<'a> {
    client: &'a Client,
    filling: &'a Filling,
    relist: Duration,
    wake: &'a Wake,
    metrics: &'a Metrics,
    tasks: &'a mut JoinSet<()>,
}

impl Watching<'_> {
    /// Watches what carries our labels.
    fn begin<K: Child>(&mut self, index: &Index<K>) {
        let (index, filling, wake) = (index.clone(), self.filling.clone(), self.wake.clone());
        let metrics = self.metrics.clone();
        let ours =
            watcher::Config::default().page_size(PAGE).labels(&format!("{}={}", names::MANAGED_BY, names::MANAGER));
        let mut events = relist::watch(&Api::<K>::all(self.client.clone()), &ours, self.relist).boxed();
        filling.one_more();
        self.tasks.spawn(async move {
            let mut filled = false;
            while let Some(event) = events.next().await {
                let Some(event) = heard(event, &K::kind(&()), &metrics) else { continue };
                let done = matches!(event, watcher::Event::InitDone);
                let concerned = index.take(event);
                if filled {
                    for owner in concerned {
                        wake.model(&owner.namespace, &owner.name);
                    }
                } else if done {
                    filled = true;
                    filling.one_less();
                }
            }
        });
    }
}

/// Fills the cache of ModelDeployments for as long as `tasks` live, from the start after each `relist`, and wakes those
/// that change.
pub fn watch_models(
    client: &Client,
    (filling, relist): (&Filling, Duration),
    (wake, metrics): (&Wake, &Metrics),
    tasks: &mut JoinSet<()>,
) -> Store<Watched> {
    let (reader, writer) = reflector::store();
    let (filling, wake, metrics) = (filling.clone(), wake.clone(), metrics.clone());
    filling.one_more();
    let models = Api::<Watched>::all(client.clone());
    let all = watcher::Config::default().page_size(PAGE);
    let mut events = relist::watch(&models, &all, relist).reflect(writer).boxed();
    tasks.spawn(async move {
        let mut filled = false;
        while let Some(event) = events.next().await {
            use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
            match heard(event, &Watched::kind(&()), &metrics) {
                Some(InitDone) if !filled => {
                    filled = true;
                    filling.one_less();
                }
                Some(Apply(model) | InitApply(model) | Delete(model)) => {
                    wake.model(&model.namespace().unwrap_or_default(), &model.name_any());
                }
                Some(Init | InitDone) | None => {}
            }
        }
    });
    reader
}

/// Tells the controller which models have something to do.
#[derive(Clone, Debug)]
pub struct Wake(mpsc::UnboundedSender<ObjectRef<Watched>>);

impl Wake {
    /// The end that tells and the end that hears.
    pub fn channel() -> (Self, impl Stream<Item = ObjectRef<Watched>> + Send + use<>) {
        let (told, heard) = mpsc::unbounded();
        (Self(told), heard)
    }

    /// A model has something to do.
    pub fn model(&self, namespace: &str, name: &str) {
        // The receiver lives as long as the controller; when it is gone, nobody is to be woken.
        let _ = self.0.unbounded_send(ObjectRef::new(name).within(namespace));
    }
}

/// A watch that failed goes on by itself, from a new list if need be.
fn heard<K>(
    event: Result<watcher::Event<K>, watcher::Error>,
    kind: &str,
    metrics: &Metrics,
) -> Option<watcher::Event<K>> {
    event
        .inspect_err(|error| {
            metrics.watch_failed(kind);
            tracing::warn!(kind, error = error as &dyn std::error::Error, "a watch failed and is begun anew");
        })
        .ok()
}
