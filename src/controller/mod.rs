//! Wiring: which changes wake which reconcile, how many run at once, and what they share.

mod error;
pub mod fleet;
mod looks;
mod reconcile;
mod report;
mod rest;
mod stages;

use std::{
    future::{Future, ready},
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        Config, Controller,
        controller::{Action, Error as ControllerError},
        reflector::Store,
    },
};
use tokio::{sync::Semaphore, task::JoinSet};
use tracing::{Instrument, field::Empty};

use crate::{
    cluster::{lease::Leadership, writer::Writer},
    metrics::{Metrics, ModelSample},
    observe::{
        models::{Shown, Watched},
        scrape::Scraper,
        stores::{self, Filling, Stores, Wake},
    },
    operations::Health,
    render::{Network, Renderer},
};
use error::ReconcileError;
use fleet::Fleet;
use reconcile::reconcile;
use rest::Rest;

/// Reconciles at once.
const CONCURRENCY: u16 = 16;
/// The longest that one reconcile may take.
const TIMEOUT: Duration = Duration::from_mins(1);
/// The longest until a model is looked at again, or half of it, whatever the watches said.
const RESYNC: Duration = Duration::from_mins(5);
/// While pods run and do not serve.
const LOOK_AT_PROBLEM: Duration = Duration::from_secs(15);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The longest that reconciles under way are waited for at the end. The next leader waits as long; what is cut off
/// here it takes up like after a crash.
const LAST_RECONCILES: Duration = Duration::from_secs(1);

/// What a user of the operator sets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The image that new revisions run.
    pub server_image: String,
    /// The name of this process among others, for Events.
    pub instance: Option<String>,
    /// The newest version of the rendering, which new revisions get.
    pub renderer: Renderer,
    /// What models' NetworkPolicies say; models have none without it.
    pub network: Option<Network>,
    /// The time after which everything is listed anew, whatever the watches said.
    pub relist: Duration,
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
    leadership: Leadership,
    rest: Rest,
    /// A permit for each reconcile that is under way.
    under_way: Semaphore,
    started: Instant,
}

impl Context {
    /// A model is looked at again after this, or up to twice as long, whatever the watches said.
    fn resync(&self, model: &str) -> Duration {
        let resync = RESYNC.min(self.settings.relist);
        // Spread out, so that the models that a new operator began with do not come back together.
        resync + jitter(model, resync)
    }

