//! Wiring: which changes wake which reconcile, how many run at once, and what they share.

pub mod fleet;
mod looks;
mod reconcile;

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, channel::mpsc};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        Config, Controller,
        controller::{Action, Error as ControllerError},
        reflector::ObjectRef,
        watcher,
    },
};
use tokio::sync::Semaphore;

use crate::{
    api::{ModelDeployment, names},
    cluster::writer::Writer,
    metrics::Metrics,
    observe::{
        scrape::Scraper,
        stores::{self, Filling, Stores},
    },
    operations::Health,
    render::Renderer,
};
use fleet::Fleet;
use reconcile::{ReconcileError, reconcile};

/// A ModelDeployment, or an object that cannot be read as one and must not stop the watch.
pub type Guarded = DeserializeGuard<ModelDeployment>;

/// Reconciles at once.
const CONCURRENCY: u16 = 16;
/// The longest that one reconcile may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// An object is looked at again after this, whatever the watches said.
const RESYNC: Duration = Duration::from_mins(5);
/// While pods start.
const LOOK_AGAIN: Duration = Duration::from_secs(4);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The longest that reconciles under way are waited for at the end.
const LAST_RECONCILES: Duration = Duration::from_secs(10);

/// What a user of the operator sets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The image that new revisions run.
    pub server_image: String,
    /// The name of this process among others, for Events.
    pub instance: Option<String>,
    /// The newest version of the rendering, which new revisions get.
    pub renderer: Renderer,
}

/// What reconciles share.
pub struct Context {
    client: Client,
    settings: Settings,
    stores: Stores,
    filling: Filling,
    writer: Writer,
    fleet: Fleet,
    metrics: Metrics,
    health: Health,
    /// A permit for each reconcile that is under way.
    under_way: Semaphore,
    started: Instant,
}

impl Context {
    /// Seconds since the process started: the clock of the looks.
    fn clock(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Runs until `shutdown`, then ends the reconciles that are under way.
pub async fn run(
    client: Client,
    settings: Settings,
    (metrics, health): (Metrics, Health),
    shutdown: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
) -> Result<(), reqwest::Error> {
    let scraper = Scraper::new()?;
    let filling = Filling::default();
    let (models, model_changes) = stores::watch::<Guarded>(&client, watcher::Config::default(), &filling);
    let (revisions, revision_changes) = stores::watch(&client, stores::ours(), &filling);
    let (deployments, deployment_changes) = stores::watch(&client, stores::ours(), &filling);
    let (services, service_changes) = stores::watch(&client, stores::ours(), &filling);
    let (budgets, budget_changes) = stores::watch(&client, stores::ours(), &filling);
    let (pods, pod_changes) = stores::watch(&client, stores::ours(), &filling);
    let context = Arc::new(Context {
        client: client.clone(),
        writer: Writer::new(client.clone(), settings.instance.clone(), metrics.clone()),
        filling,
        stores: Stores { revisions, deployments, services, budgets, pods },
        settings,
        fleet: Fleet::default(),
        metrics,
        health,
        under_way: Semaphore::new(usize::from(CONCURRENCY)),
        started: Instant::now(),
    });
    let (wake, woken) = mpsc::unbounded();
    let controller = Controller::for_stream(model_changes, models.clone())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .owns_stream(revision_changes)
        .owns_stream(deployment_changes)
        .owns_stream(service_changes)
        .owns_stream(budget_changes)
        .watches_stream(pod_changes, |pod: Pod| model_of(&pod))
        .reconcile_on(woken);
    // kube's own graceful shutdown never ends when a cache was not filled yet, so the end is arranged here.
    let mut reconciles = pin!(controller.run(step, on_error, context.clone()).for_each(|result| async {
        // A failed reconcile was logged by on_error; an object that is gone is no error.
        if let Err(ControllerError::QueueError(error)) = result {
            tracing::warn!(error = &error as &dyn std::error::Error, "a watch failed and is begun anew");
        }
    }));
    let looks = async {
        // Decisions on half-filled caches would be about servers that are only not seen yet.
        context.filling.done().await;
        context.health.ready();
        looks::run(context.clone(), models, scraper, wake).await;
    };
    tokio::select! {
        () = &mut reconciles => {}
        () = looks => {}
        () = shutdown => {}
    }
    // Reconciles under way go on while `reconciles` is kept, and may end; whatever does not is taken up by the next
    // operator, as after a crash.
    let _ = tokio::time::timeout(LAST_RECONCILES, context.under_way.acquire_many(u32::from(CONCURRENCY))).await;
    Ok(())
}

/// The model that a pod belongs to, by its label: a pod's owner is a ReplicaSet.
fn model_of(pod: &Pod) -> Option<ObjectRef<Guarded>> {
    Some(ObjectRef::new(pod.labels().get(names::MODEL)?).within(&pod.namespace()?))
}

/// One reconcile, with its limits, its log and its metrics around it.
async fn step(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    // Never closed: an error cannot come.
    let _permit = context.under_way.acquire().await;
    let started = Instant::now();
    let result = match &object.0 {
        Err(invalid) => Err(ReconcileError::Unreadable(invalid.error.clone())),
        // Being deleted: the children go by their owner references.
        Ok(model) if model.metadata.deletion_timestamp.is_some() => Ok(Action::await_change()),
        Ok(model) => {
            context.filling.done().await;
            let reconciled = tokio::time::timeout(TIMEOUT, reconcile(model, &context)).await;
            reconciled.unwrap_or_else(|_| Err(ReconcileError::TimedOut(TIMEOUT.as_secs())))
        }
    };
    context.metrics.reconciled(started.elapsed().as_secs_f64(), result.as_ref().err().map(ReconcileError::kind));
    result
}

#[allow(clippy::needless_pass_by_value)] // the signature is the controller's
fn on_error(object: Arc<Guarded>, error: &ReconcileError, _: Arc<Context>) -> Action {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    tracing::warn!(namespace, name, %error, "a reconcile failed and is tried again");
    // Spread out, so that many objects that failed together do not come back together.
    let jitter = u64::from(std::hash::Hasher::finish(&hash_of(&name)).to_le_bytes()[0]) * 8;
    Action::requeue(RETRY + Duration::from_millis(jitter))
}

fn hash_of(name: &str) -> std::collections::hash_map::DefaultHasher {
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    std::hash::Hash::hash(name, &mut hasher);
    hasher
}
