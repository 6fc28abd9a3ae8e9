//! The command line: `ortolan run` is the operator, the other commands are for people.

use std::{io::Write, net::SocketAddr, time::Duration};

use anyhow::Context;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use kube::{Config, client::ClientBuilder};
use ortolan::{
    api,
    cluster::{
        lease::{Elector, Leadership},
        pace::Pace,
        patience::Patience,
    },
    controller::{self, Settings},
    metrics::Metrics,
    operations::{self, Health},
    render::{Clients, Network, Renderer},
    traces::{self, Traces},
};
use tokio::sync::watch;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Serves machine-learning models on Kubernetes, driven by what is observed.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the operator.
    Run(Box<Run>),
    /// Prints the CustomResourceDefinition as YAML.
    Crd,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// The inference server's image for new revisions.
    #[arg(long, env = "ORTOLAN_SERVER_IMAGE")]
    server_image: String,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "ORTOLAN_OPERATIONS_ADDRESS", default_value = "0.0.0.0:9090")]
    operations_address: SocketAddr,
    /// The form of the log.
    #[arg(long, env = "ORTOLAN_LOG_FORMAT", default_value = "json")]
    log_format: LogFormat,
    /// What is logged: a level, or `target=level,…`.
    #[arg(long, env = "ORTOLAN_LOG", default_value = "info")]
    log: String,
    /// The name of this process, for Events; the pod's name in a cluster.
    #[arg(long, env = "POD_NAME")]
    instance: Option<String>,
    /// Whether processes elect one that works while the others wait. Without it there may be only this one.
    #[arg(long, env = "ORTOLAN_LEADER_ELECT", default_value_t = true, action = ArgAction::Set)]
    leader_elect: bool,
    /// The namespace of the Lease by which the leader is elected; that of --namespace unless it is given.
    #[arg(long)]
    lease_namespace: Option<String>,
    /// The time after which everything is listed anew, in case that a watch ever missed something.
    #[arg(long, env = "ORTOLAN_RELIST", default_value = "30m", value_parser = time)]
    relist: Duration,
    /// Only for tests of upgrades: renders new revisions as the next version of the operator might.
    #[arg(long, env = "ORTOLAN_TRIAL_RENDERER", hide = true)]
    trial_renderer: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

/// What models' NetworkPolicies say.
#[derive(Debug, clap::Args)]
struct NetworkArguments {
    /// The namespace of this process; the pod's in a cluster.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// Makes a NetworkPolicy for every model, which opens its servers' operations port only for this process's namespace
    /// and those of --monitoring-namespace, and their serving ports for --client-namespace.
    #[arg(long, env = "ORTOLAN_MODEL_NETWORK_POLICIES", requires = "namespace")]
    model_network_policies: bool,
    /// A namespace from which the metrics of model servers are scraped; can be given several times.
    #[arg(long = "monitoring-namespace", env = "ORTOLAN_MONITORING_NAMESPACES", value_delimiter = ',')]
    monitoring_namespaces: Vec<String>,
    /// A namespace whose pods may reach all models, besides the model's own; `*` for everyone. Can be given several times.
    #[arg(long = "client-namespace", env = "ORTOLAN_CLIENT_NAMESPACES", value_delimiter = ',')]
    client_namespaces: Vec<String>,
    /// Closes the metadata services of clouds to model servers. The NetworkPolicies then allow them to reach everything
    /// else, also where another policy does not.
    #[arg(long, env = "ORTOLAN_BLOCK_METADATA", requires = "model_network_policies")]
    block_metadata: bool,
}

impl NetworkArguments {
    fn network(self) -> Option<Network> {
        let operator = self.namespace.filter(|_| self.model_network_policies)?;
        let everyone = self.client_namespaces.iter().any(|name| name == "*");
        Some(Network {
            operator,
            monitoring: self.monitoring_namespaces,
            clients: if everyone { Clients::Everyone } else { Clients::Namespaces(self.client_namespaces) },
            block_metadata: self.block_metadata,
        })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Cli {
    /// Does what the arguments say.
    pub async fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(run) => run.execute().await,
            Command::Crd => print_crd(),
        }
    }
}

