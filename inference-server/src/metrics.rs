//! The server's numbers for Prometheus: a view of the same counters that `/stats` shows, made when it is asked for.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use ortolan_protocol::histogram::{Histogram, LAST_BUCKET, upper_bound};
use ortolan_protocol::stats::{BatchCell, Phase, Stats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::serving::Server;
use crate::stats::Counters;

/// The first bucket bound that is shown, 16 µs; below lies nothing that matters.
const FIRST_SHOWN: u16 = 32;
/// Two bounds a doubling of the eight that are kept.
const SHOWN_EVERY: usize = 4;

/// All metrics of a server.
pub fn registry(server: Arc<Server>) -> Registry {
    let label = |name: &'static str, value: &str| (Cow::Borrowed(name), Cow::Owned(value.to_owned()));
    let labels = [label("model", server.name()), label("version", server.version())];
    let mut registry = Registry::with_prefix_and_labels("ortolan_server", labels.into_iter());
    registry.register_collector(Box::new(View { server }));
    registry
}

struct View {
    server: Arc<Server>,
}

impl fmt::Debug for View {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("View").finish_non_exhaustive()
    }
}

impl Collector for View {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let stats = self.server.stats();
        requests(&mut encoder, &stats)?;
        cache(&mut encoder, self.server.counters())?;
        batches(&mut encoder, &stats.batches)?;
        gauges(&mut encoder, &stats)?;
        histogram(
            &mut encoder,
            "request_duration",
            "From the arrival of a body to its answer, for requests that succeeded",
            &stats.latency,
        )?;
        histogram(&mut encoder, "queue_duration", "From entering the queue to execution", &stats.queue_wait)
    }
}

fn requests(encoder: &mut DescriptorEncoder, stats: &Stats) -> fmt::Result {
    let outcomes = [
        ("completed", stats.requests.completed),
        ("refused", stats.requests.refused),
        ("failed", stats.requests.failed),
        ("shed", stats.requests.shed),
        ("expired", stats.requests.expired),
    ];
    let mut metric =
        encoder.encode_descriptor("requests", "Inference requests by how they ended", None, MetricType::Counter)?;
    for (outcome, count) in outcomes {
        let labels = [("outcome", outcome)];
        ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
    }
    counter(
        encoder,
        "rows",
        "Rows that arrived in requests that fit the model, also where the queue was full",
        stats.rows_arrived,
    )
}

fn cache(encoder: &mut DescriptorEncoder, counters: &Counters) -> fmt::Result {
    let help = "Requests that the response cache was asked for, by whether it had the answer";
    let mut metric = encoder.encode_descriptor("response_cache_lookups", help, None, MetricType::Counter)?;
    for (outcome, total) in [("hit", &counters.cache_hits), ("miss", &counters.cache_misses)] {
        ConstCounter::new(total.get().0).encode(metric.encode_family(&[("outcome", outcome)])?)?;
    }
    Ok(())
}

fn batches(encoder: &mut DescriptorEncoder, cells: &[BatchCell]) -> fmt::Result {
    counter(encoder, "batches", "Executed batches", cells.iter().map(|cell| cell.count).sum())?;
    counter(encoder, "batched_rows", "Rows in executed batches", cells.iter().map(|cell| cell.rows).sum())?;
    seconds(encoder, "execution", "Time in which the model ran", cells.iter().map(|cell| cell.seconds).sum())
}

fn gauges(encoder: &mut DescriptorEncoder, stats: &Stats) -> fmt::Result {
    gauge(
        encoder,
        "ready",
        "Whether the server answers and wants clients",
        f64::from(u8::from(stats.phase == Phase::Ready)),
    )?;
    gauge(encoder, "requests_in_flight", "Requests accepted and not yet answered", stats.in_flight as f64)?;
    gauge(encoder, "queued_rows", "Rows that wait for the model", stats.queued_rows as f64)?;
    gauge(encoder, "instances", "Batches that run at once", stats.instances as f64)?;
    gauge(encoder, "cpus", "CPUs that the process may use", stats.cpus)?;
    gauge(encoder, "uptime_seconds", "Seconds since the process started", stats.uptime_seconds)?;
    seconds(encoder, "cpu", "CPU time that the process used", stats.cpu_seconds)
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn seconds(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?)
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn histogram(encoder: &mut DescriptorEncoder, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    metric.encode_histogram::<NoLabelSet>(histogram.sum, histogram.count(), &shown_buckets(histogram), None)
}

/// The bounds that are shown, with the observations between each and the one before.
fn shown_buckets(histogram: &Histogram) -> Vec<(f64, u64)> {
    let mut from = 0;
    let shown = (FIRST_SHOWN..LAST_BUCKET).step_by(SHOWN_EVERY).chain([LAST_BUCKET]);
    shown
        .map(|last| {
            let count = histogram.buckets.range(from..=last).map(|(_, count)| count).sum();
            from = last + 1;
            (if last == LAST_BUCKET { f64::INFINITY } else { upper_bound(last) }, count)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_observation_is_in_one_shown_bucket_and_bounds_grow() {
        let mut histogram = Histogram::default();
        let observations = [1e-7, 1e-5, 1.7e-5, 0.001, 0.0499, 3.0, 1e9];
        for seconds in observations {
            histogram.record(seconds);
        }
        let shown = shown_buckets(&histogram);
        assert_eq!(shown.iter().map(|(_, count)| count).sum::<u64>(), observations.len() as u64);
        assert!(shown.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(shown.last().unwrap().0.is_infinite());
        let below_five_milliseconds = shown.iter().filter(|(bound, _)| *bound < 0.005).count();
        assert!(below_five_milliseconds >= 16, "{below_five_milliseconds}");
    }
}
