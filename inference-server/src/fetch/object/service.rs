//! The way out for an object store's requests: our HTTP client with its rules, instead of the crate's own.
//!
//! An answer that is no success ends here as a [`Refusal`]: its status and the class of error that it names. Its body goes
//! no further, because it may repeat what was sent.

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use futures_util::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use ortolan_protocol::failure::Failure;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderName};
use reqwest::{Client, StatusCode, Url};

use super::super::address;

/// Headers that hold a secret: marked, so that no log of any library shows them.
const SECRET: [HeaderName; 3] = [
    AUTHORIZATION,
    HeaderName::from_static("x-amz-security-token"),
    HeaderName::from_static("x-ms-copy-source-authorization"),
];
/// The most of an error's body that is looked at.
const LARGEST_ERROR: usize = 16 * 1024;

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Who answered.
    pub host: String,
    pub status: StatusCode,
    /// The class of error, as the store names it: letters only.
    pub code: Option<String>,
    /// The region in which the bucket is.
    pub region: Option<String>,
    /// By how many seconds our clock is ahead of the answer's.
    pub skew: Option<i64>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} answered {}", self.host, self.status.as_u16())
    }
}

impl std::error::Error for Refusal {}

/// A request that was not sent.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub(super) struct NotSent(pub Failure);

/// Makes the crate use our client.
#[derive(Clone, Debug)]
pub(super) struct Service {
    client: Client,
    /// The addresses that may be link-local, and their client: where the cloud tells a pod's identity.
    identity: Option<(Vec<Url>, Client)>,
}

impl Service {
    /// `identity`: where the cloud's identity service may be asked.
    pub fn new(identity: Vec<Url>) -> Result<Self, Failure> {
        let identity = if identity.is_empty() { None } else { Some((identity, address::identity_client()?)) };
        Ok(Self { client: address::client()?, identity })
    }

    /// The client for a url; none for one that no model comes from.
    fn client(&self, url: &Url) -> Result<&Client, Failure> {
        if let Some((allowed, client)) = &self.identity
            && allowed.iter().any(|allowed| (allowed.origin(), allowed.path()) == (url.origin(), url.path()))
        {
            return Ok(client);
        }
        address::check(url)?;
        Ok(&self.client)
    }
}

impl HttpConnector for Service {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Of a kind that the crate does not try again: that is done outside, for all sources alike.
        let url: Url =
            request.uri().to_string().parse().map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let client = self.client(&url).map_err(|failure| HttpError::new(HttpErrorKind::Unknown, NotSent(failure)))?;
        for name in SECRET {
            if let Some(value) = request.headers_mut().get_mut(name) {
                value.set_sensitive(true);
            }
        }
        let response = client.call(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let refusal = Refusal::read(address::host(&url), response, SystemTime::now()).await;
        Err(HttpError::new(HttpErrorKind::Unknown, refusal))
    }
}

impl Refusal {
    async fn read(host: String, response: HttpResponse, now: SystemTime) -> Self {
        let (parts, body) = response.into_parts();
        let mut body = body.bytes_stream();
        let mut text = Vec::new();
        while let Some(Ok(chunk)) = body.next().await {
            text.extend(chunk.iter().take(LARGEST_ERROR - text.len()));
            if text.len() >= LARGEST_ERROR {
                break;
            }
        }
        let text = String::from_utf8_lossy(&text);
        let header = |name: &str| text_of(&parts.headers, name);
        Self {
            host,
            status: parts.status,
            code: header("x-ms-error-code")
                .or_else(|| element(&text, "Code"))
                .or_else(|| json(&text))
                .filter(|code| is_name(code, |character| character.is_ascii_alphabetic() || character == '_')),
            region: header("x-amz-bucket-region")
                .or_else(|| element(&text, "Region"))
                .filter(|region| is_name(region, |character| character.is_ascii_alphanumeric() || character == '-')),
            skew: text_of(&parts.headers, DATE.as_str()).and_then(|date| skew(&date, now)),
        }
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// What stands in the first element of that name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0.to_owned())
}

/// The class of an error in OAuth's words.
fn json(text: &str) -> Option<String> {
    serde_json::from_str::<serde_json::Value>(text).ok()?["error"].as_str().map(str::to_owned)
}

/// Short and of plain characters: a word that a store made up, and nothing that was sent to it.
fn is_name(text: &str, is_plain: impl Fn(char) -> bool) -> bool {
    (1..=48).contains(&text.len()) && text.chars().all(is_plain)
}

fn skew(date: &str, now: SystemTime) -> Option<i64> {
    let there = httpdate::parse_http_date(date).ok()?;
    match now.duration_since(there) {
        Ok(ahead) => i64::try_from(ahead.as_secs()).ok(),
        Err(behind) => i64::try_from(behind.duration().as_secs()).ok().map(|seconds| -seconds),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn an_errors_class_is_found_and_nothing_else_of_it() {
        let xml = "<Error><Code>NoSuchKey</Code><Region>eu-west-1</Region><Key>k</Key></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("NoSuchKey"));
        assert_eq!(element("<Code>never ends", "Code"), None);
        assert_eq!(json(r#"{"error": "invalid_client", "error_description": "…"}"#).as_deref(), Some("invalid_client"));
        assert!(!is_name("AKIA1234", |character| character.is_ascii_alphabetic()));
        assert!(!is_name(&"a".repeat(49), char::is_alphabetic));
    }

    #[test]
    fn a_clock_is_compared_with_the_answers_date() {
        let date = "Thu, 01 Jan 1970 00:10:00 GMT";
        assert_eq!(skew(date, UNIX_EPOCH), Some(-600));
        assert_eq!(skew(date, UNIX_EPOCH + Duration::from_secs(601)), Some(1));
        assert_eq!(skew("yesterday", UNIX_EPOCH), None);
    }

    #[test]
    fn link_local_addresses_are_for_the_identity_service_alone() {
        let metadata: Url = "http://169.254.169.254/computeMetadata/v1/token".parse().unwrap();
        let service = Service::new(vec![metadata.clone()]).unwrap();
        assert!(service.client(&metadata).is_ok());
        for other in ["http://169.254.169.254/latest", "https://169.254.169.254/computeMetadata/v1/token"] {
            assert!(service.client(&other.parse().unwrap()).is_err(), "{other}");
        }
        assert!(Service::new(Vec::new()).unwrap().client(&metadata).is_err());
    }
}
