//! From which addresses a model may come, and the HTTP client that keeps to it.
//!
//! Link-local addresses are refused, since cloud metadata services hand out credentials there. Private addresses are
//! not: a model store inside the cluster is the normal case. Each request is checked, by its literal address or by what
//! its name resolves to.

use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, ClientBuilder, Url, redirect};

use super::{failure, invalid};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of the body; the whole may take as long as it keeps coming.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// EC2's metadata service over IPv6; it lies in a private range, not a link-local one.
const EC2_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Refuses addresses that no model comes from.
pub(super) fn check(url: &Url) -> Result<(), Failure> {
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

/// A client that follows no redirects and connects to no address that no model comes from.
pub(super) fn client() -> Result<Client, Failure> {
    build(builder().dns_resolver(Arc::new(CheckedResolver)))
}

/// A client for the one place where a link-local address is meant: the cloud's own identity service.
pub(super) fn identity_client() -> Result<Client, Failure> {
    build(builder().no_proxy())
}

fn builder() -> ClientBuilder {
    // The second to install one finds it installed; which of two equal providers it is does not matter.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("ortolan-server/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
}

fn build(builder: ClientBuilder) -> Result<Client, Failure> {
    builder.build().map_err(|error| {
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
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or("the model's source");
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What became of a request that got no answer. Told is the innermost cause: outer ones repeat the URL.
pub(super) fn unreachable(host: &str, error: &(dyn StdError + 'static)) -> Failure {
    let refused = causes(error).any(|cause| matches!(cause.downcast_ref(), Some(AddressError::Refused)));
    let timed_out =
        causes(error).filter_map(|cause| cause.downcast_ref::<reqwest::Error>()).any(reqwest::Error::is_timeout);
    let io_kind = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind).last();
    let cause = match io_kind {
        _ if timed_out => "it timed out".to_owned(),
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

fn root_cause(error: &(dyn StdError + 'static)) -> String {
    // An error without a cause would tell its URL.
    causes(error).skip(1).last().map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}

/// The error and what caused it, from the outside in.
pub(super) fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |cause| (*cause).source())
}
