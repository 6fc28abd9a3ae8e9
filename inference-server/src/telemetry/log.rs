//! One line in the log for a request.

use std::time::{Duration, Instant};

use opentelemetry::trace::TraceId;
use tracing::{field, info};

use super::watch::{Ended, Watch};

/// `now`: the request's end; with the trace that it belongs to. Ids are quoted and escaped: they are the client's, and must not make lines.
pub(super) fn write(watch: &Watch, ended: Ended, (now, trace): (Instant, Option<TraceId>)) {
    let status = if watch.route.grpc_method().is_some() { ended.code() as u16 } else { ended.status() };
    let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let between = |(from, to): (Instant, Instant)| microseconds(to.saturating_duration_since(from));
    info!(
        id = watch.id().map(field::debug),
        protocol = watch.route.protocol(),
        route = watch.route.kind(),
        status,
        outcome = ended.outcome(),
        rows = watch.rows(),
        queue_us = watch.queue(now).map(between),
        execution_us = watch.batch().map(|ran| microseconds(ran.took)),
        total_us = between((watch.begun(), now)),
        trace_id = trace.map(field::display),
        "request"
    );
}
