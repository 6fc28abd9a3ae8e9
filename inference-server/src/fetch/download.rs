//! What every source over the network has in common: the cache folder, the limit, the digest, and trying again.

use std::error::Error as StdError;
use std::path::Path;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use ortolan_protocol::failure::{Failure, FailureReason};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tracing::warn;

use super::archive::Kind;
use super::file::{Content, Stamp};
use super::package::Package;
use super::{Fetched, Wanted, address, archive, cache, hex, too_large};
use crate::inside::Inside;

/// How failures that may pass are tried again; the wait doubles and is jittered.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// How often.
    pub times: usize,
    /// The first wait.
    pub wait: Duration,
}

impl Default for Retries {
    /// Three times within about ten seconds. After that the container's restart goes on trying.
    fn default() -> Self {
        Self { times: 3, wait: Duration::from_secs(1) }
    }
}

impl Retries {
    /// Tries until it succeeds, cannot, or was tried often enough.
    pub(super) async fn again<T, F>(self, attempt: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let backoff = ExponentialBuilder::default().with_min_delay(self.wait).with_max_times(self.times).with_jitter();
        attempt
            .retry(backoff)
            .when(|failure: &Failure| failure.reason.is_transient())
            .notify(|failure, wait| warn!(reason = failure.reason.as_str(), ?wait, "{}; trying again", failure.message))
            .await
    }
}

/// Bytes on their way.
pub(super) struct Incoming {
    /// Who sends them, for messages.
    pub host: String,
    /// How many there are, where that was said.
    pub length: Option<u64>,
    /// The bytes.
    pub body: BoxStream<'static, Result<Bytes, Box<dyn StdError + Send + Sync>>>,
}

/// Something that can be asked for a model's bytes, again and again.
pub(super) trait Origin {
    /// The name of the model's file, where there is one that a file can have.
    fn name(&self) -> Option<Inside>;

    /// Asks for the model's file, or for one beside it. A failure says what was refused.
    async fn open(&self, beside: Option<&Inside>) -> Result<Incoming, Failure>;
}

/// Brings a model into the cache folder, unless it is there already.
pub(super) async fn fetch(origin: &impl Origin, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    cache::create(wanted.cache)?;
    if let Some(fetched) = cache::find(wanted) {
        wanted.found(&fetched.digest)?;
        return Ok(fetched);
    }
    wanted.retries.again(|| attempt(origin, wanted)).await
}

async fn attempt(origin: &impl Origin, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    let folder = cache::part(wanted.cache)?;
    let name = origin.name().unwrap_or_else(Inside::model);
    let path = folder.path().join(&name);
    let model = store(origin.open(None).await?, &path, wanted.max_bytes).await?;
    if let Some(kind) = Kind::of(&path)? {
        wanted.found(&model.sha256)?;
        return Ok(Fetched {
            digest: model.sha256,
            ..archive::fetch(vec![(kind, path)], "archive", folder.path(), wanted).await?
        });
    }
    let mut package = Package::of(path.clone(), model);
    for beside in (wanted.data_files)(&path) {
        let incoming = match origin.open(Some(&beside)).await {
            Ok(incoming) => incoming,
            // For the engine to miss: it knows what for.
            Err(failure) if failure.reason == FailureReason::SourceNotFound => continue,
            Err(failure) => return Err(failure),
        };
        let place = folder.path().join(&beside);
        let content = store(incoming, &place, wanted.max_bytes - package.bytes()).await?;
        package.add(beside, place, content);
    }
    let fetched = package.fetched();
    wanted.found(&fetched.digest)?;
    cache::keep(folder.path(), fetched, wanted.cache)
}

/// Writes the bytes to a file that is not there yet, and makes the folders that it lies in.
pub(super) async fn store(mut incoming: Incoming, path: &Path, max_bytes: u64) -> Result<Content, Failure> {
    if incoming.length.is_some_and(|length| length > max_bytes) {
        return Err(too_large(max_bytes));
    }
    if let Some(folder) = path.parent() {
        cache::create(folder)?;
    }
    let mut file = tokio::fs::File::create_new(path).await.map_err(|error| cache::not_writable(&error))?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    while let Some(chunk) = incoming.body.next().await {
        let chunk = chunk.map_err(|error| address::unreachable(&incoming.host, error.as_ref()))?;
        bytes += chunk.len() as u64;
        if bytes > max_bytes {
            return Err(too_large(max_bytes));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(|error| cache::not_writable(&error))?;
    }
    file.flush().await.map_err(|error| cache::not_writable(&error))?;
    let stamp = Stamp::of(path).map_err(|error| cache::not_writable(&error))?;
    Ok(Content { sha256: hex(hash), bytes, stamp })
}