    /// Seconds since the process started: the clock of the looks.
    fn clock(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Runs until `shutdown`, then ends the reconciles that are under way. A process that does not lead only keeps its caches
/// filled, so that it can take over at once.
pub async fn run(
    client: Client,
    settings: Settings,
    (metrics, health, leadership): (Metrics, Health, Leadership),
    shutdown: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
) -> Result<(), reqwest::Error> {
    let scraper = Scraper::new()?;
    let filling = Filling::default();
    let (wake, woken) = Wake::channel();
    // Watches and looks run beside the reconciles; all end with this function.
    let mut tasks = JoinSet::new();
    let (filled, told) = ((&filling, settings.relist), (&wake, &metrics));
    let models = stores::watch_models(&client, filled, told, &mut tasks);
    let stores = Stores::watch(&client, filled, told, &mut tasks);
    tell_sizes(&metrics, &models, &stores);
    let queue = metrics.queue().clone();
    let context = Arc::new(Context {
        client: client.clone(),
        writer: Writer::new(client.clone(), settings.instance.clone(), metrics.clone()),
        filling,
        stores,
        settings,
        fleet: Fleet::default(),
        metrics,
        health,
        leadership: leadership.clone(),
        rest: Rest::default(),
        under_way: Semaphore::new(usize::from(CONCURRENCY)),
        started: Instant::now(),
    });
    // Who is to be reconciled comes from the watches above alone.
    let controller = Controller::for_stream(stream::pending(), models.clone())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(
            woken.inspect(move |woken| queue.asked(woken.namespace.as_deref().unwrap_or_default(), &woken.name)),
        )
        // What changed while another process led was passed over here.
        .reconcile_all_on(stream::once(leadership.clone().gained()));
    // kube's own graceful shutdown never ends when a cache was not filled yet, so the end is arranged here. A failed
    // reconcile was logged by on_error; an object that is gone is no error.
    let mut reconciles = pin!(controller.run(step, on_error, context.clone()).for_each(|result| {
        if let Err(ControllerError::ObjectNotFound(gone)) = result {
            context.metrics.queue().forget(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
        }
        ready(())
    }));
    tasks.spawn({
        let context = context.clone();
        async move {
            // Decisions on half-filled caches would be about servers that are only not seen yet.
            context.filling.done().await;
            context.health.ready();
            leadership.gained().await;
            looks::run(context, models, scraper, wake).await;
        }
    });
    tokio::select! {
        () = &mut reconciles => {}
        // None of them ends but by a fault.
        _ = tasks.join_next() => {}
        () = shutdown => {}
    }
    // Reconciles under way go on while `reconciles` is kept, and may end.
    let _ = tokio::time::timeout(LAST_RECONCILES, context.under_way.acquire_many(u32::from(CONCURRENCY))).await;
    Ok(())
}

/// Has the metrics tell what is in the caches.
fn tell_sizes(metrics: &Metrics, models: &Store<Watched>, stores: &Stores) {
    let Stores { revisions, deployments, locks, services, budgets, policies, pods } = stores.clone();
    metrics.watch_cache("ControllerRevision", move || revisions.size().0);
    metrics.watch_cache("Deployment", move || deployments.size().0);
    metrics.watch_cache("ConfigMap", move || locks.size().0);
    metrics.watch_cache("Service", move || services.size().0);
    metrics.watch_cache("PodDisruptionBudget", move || budgets.size().0);
    metrics.watch_cache("NetworkPolicy", move || policies.size().0);
    metrics.watch_cache("Pod", move || pods.size().0);
    let known = models.clone();
    metrics.watch_cache("ModelDeployment", move || known.len());
    let models = models.clone();
    metrics.watch_models(move || models.state().iter().map(|model| sample(model)).collect());
}

fn sample(model: &Watched) -> ModelSample {
    let Shown { ready, stalled, limited, replicas, desired } = model.shown();
    let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
    ModelSample { namespace, name, ready, stalled, limited, replicas, desired }
}

/// One reconcile, with its limits, its log and its metrics around it.
async fn step(watched: Arc<Watched>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let (namespace, name) = (watched.namespace().unwrap_or_default(), watched.name_any());
    if !context.leadership.leads() {
        context.metrics.queue().forget(&namespace, &name);
        return Ok(Action::await_change());
    }
    // Never closed: an error cannot come.
    let _permit = context.under_way.acquire().await;
    context.metrics.queue().begins(&namespace, &name);
    context.metrics.reconcile_begins();
    let span = crate::trace_span!("reconcile", namespace, name, error = Empty, otel.status_code = Empty);
    let result = Box::pin(timed(&watched, &context)).instrument(span.clone()).await;
    if let Err(error) = &result {
        span.record("error", error.kind());
        span.record("otel.status_code", "ERROR");
    }
    result
}

/// One reconcile, with its limit of time, measured.
async fn timed(watched: &Watched, context: &Context) -> Result<Action, ReconcileError> {
    let started = Instant::now();
    let result = if watched.meta().deletion_timestamp.is_some() {
        // Being deleted: the children go by their owner references.
        Ok(Action::await_change())
    } else {
        context.filling.done().await;
        if let Some(left) = context.rest.left(&watched.uid().unwrap_or_default(), started) {
            return Ok(Action::requeue(left));
        }
        match watched.object() {
            Err(invalid) => Err(ReconcileError::Unreadable(invalid)),
            Ok(object) => {
                let reconciled = tokio::time::timeout(TIMEOUT, Box::pin(reconcile(&object, context))).await;
                reconciled.unwrap_or_else(|_| Err(ReconcileError::TimedOut(TIMEOUT.as_secs())))
            }
        }
    };
    let ending = result.as_ref().err().filter(|error| error.is_ending());
    if let Some(ending) = ending {
        tracing::debug!(%ending, "a model goes with its namespace");
        context.metrics.reconciled(started.elapsed().as_secs_f64(), None);
        // Whatever else goes before it wakes it, and some namespaces never end.
        let rest = context.rest.begin(&watched.uid().unwrap_or_default(), 0, Instant::now());
        return Ok(Action::requeue(rest));
    }
    context.metrics.reconciled(started.elapsed().as_secs_f64(), result.as_ref().err().map(ReconcileError::kind));
    if result.is_ok() {
        context.rest.end(&watched.uid().unwrap_or_default());
    }
    result
}

#[allow(clippy::needless_pass_by_value)] // the signature is the controller's
fn on_error(object: Arc<Watched>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    tracing::warn!(namespace, name, %error, "a reconcile failed and is tried again");
    let rest = |asked| context.rest.begin(&object.uid().unwrap_or_default(), asked, Instant::now());
    // What is in the way is not watched.
    let usual = if error.needs_a_person() { LOOK_AT_PROBLEM } else { RETRY };
    let after = error.overload().map_or(usual, rest);
    // Spread out, so that many objects that failed together do not come back together.
    Action::requeue(after + jitter(&name, Duration::from_secs(2)))
}

/// A time below `longest` that differs from name to name.
fn jitter(name: &str, longest: Duration) -> Duration {
    longest.mul_f64(looks::phase(name))
}
