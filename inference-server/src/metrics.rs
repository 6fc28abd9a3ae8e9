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

use crate::memory;
use crate::serving::Server;
use crate::stats::{Counters, LoadTimes};
use crate::telemetry::Sent;

/// The first bucket bound of requests that is shown, 16 µs; below lies nothing that matters.
const FIRST_SHOWN: u16 = 32;
/// The same of batches, 2 µs: small models are quicker than any request.
const FIRST_SHOWN_OF_BATCHES: u16 = 8;
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
        let (stats, counters) = (self.server.stats(), self.server.counters());
        requests(&mut encoder, &stats)?;
        errors(&mut encoder, counters)?;
        cache(&mut encoder, counters)?;
        batches(&mut encoder, &stats.batches)?;
        gauges(&mut encoder, &stats)?;
        spans(&mut encoder, self.server.telemetry().and_then(|telemetry| telemetry.sent()))?;
        load_times(&mut encoder, &counters.load_times)?;
        memory_use(&mut encoder)?;
        let help = "From the arrival of a body to its answer, for requests that succeeded";
        histogram(&mut encoder, ("request_duration", help), &stats.latency, FIRST_SHOWN)?;
        let help = "From entering the queue to execution";
        histogram(&mut encoder, ("queue_duration", help), &stats.queue_wait, FIRST_SHOWN)?;
        let help = "How long the model ran for a batch of requests";
        histogram(&mut encoder, ("execution_duration", help), &counters.execution.snapshot(), FIRST_SHOWN_OF_BATCHES)?;
        batch_sizes(&mut encoder, counters, stats.max_batch_rows)
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

fn errors(encoder: &mut DescriptorEncoder, counters: &Counters) -> fmt::Result {
    let help = "Inference requests that did not succeed, over all protocols, by what went wrong";
    let mut metric = encoder.encode_descriptor("request_errors", help, None, MetricType::Counter)?;
    for (kind, count) in counters.errors() {
        ConstCounter::new(count).encode(metric.encode_family(&[("kind", kind)])?)?;
    }
    Ok(())
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

/// Only where there are traces.
fn spans(encoder: &mut DescriptorEncoder, sent: Option<Sent>) -> fmt::Result {
    let Some(sent) = sent else { return Ok(()) };
    let help = "Spans of traces by what became of them; dropped: too many waited to be sent";
    let mut metric = encoder.encode_descriptor("trace_spans", help, None, MetricType::Counter)?;
    for (outcome, count) in sent.by_outcome() {
        ConstCounter::new(count).encode(metric.encode_family(&[("outcome", outcome)])?)?;
    }
    Ok(())
}

fn load_times(encoder: &mut DescriptorEncoder, times: &LoadTimes) -> fmt::Result {
    let help = "How long the steps took before the model answered, those that are done";
    let mut metric = encoder.encode_descriptor("load", help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for (step, time) in [("fetch", &times.fetch), ("session", &times.session), ("warm_up", &times.warm_up)] {
        if let Some(time) = time.get() {
            ConstGauge::new(time.as_secs_f64()).encode(metric.encode_family(&[("step", step)])?)?;
        }
    }
    Ok(())
}

fn memory_use(encoder: &mut DescriptorEncoder) -> fmt::Result {
    let resident = memory::resident();
    for (name, help, value) in [
        ("memory_resident", "Memory that the process has now", resident.map(|resident| resident.now)),
        ("memory_resident_peak", "The most memory that the process had", resident.map(|resident| resident.peak)),
        ("memory_limit", "Memory that the process's control groups may use, where they have a limit", memory::limit()),
    ] {
        if let Some(value) = value {
            let metric = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
            ConstGauge::new(value as f64).encode(metric)?;
        }
    }
    Ok(())
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

fn histogram(
    encoder: &mut DescriptorEncoder,
    (name, help): (&str, &str),
    histogram: &Histogram,
    first: u16,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    metric.encode_histogram::<NoLabelSet>(histogram.sum, histogram.count(), &shown_buckets(histogram, first), None)
}

/// `max_rows`: of a batch; beyond its bound there is nothing to show.
fn batch_sizes(encoder: &mut DescriptorEncoder, counters: &Counters, max_rows: u64) -> fmt::Result {
    let (help, unit) = ("Rows in a batch of requests", Unit::Other("rows".to_owned()));
    let mut metric = encoder.encode_descriptor("batch_size", help, Some(&unit), MetricType::Histogram)?;
    let (sizes, rows) = counters.batch_sizes();
    let count = sizes.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<NoLabelSet>(rows as f64, count, &shown_sizes(&sizes, max_rows), None)
}

/// The bounds up to the largest batch's, and the rest.
fn shown_sizes(sizes: &[(u64, u64)], max_rows: u64) -> Vec<(f64, u64)> {
    let largest = sizes.iter().position(|(limit, _)| *limit >= max_rows).map_or(sizes.len(), |cell| cell + 1);
    let (shown, rest) = sizes.split_at(largest);
    let rest = rest.iter().map(|(_, count)| count).sum();
    shown.iter().map(|(limit, count)| (*limit as f64, *count)).chain([(f64::INFINITY, rest)]).collect()
}

/// The bounds that are shown, with the observations between each and the one before. `first`: the bucket of the lowest bound.
fn shown_buckets(histogram: &Histogram, first: u16) -> Vec<(f64, u64)> {
    let mut from = 0;
    let shown = (first..LAST_BUCKET).step_by(SHOWN_EVERY).chain([LAST_BUCKET]);
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
        for (first, below_a_millisecond) in [(FIRST_SHOWN, 12), (FIRST_SHOWN_OF_BATCHES, 18)] {
            let shown = shown_buckets(&histogram, first);
            assert_eq!(shown.iter().map(|(_, count)| count).sum::<u64>(), observations.len() as u64);
            assert!(shown.windows(2).all(|pair| pair[0].0 < pair[1].0));
            assert!(shown.last().unwrap().0.is_infinite());
            let bounds = shown.iter().filter(|(bound, _)| *bound < 0.001).count();
            assert_eq!(bounds, below_a_millisecond);
        }
    }

    #[test]
    fn sizes_of_batches_are_shown_up_to_the_largest() {
        let counters = Counters::default();
        for rows in [1, 1, 6, 8] {
            counters.record_execution(1, rows, std::time::Duration::ZERO);
        }
        let (sizes, _) = counters.batch_sizes();
        let cumulated = |max_rows| -> Vec<_> {
            let shown = shown_sizes(&sizes, max_rows);
            shown.iter().map(|(bound, count)| (bound.to_string(), *count)).collect()
        };
        let expected = [("1", 2), ("2", 0), ("3", 0), ("4", 0), ("6", 1), ("8", 1), ("inf", 0)];
        assert_eq!(cumulated(8), expected.map(|(bound, count)| (bound.to_owned(), count)));
        assert_eq!(cumulated(7), cumulated(8), "the bound of the largest batch is among them");
        assert_eq!(cumulated(1), [("1".to_owned(), 2), ("inf".to_owned(), 2)]);
    }
}
