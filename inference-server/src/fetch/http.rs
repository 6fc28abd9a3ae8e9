//! A model over HTTP: streamed into the cache folder, within its limit, and never from an address that only answers to
//! those inside.
//!
//! Redirects are followed by hand, because each hop is checked like the first one: its scheme, and the addresses that its
//! name resolves to. Link-local addresses are refused, since cloud metadata services hand out credentials there. Private
//! addresses are not: a model store inside the cluster is the normal case.

use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::LOCATION;
use reqwest::{Client, Response, StatusCode, Url, redirect};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tracing::warn;

use super::cache::{PART, file_name};
use super::file::Stamp;
use super::{Fetched, Wanted, failure, file, hex, invalid, too_large};

const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of the body; the whole may take as long as it keeps coming.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// EC2's metadata service over IPv6; it lies in a private range, not a link-local one.
const EC2_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

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

pub(super) async fn fetch(url: &Url, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    std::fs::create_dir_all(wanted.cache).map_err(|error| cache_failure(&error))?;
    if let Some(fetched) = cached(wanted) {
        return Ok(fetched);
    }
    let client = client()?;
    let backoff = ExponentialBuilder::default()
        .with_min_delay(wanted.retries.wait)
        .with_max_times(wanted.retries.times)
        .with_jitter();
    (|| async { attempt(&client, url, wanted).await })
        .retry(backoff)
        .when(|failure: &Failure| failure.reason.is_transient())
        .notify(|failure, wait| warn!(reason = failure.reason.as_str(), ?wait, "{}; trying again", failure.message))
        .await
}

/// Refuses addresses that no model comes from.
pub(super) fn check_address(url: &Url) -> Result<(), Failure> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid(&format!(
            "the model's source leads to '{}', and only http and https are followed",
            url.scheme()
        )));
    }
    // A URL keeps IPv6 addresses in brackets.
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(address) => refusal(address)
            .map_or(Ok(()), |what| Err(invalid(&format!("the model's source is {what}, which is never read")))),
        Err(_) => Ok(()),
    }
}

/// A file that an earlier container of this pod fetched, if it still has the wanted digest.
fn cached(wanted: &Wanted<'_>) -> Option<Fetched> {
    let path = wanted.cache.join(file_name(wanted.sha256?));
    let fetched = file::read(&path, wanted.max_bytes).ok()?;
    (Some(fetched.digest.as_str()) == wanted.sha256).then_some(fetched)
}

async fn attempt(client: &Client, url: &Url, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    let response = follow(client, url.clone()).await?;
    if response.content_length().is_some_and(|length| length > wanted.max_bytes) {
        return Err(too_large(wanted.max_bytes));
    }
    let part =
        tempfile::Builder::new().prefix(PART).tempfile_in(wanted.cache).map_err(|error| cache_failure(&error))?;
    let (digest, bytes) = store(response, part.path(), wanted.max_bytes).await?;
    // Checked before the file gets its name: nothing in the cache has a name that it does not deserve.
    super::check_digest(&digest, wanted.sha256)?;
    let path = wanted.cache.join(file_name(&digest));
    part.persist(&path).map_err(|error| cache_failure(&error.error))?;
    let stamp = Stamp::of(&path).map_err(|error| cache_failure(&error))?;
    Ok(Fetched { path, digest, bytes, stamp })
}

async fn follow(client: &Client, mut url: Url) -> Result<Response, Failure> {
    for _ in 0..=MAX_REDIRECTS {
        check_address(&url)?;
        let host = host(&url);
        let response = client.get(url.clone()).send().await.map_err(|error| unreachable(&host, &error))?;
        if !response.status().is_redirection() {
            return checked_status(response, &host);
        }
        let target = response
            .headers()
            .get(LOCATION)
            .and_then(|target| target.to_str().ok())
            .and_then(|target| url.join(target).ok());
        url = target.ok_or_else(|| {
            failure(FailureReason::SourceUnreachable, &format!("{host} answered with a redirect that leads nowhere"))
        })?;
    }
    Err(invalid(&format!("the model's source redirects more than {MAX_REDIRECTS} times")))
}

