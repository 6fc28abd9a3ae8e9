//! The real operator against a real API server, with a proxy between them that misbehaves.
//!
//! `tests/faults/run` starts the cluster and this program; docs/reliability.md tells what is promised.

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
use futures::{FutureExt, StreamExt, future::BoxFuture};
use kube::{Client, Config};

use checks::steps::Course;
use operator::Program;
use proxy::Upstream;
use report::{Row, say};
use rig::Lab;
use scenario::{SCENARIOS, Scenario};
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
    /// Scenarios that are tried at once.
    #[arg(long, default_value = "12")]
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
    let rows = try_all(&lab, &arguments).await?;
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
    let program = Program {
        path: arguments.operator.clone(),
        folder: arguments.folder.clone(),
    };
    let world = World::watch(Client::try_from(config)?);
    Ok(Lab { world, program, upstream })
}

/// What is tried at once: each ends with rows for the table.
type Try<'a> = BoxFuture<'a, Vec<Row>>;

/// All that is tried.
async fn try_all(lab: &Lab, arguments: &Arguments) -> anyhow::Result<Vec<Row>> {
    let wanted = |scenario: &Scenario, kind: &str| format!("{} {kind}", scenario.name).contains(&arguments.only);
    let kinds = ["kill", "lose", "stale", "disturbed"];
    let played = |scenario: &&Scenario| {
        let disturbances = checks::disturbed::DISTURBANCES.iter().map(|(words, _)| format!("disturbed {words}"));
        kinds.map(str::to_owned).into_iter().chain(disturbances).any(|kind| wanted(scenario, &kind))
    };
    let courses = futures::future::join_all(SCENARIOS.iter().filter(played).map(|scenario| async move {
        let course = checks::steps::undisturbed(lab, scenario).await;
        (scenario, course)
    }));
    let courses: Vec<_> = courses.await;
    // The longest first.
    let mut tries: Vec<Try<'_>> = Vec::new();
    let alone: [(&str, BoxFuture<'_, Row>); 3] = [
        ("rest", checks::rest::idle(lab).boxed()),
        ("taken", checks::taken::service(lab).boxed()),
        ("ending", checks::ending::namespace(lab).boxed()),
    ];
    let alone = alone.into_iter().filter(|(name, _)| name.contains(&arguments.only));
    tries.extend(alone.map(|(_, row)| row.map(|row| vec![row]).boxed()));
    for (scenario, course) in &courses {
        let course = course.as_ref().map_err(|error| anyhow::anyhow!("undisturbed, {}: {error:#}", scenario.name))?;
        let Course { writes, events, pods, .. } = course;
        let took = course.took.as_secs_f64();
        say(&format!("{} undisturbed: {writes} writes, {events} events, {pods} pods, {took:.1} s", scenario.name));
        if scenario.name == "update" {
            let all = checks::disturbed::DISTURBANCES.iter().enumerate();
            let wanted = all.filter(|(_, (words, _))| wanted(scenario, &format!("disturbed {words}")));
            let update = |index| async move { vec![checks::disturbed::update(lab, scenario, course, index).await] };
            tries.extend(wanted.map(|(index, _)| update(index).boxed()));
        }
        if wanted(scenario, "stale") {
            tries.push(checks::stale::restarts(lab, scenario, course).boxed());
        }
    }
    for (scenario, course) in &courses {
        let Ok(course) = course else { continue };
        let mut faults = Vec::new();
        faults.extend(checks::steps::kills(course).into_iter().filter(|_| wanted(scenario, "kill")));
        faults.extend(checks::steps::losses(course).into_iter().filter(|_| wanted(scenario, "lose")));
        let disturbed = |fault| async move { vec![checks::steps::disturbed(lab, scenario, course, fault).await] };
        tries.extend(faults.into_iter().map(|fault| disturbed(fault).boxed()));
    }
    let told = futures::stream::iter(tries).buffer_unordered(arguments.at_once).inspect(|rows| {
        rows.iter().filter(|row| arguments.every || row.result.is_err()).for_each(Row::say);
    });
    Ok(told.collect::<Vec<_>>().await.into_iter().flatten().collect())
}
