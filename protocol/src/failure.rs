//! Why a model server gave up before it could serve.
//!
//! The server writes its [`LastWords`] as JSON to its container's termination message and exits; the operator reads them
//! from the pod's status. That way the cause survives the container, needs no open port, and `kubectl describe pod`
//! shows it as well. As nobody can write anything once the kernel kills for want of memory, the words are begun before the
//! model is loaded.

use serde::{Deserialize, Serialize};

/// What a server leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWords {
    /// Why it gave up; absent from words that it left before it was killed or crashed.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The SHA-256 of the model's bytes in lower-case hex, once they were fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What it was loading at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<Loading>,
}

/// A model that is being loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loading {
    /// The size of its file.
    pub model_bytes: u64,
    /// The memory that the server had used when it looked last; what it used at the end may be more.
    pub used_bytes: u64,
}

/// Why a model could not be served, and what a person can do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class of the failure.
    pub reason: FailureReason,
    /// One sentence: what was expected, what came, what to do. Holds no secret, no path inside the container.
    pub message: String,
}

/// The classes of failure a model server distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureReason {
    /// The uri is not one that the server can read.
    SourceInvalid,
    /// The source could not be reached: name resolution, connection, time-out or a 5xx answer.
    SourceUnreachable,
    /// The source answered that the model is not there (404, 410 or a missing file).
    SourceNotFound,
    /// The source refused access (401 or 403, or a file without read permission).
    SourceForbidden,
    /// The credentials cannot be used: a key is missing, not known, or holds what it cannot.
    CredentialsInvalid,
    /// The model is larger than the server's limit.
    ModelTooLarge,
    /// The bytes are not the ones that were asked for.
    DigestMismatch,
    /// The bytes at the source are not the ones that this revision began with.
    DigestChanged,
    /// The volume for fetched models cannot be written to.
    VolumeReadOnly,
    /// The volume for fetched models, or its node's disk, is full.
    VolumeFull,
    /// The bytes are not a model, or a damaged one.
    ModelInvalid,
    /// A model that this server's runtime cannot run: operator set, operator or type.
    ModelUnsupported,
    /// The model keeps tensors in other files, which are not there.
    ExternalDataMissing,
    /// The model needs more memory than there is.
    OutOfMemory,
    /// Loading the model, or running it for the first time, took longer than it may.
    LoadTimedOut,
    /// The API keys of clients cannot be used: there is none, or something else than a SHA-256 stands there.
    ApiKeysInvalid,
    /// TLS cannot be offered: the certificate, its key or the authorities of clients' certificates cannot be used.
    TlsInvalid,
    /// The settings cannot be met: ports, threads, batching.
    ConfigInvalid,
    /// Anything else; the message says what.
    Internal,
}

impl FailureReason {
    /// Whether fetching is what failed, rather than loading what was fetched.
    pub const fn is_artifact(self) -> bool {
        matches!(
            self,
            Self::SourceInvalid
                | Self::SourceUnreachable
                | Self::SourceNotFound
                | Self::SourceForbidden
                | Self::CredentialsInvalid
                | Self::ModelTooLarge
                | Self::DigestMismatch
                | Self::DigestChanged
                | Self::VolumeReadOnly
                | Self::VolumeFull
        )
    }

    /// Whether trying again without a change by a person can help.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::SourceUnreachable | Self::Internal)
    }

    /// The name as it stands in conditions and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SourceInvalid => "SourceInvalid",
            Self::SourceUnreachable => "SourceUnreachable",
            Self::SourceNotFound => "SourceNotFound",
            Self::SourceForbidden => "SourceForbidden",
            Self::CredentialsInvalid => "CredentialsInvalid",
            Self::ModelTooLarge => "ModelTooLarge",
            Self::DigestMismatch => "DigestMismatch",
            Self::DigestChanged => "DigestChanged",
            Self::VolumeReadOnly => "VolumeReadOnly",
            Self::VolumeFull => "VolumeFull",
            Self::ModelInvalid => "ModelInvalid",
            Self::ModelUnsupported => "ModelUnsupported",
            Self::ExternalDataMissing => "ExternalDataMissing",
            Self::OutOfMemory => "OutOfMemory",
            Self::LoadTimedOut => "LoadTimedOut",
            Self::ApiKeysInvalid => "ApiKeysInvalid",
            Self::TlsInvalid => "TlsInvalid",
            Self::ConfigInvalid => "ConfigInvalid",
            Self::Internal => "Internal",
        }
    }
}
