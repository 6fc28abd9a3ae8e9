//! What keeps a reconcile from its end.

use crate::{api::validated::InvalidSpec, cluster::writer::WriteError, observe::fresh::ReadError};

/// A reconcile that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The object could not be read as a ModelDeployment.
    #[error("the object cannot be read: {0}")]
    Unreadable(String),
    /// A stored revision cannot be rendered.
    #[error("revision cannot be rendered: {0}")]
    Render(#[from] InvalidSpec),
    /// A write failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A read past the caches failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was planned takes something away, or begins something large, on a read that may be old.
    #[error("the watch cache may be behind")]
    Uncertain,
    /// The API server took too long.
    #[error("the reconcile took longer than {0} seconds")]
    TimedOut(u64),
}

impl ReconcileError {
    /// The class of the error, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Render(_) => "render",
            Self::Write(error) => error.kind(),
            Self::Read(_) => "read",
            Self::Uncertain => "uncertain",
            Self::TimedOut(_) => "timed_out",
        }
    }

    /// Whether it is better to leave the API server alone for a growing while, and for how many seconds it asked that.
    pub fn overload(&self) -> Option<u32> {
        match self {
            Self::Write(error) => error.overload(),
            Self::Read(_) | Self::TimedOut(_) => Some(0),
            _ => None,
        }
    }

    /// Whether the model's namespace is being deleted, and the model with it.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self, Self::Write(WriteError::Ending { .. }))
    }

    /// Whether only a person can help: the object that is in the way.
    pub(super) fn needs_a_person(&self) -> bool {
        matches!(self, Self::Write(WriteError::Foreign { .. }))
    }

    /// Whether a look past the caches would help.
    pub(super) fn is_behind(&self) -> bool {
        matches!(self, Self::Uncertain | Self::Write(WriteError::Behind { .. }))
    }
}
