//! What a server itself said before it gave up: the closest to the cause that there is.

use ortolan_protocol::failure::{Failure, FailureReason};

use super::{Problem, Stage, Subject, container};

/// The failure that the server left behind as its termination message.
pub(super) fn gave_up(subject: &Subject<'_>) -> Option<Problem> {
    let ended = container::end(subject)?;
    let failure: Failure = serde_json::from_str(ended.message.as_deref()?.trim()).ok()?;
    let Failure { reason, message } = failure;
    let advice = advice(reason).map(|advice| format!(". {advice}")).unwrap_or_default();
    let message = message.trim_end_matches('.');
    Some(Problem {
        reason: reason.as_str(),
        message: format!("{}, exit code {}: {message}{advice}", subject.container(), ended.exit_code),
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
        FailureReason::ModelTooLarge => Some("Serve a smaller model"),
        FailureReason::DigestMismatch => {
            Some("Put the right file back, or set spec.model.sha256 to the one that is meant")
        }
        FailureReason::DigestChanged => Some(
            "Bring the old bytes back; or serve the new ones by a uri of their own, by their spec.model.sha256, or by another spec.model.version",
        ),
        FailureReason::ModelInvalid => Some("Put a working ONNX model at spec.model.uri"),
        FailureReason::ModelUnsupported => Some("Export the model for what this server runs"),
        FailureReason::LoadTimedOut => Some(
            "Give it more CPU in spec.server.resources or more time in spec.server.loadTimeout, or serve another model",
        ),
        FailureReason::ConfigInvalid => Some("Change spec.server"),
        FailureReason::Internal => None,
    }
}
