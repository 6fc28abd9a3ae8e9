//! A server's life: open the ports, get the model, answer, and leave without losing a request.
//!
//! The ports are open from the first moment, and say that the model is not ready, so that nobody has to guess whether a
//! server is slow or dead. On SIGTERM readiness goes first; requests are answered for a while as if nothing had happened,
//! since clients learn late that a server leaves; then connections are closed as they become idle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ortolan_protocol::failure::{Failure, FailureReason};
use ortolan_protocol::grpc::grpc_inference_service_server::SERVICE_NAME;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tracing::{info, warn};

use crate::client_limit::OpenConnections;
use crate::config::{Config, Drain};
use crate::fetch::{self, Access, Retries, Wanted};
use crate::last_words::Testament;
use crate::listen::{self, Clients, Connections, Speaks};
use crate::load::Plan;
use crate::serving::{Model, Server};
use crate::{engine, grpc, http, load, memory, ops};

/// How a server's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to stop, and finished what it had begun, as far as the time allowed.
    Drained,
    /// It was told twice.
    Forced,
}

/// Serves one model until told to stop.
pub async fn run(config: Config, last_words: &Testament, started: Instant) -> Result<End, Failure> {
    let mut stop = StopSignals::new()?;
    let server = Arc::new(Server::new(&config, started));
    let (health, health_service) = health_reporter();
    set_health(&health, ServingStatus::NotServing).await;
    let ports = Ports::bind(&config).await?;
    let apps = Apps {
        http: http::app(Arc::clone(&server)),
        grpc: grpc::app(Arc::clone(&server), health_service),
        ops: ops::app(Arc::clone(&server)),
    };
    let running = ports.serve(apps, &config);
    if let Some(tls) = config.tls.clone() {
        tokio::spawn(async move { tls.follow().await });
    }
    if let Some(keys) = config.keys.clone() {
        tokio::spawn(async move { keys.follow().await });
    }

    let model = tokio::select! {
        biased;
        () = stop.next() => {
            info!("told to stop before the model was ready");
            return Ok(End::Drained);
        }
        model = obtain(&config, &server, last_words) => model?,
    };
    server.loaded(model);
    set_health(&health, ServingStatus::Serving).await;
    info!(model = server.name(), after = ?started.elapsed(), "ready");

    stop.next().await;
    server.drain();
    set_health(&health, ServingStatus::NotServing).await;
    tokio::select! {
        () = async {
            running.drain(config.drain, &server).await;
            if let Some(telemetry) = &config.telemetry {
                Arc::clone(telemetry).end().await;
            }
        } => Ok(End::Drained),
        () = stop.next() => {
            warn!("told to stop again: leaving at once");
            Ok(End::Forced)
        }
    }
}

/// Fetches and loads the model. The runtime's library is loaded meanwhile.
async fn obtain(config: &Config, server: &Server, last_words: &Testament) -> Result<Model, Failure> {
    let library = config.onnxruntime.clone();
    let runtime = tokio::task::spawn_blocking(move || engine::initialize(&library));
    let tell = |digest: &str| {
        server.fetched(digest);
        last_words.fetched(digest);
    };
    let wanted = Wanted {
        digest: config.digest.clone(),
        max_bytes: config.max_model_bytes,
        cache: &config.cache_dir,
        retries: Retries::default(),
        access: Access { credentials: config.credentials_dir.as_deref(), cloud_identity: config.cloud_identity },
        data_files: engine::data_files,
        tell: &tell,
    };
    if config.owns_cache {
        fetch::sweep(&config.cache_dir, config.digest.hex());
    }
    let start = Instant::now();
    let fetched = fetch::fetch(&config.source, &wanted).await?;
    info!(bytes = fetched.bytes, sha256 = fetched.digest, took = ?start.elapsed(), "the model is fetched");
    let _ = server.counters().load_times.fetch.set(start.elapsed());
    // A model can hang the runtime: nobody would ever know why the server does not become ready.
    let loading = async {
        runtime
            .await
            .map_err(|_| internal("the ONNX Runtime library stopped the thread that loaded it".to_owned()))??;
        load::check_memory(fetched.bytes, memory::limit(), memory::used())?;
        let _until_loaded = last_words.loading(fetched.bytes);
        load::load(fetched, Plan::from(config), Arc::clone(server.counters())).await
    };
    tokio::time::timeout(config.load_timeout, loading).await.unwrap_or_else(|_| Err(timed_out(config.load_timeout)))
}

