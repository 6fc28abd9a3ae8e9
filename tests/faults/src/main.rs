//! The real operator against a real API server, with a proxy between them that misbehaves.
//!
//! `tests/faults/run` starts the cluster and this program; docs/reliability.md tells what is promised.

mod all;
mod call;
mod checks;
mod events;
mod fault;
mod normal;
mod operator;
mod proxy;
mod report;
mod rig;
mod scenario;
mod world;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::Context;
use clap::Parser;
use kube::{Client, Config};

use all::All;
use operator::Program;
use proxy::Upstream;
use report::say;
use rig::Lab;
use world::World;

/// Tries what goes wrong between operator and API server.
#[derive(Debug, Parser)]
struct Arguments {
    /// The operator.
    #[arg(long)]
    operator: PathBuf,
    /// The operator's token. (The administrator's rights come from KUBECONFIG.)
    #[arg(long, env = "FAULTS_TOKEN", hide_env_values = true)]
    token: String,
    /// Where logs go.
    #[arg(long)]
    folder: PathBuf,
    /// Faults that are tried at once.
    #[arg(long, default_value = "20")]
    at_once: usize,
    /// Only what holds this, of `SCENARIO kill`, `SCENARIO lose`, `SCENARIO stale`, `update disturbed WHAT`, `rest`,
    /// `taken` and `ending`.
    #[arg(long, default_value = "")]
    only: String,
    /// A line for each fault that was tried.
    #[arg(long)]
    every: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let started = Instant::now();
    let lab = lab(&arguments).await?;
    let all = All::new(&lab, &arguments.only, arguments.every, arguments.at_once);
    let rows = all.try_them().await?;
    let good = report::print(&rows);
    say(&format!("in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn lab(arguments: &Arguments) -> anyhow::Result<Lab> {
    let config = Config::infer().await.context("no cluster: KUBECONFIG does not lead to one")?;
    let mut client = reqwest::Client::builder().http1_only().no_proxy();
    for certificate in config.root_cert.iter().flatten() {
        client = client.add_root_certificate(reqwest::Certificate::from_der(certificate)?);
    }
    if config.accept_invalid_certs {
        client = client.tls_danger_accept_invalid_certs(true);
    }
    let upstream = Upstream {
        client: client.build()?,
        server: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
        token: arguments.token.clone(),
    };
    let program = Program { path: arguments.operator.clone(), folder: arguments.folder.clone() };
    let world = World::watch(Client::try_from(config)?);
    Ok(Lab { world, program, upstream })
}
