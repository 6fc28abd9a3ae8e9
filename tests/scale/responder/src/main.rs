//! The other half of kwok's fake pods: answers `GET /stats` on port 9090 of every address that this network namespace
//! owns, with the server's own message, so that the operator's looks cost what they cost in life.
//!
//! Each address is a server of its own: ready, at rest; one of a hundred, or of as many as its argument says (0: none),
//! answers 50 requests a second, of 4 ms each.

use std::time::Instant;

use axum::{
    Json, Router,
    http::{HeaderMap, header::HOST},
    routing::get,
};
use ortolan_protocol::{
    histogram::Histogram,
    ports,
    stats::{BatchCell, Phase, Stats},
};

/// One server of so many has requests, where the argument does not say otherwise.
const BUSY_OF: u64 = 100;
/// Requests a second that it answers.
const REQUESTS: f64 = 50.0;
/// Seconds that each takes.
const LATENCY: f64 = 0.004;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let started = Instant::now();
    let busy_of = std::env::args().nth(1).map_or(Ok(BUSY_OF), |number| number.parse())?;
    let stats = move |headers: HeaderMap| async move {
        let address = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        Json(stats(address, busy_of, started.elapsed().as_secs_f64()))
    };
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", ports::OPERATIONS)).await?;
    axum::serve(listener, Router::new().route("/stats", get(stats))).await?;
    Ok(())
}

/// What the server at `address` tells `seconds` after its start. No number is a multiple of zero but zero.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a small number above zero
fn stats(address: &str, busy_of: u64, seconds: f64) -> Stats {
    let number = address.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let completed = if number.is_multiple_of(busy_of) { (REQUESTS * seconds) as u64 } else { 0 };
    let mut latency = Histogram::default();
    if completed > 0 {
        latency.record(LATENCY);
        latency.buckets.values_mut().for_each(|count| *count = completed);
        latency.sum = LATENCY * completed as f64;
    }
    let work = LATENCY * completed as f64;
    let mut stats = Stats {
        model: "fake".to_owned(),
        instance: format!("{number:x}"),
        digest: Some("5f".repeat(32)),
        phase: Phase::Ready,
        uptime_seconds: seconds,
        start_to_ready_seconds: Some(0.5),
        cpus: 1.0,
        cpu_seconds: work,
        rows_arrived: completed,
        max_batch_rows: 8,
        batches: vec![BatchCell { limit: 1, count: completed + 1, rows: completed + 1, seconds: work + LATENCY }],
        queue_wait: latency.clone(),
        latency,
        ..Stats::default()
    };
    (stats.requests.arrived, stats.requests.admitted, stats.requests.completed) = (completed, completed, completed);
    stats
}
