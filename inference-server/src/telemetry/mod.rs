//! What is told of single requests: traces, and lines in the log. Numbers about all of them are in [`crate::stats`].
//!
//! Which requests it is about is decided when they arrive: a [`Watch`] goes with each of those and notes when it got where. All
//! others cost one look at a header and a random number, and where nothing is switched on one branch.
//!
//! Requests that are turned away at the door, for want of a key, are counted only: strangers must not be able to fill traces and
//! logs. Never told is what stands in tensors and in headers, but for the request's id and the trace that it belongs to.

mod parent;
mod route;
mod traces;
mod watch;

use std::sync::Arc;

use axum::http::HeaderMap;
use ortolan_protocol::failure::{Failure, FailureReason};
use tracing::warn;

use parent::Parent;
pub use route::Route;
pub use traces::Sent;
use traces::Traces;
pub use watch::{Ended, Ran, Watch};

/// The flags about single requests.
#[derive(Clone, Debug, clap::Args)]
pub struct TelemetryArguments {
    /// Where traces are sent by OTLP over HTTP, as in http://collector:4318; /v1/traces is put behind it. Without it OpenTelemetry's
    /// own variables count, and without those nothing is traced [env: OTEL_EXPORTER_OTLP_ENDPOINT=]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Which part of the requests is traced, from 0 to 1. Only for those whose traceparent does not say it: one that is sampled is
    /// always traced, one that is not never
    #[arg(long, value_name = "RATIO", default_value_t = 0.01, env = "ORTOLAN_TRACE_SAMPLE_RATIO")]
    pub trace_sample_ratio: f64,
    /// Which part of the requests gets a line in the log, from 0 to 1
    #[arg(long, value_name = "RATIO", default_value_t = 0.0, env = "ORTOLAN_REQUEST_LOG_SAMPLE_RATIO")]
    pub request_log_sample_ratio: f64,
}

/// Tells of single requests.
pub struct Telemetry {
    model: String,
    version: String,
    traces: Option<Traces>,
    traced: Chance,
    logged: Chance,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// What the flags ask for, of a model's version; `None`: nothing.
    pub fn new(arguments: &TelemetryArguments, model: &str, version: &str) -> Result<Option<Arc<Self>>, Failure> {
        let chance = Chance::new(arguments.trace_sample_ratio, "--trace-sample-ratio")?;
        let logged = Chance::new(arguments.request_log_sample_ratio, "--request-log-sample-ratio")?;
        let traces = Traces::new(arguments.otlp_endpoint.as_deref(), model, version)?;
        if traces.is_none() && logged == Chance::NONE {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self {
            model: model.to_owned(),
            version: version.to_owned(),
            traces,
            traced: chance,
            logged,
        })))
    }

    /// Decides whether a request is told of, when its head is there.
    pub fn watch(self: &Arc<Self>, route: Route, headers: &HeaderMap) -> Option<Arc<Watch>> {
        let is_traced = self.traces.is_some()
            && Parent::of(headers).map_or_else(|| self.traced.falls(), |parent| parent.is_sampled);
        let is_logged = self.logged.falls();
        (is_traced || is_logged).then(|| Arc::new(Watch::new(self, route, headers, (is_traced, is_logged))))
    }

    /// What became of the spans so far, where there are any.
    pub fn sent(&self) -> Option<Sent> {
        self.traces.as_ref().map(Traces::sent)
    }

    /// Sends what was not sent yet. What cannot be sent in time is lost.
    pub async fn end(self: Arc<Self>) {
        let ended = tokio::task::spawn_blocking(move || self.traces.as_ref().map_or(Ok(()), Traces::end));
        if !matches!(ended.await, Ok(Ok(()))) {
            warn!("the last traces could not be sent");
        }
    }
}

/// How likely something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chance(u64);

impl Chance {
    const NONE: Self = Self(0);

    /// `flag`: where the ratio comes from.
    fn new(ratio: f64, flag: &str) -> Result<Self, Failure> {
        if !(0.0..=1.0).contains(&ratio) {
            let message = format!("{flag} is {ratio}, and must be between 0 and 1");
            return Err(Failure { reason: FailureReason::ConfigInvalid, message });
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it is none below, and the most above
        Ok(Self((ratio * u64::MAX as f64) as u64))
    }

    fn falls(self) -> bool {
        match self.0 {
            0 => false,
            u64::MAX => true,
            part => fastrand::u64(..) < part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(traced: f64, logged: f64) -> TelemetryArguments {
        TelemetryArguments { otlp_endpoint: None, trace_sample_ratio: traced, request_log_sample_ratio: logged }
    }

    #[test]
    fn a_chance_falls_as_often_as_it_says() {
        let falls = |ratio: f64| {
            let chance = Chance::new(ratio, "").unwrap();
            (0..10_000).filter(|_| chance.falls()).count()
        };
        assert_eq!((falls(0.0), falls(1.0)), (0, 10_000));
        // Six standard deviations.
        assert!((2240..2760).contains(&falls(0.25)));
    }

    #[test]
    fn what_is_no_ratio_is_refused_by_its_flag() {
        for (arguments, words) in [
            (arguments(1.5, 0.0), "--trace-sample-ratio is 1.5"),
            (arguments(0.0, -0.1), "--request-log-sample-ratio is -0.1"),
            (arguments(f64::NAN, 0.0), "--trace-sample-ratio is NaN"),
        ] {
            let failure = Telemetry::new(&arguments, "m", "1").unwrap_err();
            assert_eq!(failure.reason, FailureReason::ConfigInvalid);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }

    #[test]
    fn where_nothing_is_asked_for_there_is_nothing() {
        assert!(Telemetry::new(&arguments(1.0, 0.0), "m", "1").unwrap().is_none(), "there is no endpoint");
        let logging = Telemetry::new(&arguments(1.0, 1.0), "m", "1").unwrap().unwrap();
        let watch = logging.watch(Route::Infer, &HeaderMap::new()).unwrap();
        assert!(watch.is_logged() && !watch.is_traced());
        let sometimes = Telemetry::new(&arguments(1.0, 0.5), "m", "1").unwrap().unwrap();
        let watched = (0..1000).filter(|_| sometimes.watch(Route::Infer, &HeaderMap::new()).is_some()).count();
        assert!((400..600).contains(&watched), "{watched}");
    }
}
