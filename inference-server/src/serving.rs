//! The state that all ports share: which model this server is for, how far it is, and what it has counted.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::Request as HttpRequest;
use axum::http::HeaderMap;
use ortolan_protocol::oip::{ModelMetadata, ServerMetadata};
use ortolan_protocol::stats::{Phase, Stats, Trial};
use tokio::sync::watch;

use crate::access::Keys;
use crate::batch::{Batcher, Request};
use crate::body::UnderWay;
use crate::client_limit::{Client, RequestLimit};
use crate::config::{Config, RequestLimits};
use crate::cpu;
use crate::engine::Signature;
use crate::error::{Error, ErrorKind};
use crate::request::Rules;
use crate::response_cache::ResponseCache;
use crate::stats::{Arrival, Counters};
use crate::telemetry::{Route, Telemetry, Watch};
use crate::tensor::Tensor;

/// The framework and format of every model, as other servers name it.
pub const PLATFORM: &str = "onnxruntime_onnx";

/// The extensions of the protocol that are spoken, by the names that Triton gave them.
const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "classification", "model_configuration", "statistics", "model_repository(index)"];

/// What all ports share.
pub struct Server {
    name: String,
    version: String,
    revision: Option<String>,
    limits: RequestLimits,
    bodies: Arc<UnderWay>,
    cpus: f64,
    counters: Arc<Counters>,
    telemetry: Option<Arc<Telemetry>>,
    keys: Option<Arc<Keys>>,
    request_limit: Option<RequestLimit>,
    cache: Option<ResponseCache>,
    instance: String,
    started: Instant,
    phase: AtomicU8,
    leaving: watch::Sender<bool>,
    digest: OnceLock<String>,
    start_to_ready: OnceLock<Duration>,
    model: OnceLock<Model>,
}

/// A model that answers.
pub struct Model {
    /// What it takes and gives.
    pub signature: Signature,
    /// Whether its first dimension counts rows.
    pub has_rows: bool,
    /// The largest batch in rows.
    pub max_rows: usize,
    /// How many batches run at once.
    pub instances: usize,
    /// What was measured to find that number.
    pub trials: Vec<Trial>,
    /// How long a request may wait for others.
    pub max_delay: Duration,
    /// What runs it.
    pub batcher: Batcher,
}

