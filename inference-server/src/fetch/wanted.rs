//! What is wanted of a model's bytes.

use std::fmt;
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};

use super::{Retries, failure};
use crate::inside::Inside;

/// Says which files beside a model's file it keeps data in: the format is not known here.
pub type DataFiles = fn(&Path) -> Vec<Inside>;

/// What is wanted of the bytes, and how they may be had.
#[derive(Clone)]
pub struct Wanted<'a> {
    /// The digest they must have.
    pub digest: Digest,
    /// The most bytes.
    pub max_bytes: u64,
    /// Where to keep what comes over the network.
    pub cache: &'a Path,
    /// How often and how long to try again.
    pub retries: Retries,
    /// What lets us in.
    pub access: Access<'a>,
    /// The files that belong to the model's file.
    pub data_files: DataFiles,
    /// Is told the digest as soon as it is known and right, when what has it may still turn out to be no model.
    pub tell: &'a (dyn Fn(&str) + Sync),
}

impl<'a> Wanted<'a> {
    /// Whatever is there, without credentials, and nobody is told.
    pub fn anything(cache: &'a Path, max_bytes: u64, data_files: DataFiles) -> Self {
        let (digest, retries, access) = (Digest::Any, Retries::default(), Access::default());
        Self { digest, max_bytes, cache, retries, access, data_files, tell: &|_| {} }
    }

    /// What was found has this digest: refused if it is another one than is wanted.
    pub(super) fn found(&self, digest: &str) -> Result<(), Failure> {
        self.digest.check(digest)?;
        (self.tell)(digest);
        Ok(())
    }
}

impl fmt::Debug for Wanted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Wanted").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// What lets us in where not everybody is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access<'a> {
    /// The folder with the keys of a credentials Secret.
    pub credentials: Option<&'a Path>,
    /// The cloud's metadata service may be asked for the identity of the pod.
    pub cloud_identity: bool,
}

/// The digest that bytes must have, in lower-case hex.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Digest {
    /// Any: it is found out.
    #[default]
    Any,
    /// The one that a person gave.
    Given(String),
    /// The one that the first server of this revision found.
    Locked {
        /// The digest.
        sha256: String,
        /// The revision.
        revision: String,
    },
}

impl Digest {
    /// The digest, if it is known.
    pub fn hex(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Given(sha256) | Self::Locked { sha256, .. } => Some(sha256),
        }
    }

    /// Refuses other bytes.
    fn check(&self, found: &str) -> Result<(), Failure> {
        match self {
            Self::Given(wanted) if wanted != found => Err(failure(
                FailureReason::DigestMismatch,
                &format!(
                    "the model's SHA-256 is {found}, but {wanted} was asked for: the bytes at the source have changed, or are others"
                ),
            )),
            Self::Locked { sha256, revision } if sha256 != found => Err(failure(
                FailureReason::DigestChanged,
                &format!(
                    "the bytes at the source changed since revision {revision} began to serve: their SHA-256 was {sha256} and is now {found}"
                ),
            )),
            _ => Ok(()),
        }
    }
}
