//! Leader election by a `coordination.k8s.io/v1` Lease: one process at a time reconciles, looks and writes.
//!
//! The decisions are in `election.rs`, the promise that a former leader writes nothing is in `fence.rs`; here is the
//! loop between them and the API server. It has a client of its own, so that renewals never queue behind other
//! requests. Every write carries the version that was seen, so the API server refuses the second of two.
//!
//! A process that has led and does not any more is not made a follower again: its caches, memory and half-done work are
//! those of a leader. [`Elector::run`] returns an error, and whoever calls it ends the process.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{
    Api, Client, Resource,
    api::PostParams,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    election::{Action, Observed},
    fence::{Fence, MAY_WRITE, boot_time},
};
use crate::{api::names, metrics::Metrics, operations::Health};

/// The name of the Lease.
pub const NAME: &str = "ortolan";
/// A leader renews this long after its last renewal,
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// and this long after one that failed.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// A follower looks at the lease at least this often.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// After somebody else was quicker.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest that one request may take.
const REQUEST: Duration = Duration::from_secs(4);
/// The longest that giving the lease back may take.
const RELEASE: Duration = Duration::from_secs(2);

/// Whether this process leads; clones share it.
#[derive(Clone, Debug)]
pub struct Leadership {
    fence: Fence,
    leads: watch::Receiver<bool>,
}

impl Leadership {
    /// Of a process that has no other beside it.
    pub fn without_election() -> Self {
        // The value stays readable without its sender.
        Self { fence: Fence::open(), leads: watch::channel(true).1 }
    }

    /// What a client must have around it whose writes are those of the leader.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Whether this process is, or was, the leader. It never goes back to `false`: the process ends instead.
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    /// Waits until this process leads.
    pub async fn gained(mut self) {
        if self.leads.wait_for(|leads| *leads).await.is_err() {
            // The election is over and was not won: the process is ending.
            std::future::pending::<()>().await;
        }
    }
}

/// Why a leader is none any more.
#[derive(Debug, thiserror::Error)]
pub enum LostLease {
    /// Another process, or nobody, holds it.
    #[error("the lease that this process held is held by {0} now")]
    Taken(String),
    /// The last renewal is too long ago.
    #[error("the lease was not renewed within {seconds} s: {trouble}", seconds = MAY_WRITE.as_secs())]
    NotRenewed {
        /// What went wrong last.
        trouble: String,
    },
}

/// A request about the Lease that failed.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    TimedOut(#[from] tokio::time::error::Elapsed),
}

impl RequestError {
    /// Somebody else wrote first.
    fn is_race(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() || status.is_not_found())
    }
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    recorder: Recorder,
    me: String,
    fence: Fence,
    leads: watch::Sender<bool>,
    metrics: Metrics,
    health: Health,
    observed: Observed,
    /// When the request was sent that renewed the lease last; `None` before this process leads.
    renewed: Option<Duration>,
    /// What went wrong last, so that it is logged once.
    trouble: Option<String>,
}

impl Elector {
    /// An elector for the Lease in `namespace`, and what the rest of the process sees of it. `instance`: this process's
    /// name for people; what it holds the lease by is made unique.
    pub fn new(
        client: Client,
        namespace: &str,
        instance: Option<&str>,
        (metrics, health): (Metrics, Health),
    ) -> (Self, Leadership) {
        let me = format!("{}_{:08x}", instance.unwrap_or(names::MANAGER), RandomState::new().hash_one(namespace) >> 32);
        let reporter = Reporter { controller: names::MANAGER.to_owned(), instance: Some(me.clone()) };
        let (leads, led) = watch::channel(false);
        let fence = Fence::closed();
        let elector = Self {
            recorder: Recorder::new(client.clone(), reporter),
            api: Api::namespaced(client, namespace),
            me,
            fence: fence.clone(),
            leads,
            metrics,
            health,
            observed: Observed::default(),
            renewed: None,
            trouble: None,
        };
        (elector, Leadership { fence, leads: led })
    }

