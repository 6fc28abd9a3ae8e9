//! What every source over the network has in common: the cache folder, the limit, the digest, and trying again.

use std::error::Error as StdError;
use std::path::Path;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use ortolan_protocol::failure::Failure;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tracing::warn;

use super::cache::{PART, file_name, not_writable as cache_failure};
use super::file::Stamp;
use super::{Fetched, Wanted, address, file, hex, too_large};

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
    /// Asks for them. A failure says what was refused.
    async fn open(&self) -> Result<Incoming, Failure>;
}

/// Brings a model into the cache folder, unless it is there already.
pub(super) async fn fetch(origin: &impl Origin, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    std::fs::create_dir_all(wanted.cache).map_err(|error| cache_failure(&error))?;
    if let Some(fetched) = cached(wanted) {
        return Ok(fetched);
    }
    let backoff = ExponentialBuilder::default()
        .with_min_delay(wanted.retries.wait)
        .with_max_times(wanted.retries.times)
        .with_jitter();
    (|| async { attempt(origin, wanted).await })
        .retry(backoff)
        .when(|failure: &Failure| failure.reason.is_transient())
        .notify(|failure, wait| warn!(reason = failure.reason.as_str(), ?wait, "{}; trying again", failure.message))
        .await
}

/// A file that an earlier container of this pod fetched, if it still has the wanted digest.
fn cached(wanted: &Wanted<'_>) -> Option<Fetched> {
    let sha256 = wanted.digest.hex()?;
    let fetched = file::read(&wanted.cache.join(file_name(sha256)), wanted.max_bytes).ok()?;
    (fetched.digest == sha256).then_some(fetched)
}

async fn attempt(origin: &impl Origin, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    let incoming = origin.open().await?;
    if incoming.length.is_some_and(|length| length > wanted.max_bytes) {
        return Err(too_large(wanted.max_bytes));
    }
    let part =
        tempfile::Builder::new().prefix(PART).tempfile_in(wanted.cache).map_err(|error| cache_failure(&error))?;
    let (digest, bytes) = store(incoming, part.path(), wanted.max_bytes).await?;
    // Checked before the file gets its name: nothing in the cache has a name that it does not deserve.
    wanted.digest.check(&digest)?;
    let path = wanted.cache.join(file_name(&digest));
    part.persist(&path).map_err(|error| cache_failure(&error.error))?;
    let stamp = Stamp::of(&path).map_err(|error| cache_failure(&error))?;
    Ok(Fetched { path, digest, bytes, stamp })
}

/// Writes the bytes to a file, and gives their digest and number.
async fn store(mut incoming: Incoming, path: &Path, max_bytes: u64) -> Result<(String, u64), Failure> {
    let mut file = tokio::fs::File::create(path).await.map_err(|error| cache_failure(&error))?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    while let Some(chunk) = incoming.body.next().await {
        let chunk = chunk.map_err(|error| address::unreachable(&incoming.host, error.as_ref()))?;
        bytes += chunk.len() as u64;
        if bytes > max_bytes {
            return Err(too_large(max_bytes));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(|error| cache_failure(&error))?;
    }
    file.flush().await.map_err(|error| cache_failure(&error))?;
    Ok((hex(hash), bytes))
}
