//! Servers that run and do not answer the kubelet's probes.

use super::{Problem, Subject, words, workload};
use crate::api::conditions::reason;

/// The kubelet stopped the container because it did not answer.
pub(super) fn not_alive(subject: &Subject<'_>) -> Option<Problem> {
    // Told to stop, or killed when it did not: no end of its own.
    let ended = subject.ended().filter(|ended| [0, 137, 143].contains(&ended.exit_code))?;
    let why = failed(subject, "Liveness")?;
    let message = format!(
        "{}, exit code {}: stopped by the kubelet, as it did not answer whether it is alive: {why}. See `kubectl logs {} \
         --previous`",
        subject.container(),
        ended.exit_code,
        subject.name
    );
    Some(workload(reason::NOT_ALIVE, message))
}

/// It runs, and says neither that it is ready nor that it is still loading.
pub(super) fn not_ready(subject: &Subject<'_>) -> Option<Problem> {
    subject.server?.state.as_ref()?.running.as_ref()?;
    // A server that answers 503 is busy with its model.
    let why = failed(subject, "Readiness").filter(|why| !why.contains("503"))?;
    let message = format!(
        "{} runs, but does not answer whether it is ready: {why}. See `kubectl logs {}`",
        subject.container(),
        subject.name
    );
    Some(workload(reason::NOT_READY, message))
}

/// The words of a probe that failed.
fn failed(subject: &Subject<'_>, probe: &str) -> Option<String> {
    let start = format!("{probe} probe failed: ");
    let text = subject.said("Unhealthy").into_iter().find_map(|text| text.strip_prefix(&start))?;
    Some(words::plain(text))
}