    /// Follows, takes the lease when it is free, and keeps it, until `stop` becomes true; then gives it back.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), LostLease> {
        tracing::info!(me = self.me, "takes part in the election of the leader");
        loop {
            self.health.election_beat();
            let pause = self.step().await?;
            tokio::select! {
                () = sleep(pause) => {}
                // An error means that the sender is gone, and the process with it.
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        self.fence.close();
        if timeout(RELEASE, self.release()).await.is_err() {
            tracing::warn!("the lease could not be given back in time: the next leader waits until it has run out");
        }
        Ok(())
    }

    /// Does what there is to do now; for how long there is nothing to do then.
    async fn step(&mut self) -> Result<Duration, LostLease> {
        self.still_renewed()?;
        if self.renewed.is_none() && !self.look().await {
            return Ok(FOLLOW_EVERY);
        }
        match self.observed.next(&self.me, self.renewed.is_some(), boot_time()) {
            Action::Wait(left) => Ok(left.min(FOLLOW_EVERY)),
            Action::Lost => Err(LostLease::Taken(self.observed.holder().unwrap_or("nobody").to_owned())),
            Action::Take | Action::Renew => Ok(self.write().await),
        }
    }

    /// Fails when the last renewal is too long ago.
    fn still_renewed(&self) -> Result<(), LostLease> {
        match self.renewed {
            Some(renewed) if boot_time().saturating_sub(renewed) >= MAY_WRITE => {
                let stood_still = || "this process did not run meanwhile".to_owned();
                Err(LostLease::NotRenewed { trouble: self.trouble.clone().unwrap_or_else(stood_still) })
            }
            _ => Ok(()),
        }
    }

    /// The longest that the next request may take.
    fn patience(&self) -> Duration {
        let left = |renewed: Duration| (renewed + MAY_WRITE).saturating_sub(boot_time());
        self.renewed.map_or(REQUEST, left).min(REQUEST)
    }

    /// Reads the Lease; whether that succeeded.
    async fn look(&mut self) -> bool {
        let lease = timeout(self.patience(), self.api.get_opt(NAME)).await;
        match lease.map_err(RequestError::from).and_then(|lease| Ok(lease?)) {
            Ok(lease) => {
                self.observed.see(lease, boot_time());
                self.trouble = None;
                true
            }
            Err(error) => {
                self.trouble(&error);
                false
            }
        }
    }

    /// Takes or renews the lease; when to go on.
    async fn write(&mut self) -> Duration {
        let sent = boot_time();
        let lease = self.observed.held_by(&self.me, Timestamp::now());
        match self.put(&lease).await {
            Ok(lease) => {
                self.observed.see(Some(lease), sent);
                self.fence.renewed(sent);
                self.trouble = None;
                if self.renewed.replace(sent).is_none() {
                    self.lead();
                }
                RENEW_EVERY.saturating_sub(boot_time().saturating_sub(sent))
            }
            // The next step decides on what is there now.
            Err(error) if error.is_race() && self.look().await => AGAIN,
            Err(error) => {
                self.trouble(&error);
                RETRY_EVERY.min(self.patience())
            }
        }
    }

    async fn put(&self, lease: &Lease) -> Result<Lease, RequestError> {
        let parameters = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
        let patience = self.patience();
        if lease.metadata.resource_version.is_some() {
            return Ok(timeout(patience, self.api.replace(NAME, &parameters, lease)).await??);
        }
        let mut lease = lease.clone();
        lease.metadata.name = Some(NAME.to_owned());
        Ok(timeout(patience, self.api.create(&parameters, &lease)).await??)
    }

    /// From now on this process leads.
    fn lead(&self) {
        self.health.leads();
        self.metrics.leads();
        self.leads.send_replace(true);
        tracing::info!(me = self.me, "leads");
        let event = Event {
            type_: EventType::Normal,
            reason: "LeaderElected".to_owned(),
            note: Some(format!("{} leads", self.me)),
            action: "LeaderElection".to_owned(),
            secondary: None,
        };
        let about = self.observed.lease().map(|lease| lease.object_ref(&()));
        // It must not hold up a renewal.
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            let Some(about) = about else { return };
            if let Err(error) = recorder.publish(&event, &about).await {
                tracing::warn!(%error, "the Event that tells who leads could not be published");
            }
        });
    }

    /// Gives the lease back, so that nobody has to wait until it has run out.
    async fn release(&mut self) {
        while let Some(lease) = self.observed.released_by(&self.me, Timestamp::now()) {
            match self.put(&lease).await {
                Ok(_) => {
                    tracing::info!(me = self.me, "leads no more: the lease was given back");
                    return;
                }
                Err(error) if error.is_race() && self.look().await => {}
                Err(error) => {
                    self.trouble(&error);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Logs what went wrong, unless it is what went wrong before.
    fn trouble(&mut self, error: &RequestError) {
        let text = error.to_string();
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(error = text, "the lease cannot be read or written and is tried again");
            self.trouble = Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::{BoxError, service_fn};

    use super::*;

    /// What an API server does with one object: versions, and a refusal of writes over another version than the present.
    #[derive(Clone, Default)]
    struct Store(Arc<Mutex<Option<Value>>>);

    impl Store {
        fn holder(&self) -> String {
            let lease = self.0.lock().unwrap();
            lease.as_ref().and_then(|lease| lease["spec"]["holderIdentity"].as_str()).unwrap_or_default().to_owned()
        }

        fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
            if path.contains("/events") {
                return (StatusCode::CREATED, serde_json::from_slice(body).unwrap());
            }
            let refused = |code: StatusCode, reason: &str| {
                let status = json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code.as_u16(), "message": reason});
                (code, status)
            };
            let mut stored = self.0.lock().unwrap();
            if *method != Method::GET {
                let mut sent: Value = serde_json::from_slice(body).unwrap();
                let present = stored.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
                if *method == Method::POST && present.is_some() {
                    return refused(StatusCode::CONFLICT, "AlreadyExists");
                }
                if *method == Method::PUT && present.as_ref() != Some(&sent["metadata"]["resourceVersion"]) {
                    return refused(StatusCode::CONFLICT, "Conflict");
                }
                let version = present.and_then(|version| version.as_str()?.parse::<u64>().ok()).unwrap_or_default() + 1;
                sent["metadata"]["resourceVersion"] = json!(version.to_string());
                *stored = Some(sent);
            }
            stored.clone().map_or_else(|| refused(StatusCode::NOT_FOUND, "NotFound"), |lease| (StatusCode::OK, lease))
        }

        fn elector(&self) -> (Elector, Leadership) {
            let store = self.clone();
            let service = service_fn(move |request: Request<Body>| {
                let store = store.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let (code, value) = store.answer(&parts.method, parts.uri.path(), &body);
                    Ok::<_, BoxError>(
                        Response::builder().status(code).body(Body::from(value.to_string().into_bytes()))?,
                    )
                }
            });
            Elector::new(
                Client::new(service, "default"),
                "default",
                Some("pod"),
                (Metrics::default(), Health::default()),
            )
        }
    }

    #[tokio::test]
    async fn one_of_several_leads_and_is_followed_when_it_gives_the_lease_back() {
        let store = Store::default();
        let stop = watch::Sender::new(false);
        let (first, leads) = store.elector();
        let first = tokio::spawn(first.run(stop.subscribe()));
        leads.clone().gained().await;
        let held = store.holder();
        let never = watch::Sender::new(false);
        let (second, follows) = store.elector();
        tokio::spawn(second.run(never.subscribe()));
        assert!(leads.fence().check().is_ok() && follows.fence().check().is_err() && !follows.leads());
        stop.send_replace(true);
        first.await.unwrap().unwrap();
        assert!(leads.fence().check().is_err(), "who gave it back writes nothing any more");
        timeout(Duration::from_secs(2), follows.gained()).await.unwrap();
        assert!(store.holder().starts_with("pod_") && store.holder() != held);
    }

    #[tokio::test]
    async fn who_finds_the_lease_in_other_hands_has_lost_it() {
        let store = Store::default();
        let (mut elector, leadership) = store.elector();
        elector.step().await.unwrap();
        assert!(leadership.leads());
        // As after a long sleep: meanwhile somebody else took it.
        store.0.lock().unwrap().as_mut().unwrap()["spec"]["holderIdentity"] = json!("other");
        store.0.lock().unwrap().as_mut().unwrap()["metadata"]["resourceVersion"] = json!("7");
        assert_eq!(elector.step().await.unwrap(), AGAIN);
        let lost = elector.step().await.unwrap_err();
        assert_eq!(lost.to_string(), "the lease that this process held is held by other now");
        assert_eq!(store.holder(), "other");
    }

    #[tokio::test]
    async fn a_change_that_leaves_the_holder_alone_loses_nothing() {
        let store = Store::default();
        let (mut elector, leadership) = store.elector();
        elector.step().await.unwrap();
        store.0.lock().unwrap().as_mut().unwrap()["metadata"]["resourceVersion"] = json!("7");
        assert_eq!(elector.step().await.unwrap(), AGAIN);
        assert!(elector.step().await.unwrap() > AGAIN, "renewed over the version that is there now");
        assert!(leadership.fence().check().is_ok());
    }

    #[tokio::test]
    async fn a_renewal_that_is_too_old_ends_it_without_a_question() {
        let store = Store::default();
        let (mut elector, _leadership) = store.elector();
        elector.step().await.unwrap();
        elector.renewed = Some(boot_time().checked_sub(MAY_WRITE).unwrap());
        let lost = elector.step().await.unwrap_err();
        assert_eq!(lost.to_string(), "the lease was not renewed within 10 s: this process did not run meanwhile");
    }
}