fn print_crd() -> anyhow::Result<()> {
    let text = serde_yaml::to_string(&api::definition())?;
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

impl Run {
    async fn execute(self) -> anyhow::Result<()> {
        rustls::crypto::ring::default_provider()
            .install_default()
            .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
        let traces = self.start_log()?;
        let mut config =
            Config::infer().await.context("no cluster: neither a kubeconfig nor a service account was found")?;
        // The client's own retries go on for up to 1000 s; a reconcile is tried again by its controller instead.
        config.default_retry = false;
        let (metrics, health) = (Metrics::default(), Health::default());
        let (elector, leadership) = self.election(&config, &metrics, &health)?;
        // From the last thing that a request passes to the first.
        let client = ClientBuilder::try_from(config)?
            .with_layer(leadership.fence())
            .with_layer(&Patience::default())
            .with_layer(metrics.api())
            .with_layer(&Pace::default())
            .build();
        let (stop, over) = (watch::Sender::new(false), watch::Sender::new(false));
        let app = operations::app(metrics.clone(), health.clone());
        let operations = tokio::spawn(operations::serve(self.operations_address, app, told(stop.subscribe())));
        let election = elector.map(|elector| tokio::spawn(elect(elector, over.subscribe())));
        let renderer = if self.trial_renderer { Renderer::TRIAL } else { Renderer::NEWEST };
        let network = self.network.network();
        let Self { server_image, instance, relist, .. } = self;
        let settings = Settings { server_image, instance, renderer, network, relist };
        let shutdown = Box::pin(told(stop.subscribe()));
        let controller = controller::run(client, settings, (metrics, health, leadership), shutdown);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "the operator runs");
        let stopping = stop.subscribe();
        let signal = tokio::spawn(async move {
            let result = terminated().await;
            stop.send_replace(true);
            result
        });
        controller.await?;
        anyhow::ensure!(*stopping.borrow(), "the watch of ModelDeployments ended by itself");
        // Only now: whoever leads next finds nobody at work.
        over.send_replace(true);
        if let Some(election) = election {
            election.await.context("the election failed")?;
        }
        signal.await?.context("cannot listen for signals")?;
        operations.await?.context("the operations port failed")?;
        if let Some(traces) = traces {
            tokio::task::spawn_blocking(|| traces.end()).await?;
        }
        tracing::info!("the operator has stopped");
        Ok(())
    }

    /// How this process takes part in the election of the leader; no elector: it is the only one.
    fn election(
        &self,
        config: &Config,
        metrics: &Metrics,
        health: &Health,
    ) -> anyhow::Result<(Option<Elector>, Leadership)> {
        if !self.leader_elect {
            metrics.leads();
            health.leads();
            return Ok((None, Leadership::without_election()));
        }
        let namespace = self.lease_namespace.as_deref().or(self.network.namespace.as_deref()).context(
            "no namespace is known for the Lease by which the leader is elected: give --lease-namespace (in a pod, the \
             variable POD_NAMESPACE), or --leader-elect=false where no other operator can run",
        )?;
        let client =
            ClientBuilder::try_from(config.clone())?.with_layer(&Patience::default()).with_layer(metrics.api()).build();
        let (elector, leadership) =
            Elector::new(client, namespace, self.instance.as_deref(), (metrics.clone(), health.clone()));
        Ok((Some(elector), leadership))
    }

    /// Starts the log, and the traces if somebody wants them.
    fn start_log(&self) -> anyhow::Result<Option<Traces>> {
        let filter = EnvFilter::try_new(&self.log).context("the log filter cannot be read")?;
        let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let log = match self.log_format {
            LogFormat::Json => log.json().flatten_event(true).boxed(),
            LogFormat::Text => log.boxed(),
        };
        if !traces::wanted() {
            tracing_subscriber::registry().with(log).with(filter).init();
            return Ok(None);
        }
        let traces = Traces::to(None, self.instance.as_deref())
            .context("traces cannot be sent: check OTEL_EXPORTER_OTLP_ENDPOINT")?;
        tracing_subscriber::registry().with(log.with_filter(filter)).with(traces.layer()).init();
        Ok(Some(traces))
    }
}

/// Takes part in the election until `over`. Who has led and does not any more ends at once: nothing that it knows and
/// has under way is to be trusted.
async fn elect(elector: Elector, over: watch::Receiver<bool>) {
    if let Err(lost) = elector.run(over).await {
        // The other threads' lines wait for ever: the log's last word is why.
        let _last = std::io::stderr().lock();
        tracing::error!(error = %lost, "this process may not lead any more and ends");
        std::process::exit(1);
    }
}

/// Returns once it is told.
async fn told(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the process with it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Reads a time such as `30m`.
fn time(text: &str) -> Result<Duration, String> {
    let time = text.parse::<jiff::SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
    let time = time.filter(|time| *time >= Duration::from_secs(5));
    time.ok_or_else(|| "a time of at least five seconds was expected, such as 30m or 90s".to_owned())
}

/// Returns at SIGTERM or SIGINT.
async fn terminated() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