fn timed_out(limit: Duration) -> Failure {
    let limit = humantime::format_duration(limit);
    Failure {
        reason: FailureReason::LoadTimedOut,
        message: format!(
            "the model was fetched, but loading it and running it for the first time was not done within {limit}: it hangs, or \
             there is too little CPU for it"
        ),
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health.set_service_status(SERVICE_NAME, status).await;
}

struct Ports {
    http: TcpListener,
    grpc: TcpListener,
    ops: TcpListener,
}

struct Apps {
    http: axum::Router,
    grpc: axum::Router,
    ops: axum::Router,
}

impl Ports {
    async fn bind(config: &Config) -> Result<Self, Failure> {
        let listen = config.listen;
        let ports = Self {
            http: listen::bind(listen.address, listen.http, "REST").await?,
            grpc: listen::bind(listen.address, listen.grpc, "gRPC").await?,
            ops: listen::bind(listen.address, listen.ops, "operations").await?,
        };
        let port = |listener: &TcpListener| listener.local_addr().map_or(0, |address| address.port());
        info!(http = port(&ports.http), grpc = port(&ports.grpc), ops = port(&ports.ops), "listening");
        Ok(ports)
    }

    fn serve(self, apps: Apps, config: &Config) -> Running {
        let (stop, stopped) = watch::channel(false);
        let start =
            |listener, app, connections, stopped| tokio::spawn(listen::serve(listener, app, connections, stopped));
        let clients = clients(config);
        let public = |speaks| {
            Connections::new(speaks, config.tls.clone(), config.requests.head_timeout).with_clients(clients.clone())
        };
        let http = start(self.http, apps.http, public(Speaks::Http), stopped.clone());
        let grpc = start(self.grpc, apps.grpc, public(Speaks::Http2), stopped);
        // The operations port answers to the very end.
        let (ops_stop, ops_stopped) = watch::channel(false);
        start(self.ops, apps.ops, Connections::new(Speaks::Http, None, config.requests.head_timeout), ops_stopped);
        Running { stop, _ops: ops_stop, http, grpc }
    }
}

/// What is done about clients on the ports that they use. Where they have keys, their addresses say nothing.
fn clients(config: &Config) -> Clients {
    let limits = config.client_limits;
    let are_told = limits.client_requests_per_second.is_some() && config.keys.is_none();
    Clients { are_told, open: OpenConnections::new(limits) }
}

/// The ports' tasks.
struct Running {
    stop: watch::Sender<bool>,
    _ops: watch::Sender<bool>,
    http: JoinHandle<()>,
    grpc: JoinHandle<()>,
}

impl Running {
    async fn drain(self, drain: Drain, server: &Server) {
        info!(delay = ?drain.delay, "told to stop: not ready any more, still answering");
        tokio::time::sleep(drain.delay).await;
        self.stop.send_replace(true);
        let finished = async {
            // A task that panicked has nothing left to finish.
            let _ = self.http.await;
            let _ = self.grpc.await;
        };
        if tokio::time::timeout(drain.timeout, finished).await.is_ok() {
            info!("all requests are answered");
        } else {
            let (_, in_flight) = server.counters().requests();
            warn!(in_flight, timeout = ?drain.timeout, "leaving with unfinished connections");
        }
    }
}

/// SIGTERM, as Kubernetes sends it, and SIGINT, as people do.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| internal(format!("signals cannot be received: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn internal(message: String) -> Failure {
    Failure { reason: FailureReason::Internal, message }
}