impl Server {
    /// A server that has nothing yet. `started`: when the process did.
    pub fn new(config: &Config, started: Instant) -> Self {
        Self {
            name: config.name.clone(),
            version: config.revision.clone().unwrap_or_else(|| "1".to_owned()),
            revision: config.revision.clone(),
            limits: config.requests,
            bodies: Arc::new(UnderWay::new(config.requests)),
            cpus: config.cpus,
            counters: Arc::new(Counters::default()),
            telemetry: config.telemetry.clone(),
            keys: config.keys.clone(),
            request_limit: RequestLimit::new(config.client_limits),
            cache: (config.response_cache > 0).then(|| ResponseCache::new(config.response_cache)),
            instance: format!("{:016x}", RandomState::new().hash_one(0)),
            started,
            phase: AtomicU8::new(Phase::Fetching as u8),
            leaving: watch::Sender::new(false),
            digest: OnceLock::new(),
            start_to_ready: OnceLock::new(),
            model: OnceLock::new(),
        }
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's one version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What clients may send.
    pub fn limits(&self) -> RequestLimits {
        self.limits
    }

    /// The requests' bodies that are coming in.
    pub fn bodies(&self) -> &Arc<UnderWay> {
        &self.bodies
    }

    /// Lets a request in by the key in its headers, where keys are wanted, and by how much its client has asked.
    pub fn admit(&self, request: &HttpRequest) -> Result<(), Error> {
        let admitted = self.identify(request).and_then(|client| self.check_limit(client));
        self.count_refusal(admitted)
    }

    /// Lets a request in by the key in its headers, where keys are wanted; what its client asks with it is limited elsewhere.
    /// Tells who it is, where there is a limit.
    pub fn admit_stream(&self, request: &HttpRequest) -> Result<Option<Client>, Error> {
        let admitted = self.identify(request);
        self.count_refusal(admitted)
    }

    /// Whether a client may ask once more.
    pub fn check_limit(&self, client: Option<Client>) -> Result<(), Error> {
        let limited = self.request_limit.as_ref().zip(client);
        limited.map_or(Ok(()), |(limit, client)| limit.check(client))
    }

    /// Who asks, where there is a limit for clients.
    fn identify(&self, request: &HttpRequest) -> Result<Option<Client>, Error> {
        let hash = self.keys.as_ref().map(|keys| keys.check(request.headers())).transpose()?;
        if self.request_limit.is_none() {
            return Ok(None);
        }
        let of_key = hash.map(|hash| Client::with_key(&hash));
        Ok(of_key.or_else(|| Client::of_connection(request.extensions())))
    }

    fn count_refusal<T>(&self, admitted: Result<T, Error>) -> Result<T, Error> {
        if admitted.is_err() {
            self.counters.arrive().finish(&admitted);
        }
        admitted
    }

    /// What is counted.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What is told of single requests, where anything is.
    pub fn telemetry(&self) -> Option<&Arc<Telemetry>> {
        self.telemetry.as_ref()
    }

    /// Counts a request that came for inference, and has it told of where it is one of those that are.
    pub fn arrive(&self, route: Route, headers: &HeaderMap) -> Arrival {
        self.counters.arrive().watched(self.watch(route, headers))
    }

    /// What a request is told of by, where it is one of those that are.
    pub fn watch(&self, route: Route, headers: &HeaderMap) -> Option<Arc<Watch>> {
        self.telemetry.as_ref()?.watch(route, headers)
    }

    /// The bytes are there.
    pub fn fetched(&self, digest: &str) {
        self.digest.get_or_init(|| digest.to_owned());
        self.set_phase(Phase::Loading);
    }

    /// From now on requests are answered.
    pub fn loaded(&self, model: Model) {
        self.model.get_or_init(|| model);
        self.start_to_ready.get_or_init(|| self.started.elapsed());
        self.set_phase(Phase::Ready);
    }

    /// From now on no new clients are wanted.
    pub fn drain(&self) {
        self.set_phase(Phase::Draining);
        self.leaving.send_replace(true);
    }

    /// Waits until no new clients are wanted.
    pub async fn drained(&self) {
        // The sender lives as long as the server.
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    /// How far the server is.
    pub fn phase(&self) -> Phase {
        let phase = self.phase.load(Ordering::Acquire);
        [Phase::Fetching, Phase::Loading, Phase::Ready, Phase::Draining]
            .into_iter()
            .find(|candidate| *candidate as u8 == phase)
            .unwrap_or_default()
    }

    /// Whether new clients are welcome.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && self.is_live()
    }

    /// Whether this process is still of use.
    pub fn is_live(&self) -> bool {
        self.model.get().is_none_or(|model| model.batcher.is_alive())
    }

    /// Whether this server is about to stop.
    pub fn is_draining(&self) -> bool {
        self.phase() == Phase::Draining
    }

    /// The model, if the name and version are its own and it is loaded.
    pub fn model(&self, name: &str, version: Option<&str>) -> Result<&Model, Error> {
        self.check_name(name, version)?;
        self.model.get().ok_or_else(Error::not_ready)
    }

    /// Whether the name and version are those of this server's model.
    pub fn check_name(&self, name: &str, version: Option<&str>) -> Result<(), Error> {
        if name != self.name {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no model '{name}' here; this server has '{}'", self.name),
            ));
        }
        match version.filter(|version| !version.is_empty()) {
            Some(version) if version != self.version => Err(Error::new(
                ErrorKind::NotFound,
                format!("model '{name}' has no version '{version}' here; this server has '{}'", self.version),
            )),
            _ => Ok(()),
        }
    }

    /// Runs a request that fits the model, or gives the answer that it had before.
    pub async fn infer(&self, model: &Model, request: Request, arrival: &Arrival) -> Result<Vec<Tensor>, Error> {
        arrival.note(|watch| watch.parsed(request.rows));
        let Some(cache) = &self.cache else { return run(model, request, arrival).await };
        let started = Instant::now();
        match cache.get(&request) {
            Ok(answer) => {
                self.counters.cache_hits.record(started.elapsed());
                arrival.note(Watch::cached);
                Ok(answer)
            }
            Err(key) => {
                let answer = run(model, request, arrival).await?;
                let kept = Instant::now();
                cache.put(key, &answer);
                self.counters.cache_misses.record(kept.elapsed());
                Ok(answer)
            }
        }
    }

    /// Name, version and extensions.
    pub fn metadata(&self) -> ServerMetadata {
        ServerMetadata {
            name: "ortolan".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }
    }

    /// What the model takes and gives.
    pub fn model_metadata(&self, model: &Model) -> ModelMetadata {
        ModelMetadata {
            name: self.name.clone(),
            versions: vec![self.version.clone()],
            platform: PLATFORM.to_owned(),
            inputs: model.signature.inputs.iter().map(Into::into).collect(),
            outputs: model.signature.outputs.iter().map(Into::into).collect(),
        }
    }

    /// Everything that is known about this server, for the operator.
    pub fn stats(&self) -> Stats {
        let (requests, in_flight) = self.counters.requests();
        Stats {
            model: self.name.clone(),
            revision: self.revision.clone(),
            instance: self.instance.clone(),
            digest: self.digest.get().cloned(),
            phase: self.phase(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            start_to_ready_seconds: self.start_to_ready.get().map(Duration::as_secs_f64),
            cpus: self.cpus,
            cpu_seconds: cpu::used().as_secs_f64(),
            requests,
            rows_arrived: self.counters.rows_arrived(),
            in_flight,
            queued_rows: self.counters.queued_rows(),
            max_batch_rows: self.model.get().map_or(0, |model| if model.has_rows { model.max_rows as u64 } else { 1 }),
            instances: self.model.get().map_or(0, |model| model.instances as u64),
            autotune: self.model.get().map_or_else(Vec::new, |model| model.trials.clone()),
            latency: self.counters.latency.snapshot(),
            queue_wait: self.counters.queue_wait.snapshot(),
            batches: self.counters.batch_cells(),
        }
    }

    fn set_phase(&self, phase: Phase) {
        // Draining is final: a model that is loaded after SIGTERM does not make the server ready again.
        let advance = |current| (current != Phase::Draining as u8).then_some(phase as u8);
        let _ = self.phase.fetch_update(Ordering::AcqRel, Ordering::Acquire, advance);
    }
}

/// What the cache answers needs no capacity, and so is not among the rows that arrived.
async fn run(model: &Model, request: Request, arrival: &Arrival) -> Result<Vec<Tensor>, Error> {
    arrival.admit(request.rows);
    let answer = model.batcher.run_watched(request, arrival.watch().cloned()).await?;
    arrival.note(Watch::answered);
    Ok(answer)
}

impl Model {
    /// How it wants its requests.
    pub fn rules(&self) -> Rules<'_> {
        Rules { signature: &self.signature, has_rows: self.has_rows, max_rows: self.max_rows }
    }
}
