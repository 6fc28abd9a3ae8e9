//! What the kubelet says of the server's container: how it ended, or why it does not begin.

use k8s_openapi::api::core::v1::ContainerStateWaiting;
use ortolan_protocol::failure::Loading;

use super::{Problem, Stage, Subject, server, words, workload};
use crate::api::conditions::reason;

/// MiB that a server needs beside its model: the runtime, its own code, requests.
const BESIDE_THE_MODEL: u64 = 64;

fn waiting<'a>(subject: &Subject<'a>) -> Option<&'a ContainerStateWaiting> {
    subject.server?.state.as_ref()?.waiting.as_ref()
}

/// Killed by the kernel for its use of memory.
pub(super) fn out_of_memory(subject: &Subject<'_>) -> Option<Problem> {
    let ended = subject.ended().filter(|ended| ended.reason.as_deref() == Some("OOMKilled"))?;
    let what = match memory_limit(subject) {
        Some(limit) => format!("killed for using more memory than limits.memory allows ({limit})"),
        None => "killed because its node had no memory left; it has no limits.memory".to_owned(),
    };
    let loading = server::last_words(subject).and_then(|words| words.loading);
    let (when, advice) = match loading {
        Some(Loading { model_bytes, used_bytes }) => {
            let (model, used) = (mebibytes(model_bytes), mebibytes(used_bytes));
            let when = format!(
                " while it loaded the model, whose {model} MiB take up to twice that meanwhile; when last measured, {used} MiB were \
                 used"
            );
            (when, format!("Raise spec.server.resources.limits.memory to {}Mi or more", 2 * model + BESIDE_THE_MODEL))
        }
        None => (String::new(), "Raise spec.server.resources.limits.memory".to_owned()),
    };
    let message = format!(
        "{}, exit code {}: {what}{when}. {advice}, or serve a smaller model",
        subject.container(),
        ended.exit_code
    );
    Some(Problem { reason: reason::OUT_OF_MEMORY, message, stage: Stage::Load, permanent: true })
}

/// Rounded up, as a limit has to be.
const fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// `limits.memory` of the server's container.
fn memory_limit<'a>(subject: &Subject<'a>) -> Option<&'a str> {
    let container = subject
        .pod
        .spec
        .as_ref()?
        .containers
        .iter()
        .find(|container| container.name == crate::api::names::CONTAINER)?;
    Some(&container.resources.as_ref()?.limits.as_ref()?.get("memory")?.0)
}

/// Ended otherwise than by itself.
pub(super) fn crashed(subject: &Subject<'_>) -> Option<Problem> {
    let ended = subject.ended()?;
    let again = waiting(subject).and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff");
    // What the runtime lost sight of, when a node was restarted, was no crash.
    if ended.reason.as_deref() == Some("ContainerStatusUnknown") && !again {
        return None;
    }
    let signal = signal(ended.exit_code).map(|signal| format!(" ({signal})")).unwrap_or_default();
    let last = match server::last_words(subject) {
        Some(_) => "it ended without a word while it loaded the model".to_owned(),
        None => words::last_line(ended.message.as_deref().unwrap_or_default())
            .unwrap_or_else(|| "it ended and left no message".to_owned()),
    };
    let pod = subject.name;
    let message = format!(
        "{}, exit code {}{signal}: {last}. It is started again and again; see `kubectl logs {pod} --previous`",
        subject.container(),
        ended.exit_code
    );
    Some(workload(reason::CRASH_LOOP, message))
}

/// What a shell's exit code says about the signal that ended the process.
const fn signal(exit_code: i32) -> Option<&'static str> {
    match exit_code {
        132 => Some("illegal instruction"),
        134 => Some("abort"),
        135 => Some("bus error"),
        136 => Some("arithmetic error"),
        137 => Some("killed"),
        139 => Some("segmentation fault"),
        143 => Some("told to stop"),
        _ => None,
    }
}

pub(super) fn image_unavailable(subject: &Subject<'_>) -> Option<Problem> {
    let waiting = waiting(subject)?;
    if !["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"]
        .contains(&waiting.reason.as_deref()?)
    {
        return None;
    }
    // The kubelet puts the cause behind "Back-off …" while it waits to try again: the cause alone does not flap.
    let why = waiting.message.as_deref().unwrap_or("no further message");
    let why = words::plain(why.split_once("ErrImagePull: ").map_or(why, |(_, cause)| cause));
    let message = format!(
        "{} cannot get its image {}: {why}. Check that the registry has it and that the node may pull it; which image it is \
         was set where Ortolan was installed",
        subject.container(),
        subject.server.map_or("", |server| &server.image)
    );
    Some(workload(reason::IMAGE_UNAVAILABLE, message))
}

/// The container runtime or the kubelet refuses to make the container.
pub(super) fn not_created(subject: &Subject<'_>) -> Option<Problem> {
    let waiting = waiting(subject)?;
    let kind = waiting.reason.as_deref()?;
    if !["CreateContainerConfigError", "CreateContainerError", "RunContainerError"].contains(&kind) {
        return None;
    }
    let why = words::plain(waiting.message.as_deref().unwrap_or("no further message"));
    super::volumes::missing(subject, &why).or_else(|| {
        Some(workload(reason::CONTAINER_NOT_CREATED, format!("{} is not created: {kind}: {why}", subject.container())))
    })
}

/// Nothing but Events tells why the container is not there yet.
pub(super) fn stuck(subject: &Subject<'_>) -> Option<Problem> {
    waiting(subject).filter(|waiting| waiting.reason.as_deref() == Some("ContainerCreating"))?;
    let said = ["FailedCreatePodSandBox", "FailedCreatePodContainer", "Failed", "NetworkNotReady"];
    let why = said.iter().find_map(|reason| subject.said(reason).first().copied())?;
    let message = format!("{} is not created: {}", subject.container(), words::plain(why));
    Some(workload(reason::CONTAINER_NOT_CREATED, message))
}
