//! What a server itself said before it gave up: the closest to the cause that there is.

use ortolan_protocol::failure::{Failure, FailureReason, LastWords};

use super::{Problem, Sight, Stage, Subject};

/// What the server left behind as its termination message when it ended last.
pub(super) fn last_words(subject: &Subject<'_>) -> Option<LastWords> {
    serde_json::from_str(subject.ended()?.message.as_deref()?.trim()).ok()
}

/// The digest of the model's bytes, as hex, that a server of these pods found before it gave up.
pub fn digest(sight: &Sight<'_>) -> Option<String> {
    sight.pods.iter().filter_map(|pod| last_words(&Subject::of(pod, sight)?)?.digest).min()
}

/// The failure that the server left behind.
pub(super) fn gave_up(subject: &Subject<'_>) -> Option<Problem> {
    let Failure { reason, message } = last_words(subject)?.failure?;
    let advice = advice(reason).map(|advice| format!(". {advice}")).unwrap_or_default();
    let message = message.trim_end_matches('.');
    let exit_code = subject.ended()?.exit_code;
    Some(Problem {
        reason: reason.as_str(),
        message: format!("{}, exit code {exit_code}: {message}{advice}", subject.container()),
        stage: if reason.is_artifact() { Stage::Artifact } else { Stage::Load },
        permanent: !reason.is_transient(),
    })
}

/// What a person can change about it, in the words of the ModelDeployment, which the server does not know.
const fn advice(reason: FailureReason) -> Option<&'static str> {
    match reason {
        FailureReason::SourceInvalid => Some("Change spec.model.uri"),
        FailureReason::SourceUnreachable => {
            Some("It is tried again and again; check spec.model.uri, and that pods may reach it")
        }
        FailureReason::SourceNotFound => Some("Put the model there, or change spec.model.uri"),
        FailureReason::SourceForbidden => Some("Let it be read from there, or change spec.model.uri"),
        FailureReason::CredentialsInvalid => Some("Put the Secret right that spec.model.credentialsSecret names"),
        FailureReason::ApiKeysInvalid => Some("Put the Secret right that spec.server.apiKeysSecret names"),
        FailureReason::ModelTooLarge => Some("Serve a smaller model"),
        FailureReason::DigestMismatch => {
            Some("Put the right file back, or set spec.model.sha256 to the one that is meant")
        }
        FailureReason::DigestChanged => Some(
            "Bring the old bytes back; or serve the new ones by a uri of their own, by their spec.model.sha256, or by another spec.model.version",
        ),
        FailureReason::ModelInvalid => Some("Put a working ONNX model at spec.model.uri"),
        FailureReason::ModelUnsupported => Some("Export the model for what this server runs"),
        FailureReason::OutOfMemory => Some("Raise spec.server.resources.limits.memory, or serve a smaller model"),
        FailureReason::VolumeReadOnly => {
            Some("It is an emptyDir of the pod: look for what changes pods in this namespace")
        }
        FailureReason::VolumeFull => Some("Free disk on the node, or serve a smaller model"),
        FailureReason::LoadTimedOut => Some(
            "Give it more CPU in spec.server.resources or more time in spec.server.loadTimeout, or serve another model",
        ),
        FailureReason::TlsInvalid => Some("Put the Secret right that spec.server.tls names"),
        FailureReason::ConfigInvalid => Some("Change spec.server"),
        // The message says what to do, or nobody knows.
        FailureReason::ExternalDataMissing | FailureReason::Internal => None,
    }
}
