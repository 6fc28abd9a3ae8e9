//! The look at all model servers, once a second: read `/stats`, decide, and wake the reconciles that have to act.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, channel::mpsc::UnboundedSender, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use ortolan_protocol::stats::Stats;

use super::{
    Context, Guarded,
    fleet::{Look, PodLook},
    reconcile::previous_desired,
};
use crate::{
    api::{ModelDeployment, conditions::STALLED, validated::DesiredModel},
    observe::{
        scrape::Scraper,
        seen::{self, Seen},
    },
};

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Servers that are read at once.
const AT_ONCE: usize = 64;

/// Looks once a second for as long as it is polled.
pub async fn run(
    context: Arc<Context>,
    models: Store<Guarded>,
    scraper: Scraper,
    wake: UnboundedSender<ObjectRef<Guarded>>,
) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let started = Instant::now();
        let known = models.state();
        let readable: Vec<_> = known.iter().filter_map(|model| model.0.as_ref().ok()).collect();
        let uids: HashSet<_> = readable.iter().filter_map(|model| model.uid()).collect();
        context.fleet.retain(&uids);
        look(&context, &readable, &scraper, &wake).await;
        context.metrics.observed(readable.len(), started.elapsed().as_secs_f64());
        context.health.beat();
    }
}

/// One look at every model.
async fn look(
    context: &Context,
    models: &[&ModelDeployment],
    scraper: &Scraper,
    wake: &UnboundedSender<ObjectRef<Guarded>>,
) {
    let parsed = models.iter().filter_map(|object| Some((*object, DesiredModel::parse(object).ok()?)));
    let subjects: Vec<_> = parsed.map(|(object, model)| Subject::of(object, model, context)).collect();
    let mut told = read(context, &subjects, scraper).await;
    let now = context.clock();
    for (index, subject) in subjects.iter().enumerate() {
        let Subject { object, model, pods, missing, rolling_out } = subject;
        let stats = told.remove(&index).unwrap_or_default();
        let look = PodLook { pods, stats, missing: *missing, rolling_out: *rolling_out };
        let previous = object.status.as_ref().and_then(previous_desired);
        if context.fleet.look(model, previous, look, now) == Look::Due {
            // The receiver lives as long as the controller; when it is gone, nobody is to be woken.
            let _ = wake.unbounded_send(ObjectRef::new(&model.name).within(&model.namespace));
        }
    }
}

/// One model and its pods.
struct Subject<'a> {
    object: &'a ModelDeployment,
    model: DesiredModel,
    pods: Vec<Arc<Pod>>,
    missing: u32,
    rolling_out: bool,
}

impl<'a> Subject<'a> {
    fn of(object: &'a ModelDeployment, model: DesiredModel, context: &Context) -> Self {
        let seen = Seen::of(&model, &context.stores);
        // A candidate that cannot start is neither help on its way nor a rollout to wait for.
        let hopeless = stalled_candidate(object);
        let counts = |revision: &str| hopeless != Some(revision);
        let deployments = seen.deployments.iter().filter(|(revision, _)| counts(revision));
        let wanted: i32 = deployments.clone().filter_map(|(_, deployment)| deployment.spec.as_ref()?.replicas).sum();
        let pods: Vec<_> = deployments.clone().flat_map(|(revision, _)| seen.pods_of(revision)).cloned().collect();
        let wanted = usize::try_from(wanted).unwrap_or_default();
        let missing = u32::try_from(wanted.saturating_sub(pods.len())).unwrap_or_default();
        Self { object, missing, rolling_out: deployments.count() > 1, model, pods }
    }
}

fn stalled_candidate(object: &ModelDeployment) -> Option<&str> {
    let status = object.status.as_ref()?;
    let stalled = status.conditions.iter().any(|condition| condition.type_ == STALLED && condition.status == "True");
    let candidate = status.candidate.as_ref().filter(|_| stalled && status.stable.is_some())?;
    Some(&candidate.revision)
}

/// Reads `/stats` of every running pod: by the index of the subject, `(UID of the pod, statistics)`.
async fn read(context: &Context, subjects: &[Subject<'_>], scraper: &Scraper) -> BTreeMap<usize, Vec<(String, Stats)>> {
    let targets = subjects.iter().enumerate().flat_map(|(index, subject)| {
        subject.pods.iter().filter_map(move |pod| {
            let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
            Some((index, pod.uid()?, address, seen::is_ready(pod)))
        })
    });
    let reads: Vec<_> = targets
        .map(|(index, uid, address, ready)| async move { (index, uid, ready, scraper.stats(address).await) })
        .collect();
    let mut told: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    let mut answers = stream::iter(reads).buffer_unordered(AT_ONCE);
    while let Some((index, uid, ready, answer)) = answers.next().await {
        context.health.beat();
        match answer {
            Ok(stats) => {
                context.metrics.scraped("ok");
                told.entry(index).or_default().push((uid, stats));
            }
            // A server that starts does not listen yet; that is no outcome worth counting.
            Err(_) if !ready => {}
            Err(error) => {
                context.metrics.scraped(error.kind());
                tracing::debug!(pod = uid, %error, "a server does not tell its numbers");
            }
        }
    }
    told
}