fn checked_status(response: Response, host: &str) -> Result<Response, Failure> {
    let status = response.status();
    let (reason, meaning) = match status {
        StatusCode::OK => return Ok(response),
        StatusCode::NOT_FOUND | StatusCode::GONE => (FailureReason::SourceNotFound, "the model is not there"),
        StatusCode::UNAUTHORIZED => (FailureReason::SourceForbidden, "it wants credentials"),
        StatusCode::FORBIDDEN => (FailureReason::SourceForbidden, "it refuses access"),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => (FailureReason::SourceUnreachable, "it is busy"),
        _ if status.is_server_error() => (FailureReason::SourceUnreachable, "it has a problem of its own"),
        _ => (FailureReason::SourceInvalid, "the model's uri is not one that it gives files for"),
    };
    Err(failure(reason, &format!("{host} answered {}: {meaning}", status.as_u16())))
}

/// Writes the body to a file, and gives its digest and size.
async fn store(mut response: Response, path: &Path, max_bytes: u64) -> Result<(String, u64), Failure> {
    let host = host(response.url());
    let mut file = tokio::fs::File::create(path).await.map_err(|error| cache_failure(&error))?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&host, &error))? {
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

fn client() -> Result<Client, Failure> {
    // The second to install one finds it installed; which of two equal providers it is does not matter.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("ortolan-server/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .dns_resolver(Arc::new(CheckedResolver))
        .build()
        .map_err(|error| {
            failure(FailureReason::Internal, &format!("no HTTP client can be made: {}", root_cause(&error)))
        })
}

/// The system's resolver, without the addresses that no model comes from.
struct CheckedResolver;

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await.map_err(|_| AddressError::Unknown)?.collect();
            let allowed: Vec<SocketAddr> =
                found.iter().copied().filter(|address| refusal(address.ip()).is_none()).collect();
            match (found.first(), allowed.is_empty()) {
                (None, _) => Err(AddressError::Unknown.into()),
                (Some(_), true) => Err(AddressError::Refused.into()),
                (Some(_), false) => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum AddressError {
    #[error("its name does not resolve")]
    Unknown,
    #[error("its name resolves to a link-local or metadata address, which is never read")]
    Refused,
}

/// Why an address is refused, if it is.
fn refusal(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) if address.is_link_local() => Some("a link-local address"),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(address) if address == EC2_METADATA => Some("a metadata service's address"),
        _ => None,
    }
}

/// What may be told of a URL: no user, no path, no query.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or("the model's source");
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn unreachable(host: &str, error: &reqwest::Error) -> Failure {
    let causes = causes(error);
    let refused = causes.clone().any(|cause| matches!(cause.downcast_ref(), Some(AddressError::Refused)));
    let io_kind = causes.clone().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind).last();
    let cause = match io_kind {
        _ if error.is_timeout() => "it timed out".to_owned(),
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::ConnectionReset) => "connection reset".to_owned(),
        _ => match root_cause(error) {
            cause if cause.starts_with("invalid peer certificate") => {
                format!("its TLS certificate is not trusted ({cause}); SSL_CERT_FILE can name the authorities that are")
            }
            cause => cause,
        },
    };
    let reason = if refused { FailureReason::SourceInvalid } else { FailureReason::SourceUnreachable };
    failure(reason, &format!("{host} cannot be read: {cause}"))
}

/// The innermost cause: outer ones repeat the URL.
fn root_cause(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> + Clone {
    std::iter::successors(error.source(), |cause: &&(dyn StdError + 'static)| (*cause).source())
}

fn cache_failure(error: &io::Error) -> Failure {
    failure(FailureReason::Internal, &format!("the model cannot be written to the cache folder: {error}"))
}
