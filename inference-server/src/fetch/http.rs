//! A model over HTTP.
//!
//! Redirects are followed by hand, because each hop is checked like the first one: its scheme, and the addresses that its
//! name resolves to. Credentials go to the place that the uri names and to no other.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::TryStreamExt;
use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Response, StatusCode, Url};

use super::credentials::Keys;
use super::download::{Incoming, Origin};
use super::wanted::Access;
use super::{address, failure, invalid};
use crate::inside::Inside;

const MAX_REDIRECTS: usize = 10;
/// The most bytes of an answer that is not the model.
const SHORT: usize = 4 << 20;

/// Asks for `url`, and follows where that leads. `headers` go to the scheme, host and port of the url and nowhere else.
pub(super) async fn get(client: &Client, url: &Url, headers: &HeaderMap) -> Result<Response, Failure> {
    let mut at = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        address::check(&at)?;
        let host = address::host(&at);
        let request = client.get(at.clone());
        let request = if at.origin() == url.origin() { request.headers(headers.clone()) } else { request };
        let response = request.send().await.map_err(|error| address::unreachable(&host, &error))?;
        if !response.status().is_redirection() {
            return Ok(response);
        }
        let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
        at = target.and_then(|target| at.join(target).ok()).ok_or_else(|| {
            let message = format!("{host} answered with a redirect that leads nowhere");
            failure(FailureReason::SourceUnreachable, &message)
        })?;
    }
    Err(invalid(&format!("the model's source redirects more than {MAX_REDIRECTS} times")))
}

/// A url and what it takes to be let in.
pub(super) struct Site<'a> {
    client: Client,
    url: &'a Url,
    access: Access<'a>,
}

impl<'a> Site<'a> {
    pub fn new(url: &'a Url, access: Access<'a>) -> Result<Self, Failure> {
        Ok(Self { client: address::client()?, url, access })
    }

    fn url_of(&self, beside: Option<&Inside>) -> Url {
        let mut url = self.url.clone();
        if let (Some(beside), Ok(mut path)) = (beside, url.path_segments_mut()) {
            path.pop().extend(beside.parts());
        }
        url
    }
}

impl Origin for Site<'_> {
    fn name(&self) -> Option<Inside> {
        Inside::parse(self.url.path_segments()?.next_back()?).filter(|name| !name.as_str().contains('%'))
    }

    async fn open(&self, beside: Option<&Inside>) -> Result<Incoming, Failure> {
        let login = Login::of(&Keys::read(self.access.credentials)?)?;
        let response = get(&self.client, &self.url_of(beside), &login.headers()).await?;
        let host = address::host(response.url());
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(refusal(&host, status, login.forbidden(status)));
        }
        Ok(incoming(response))
    }
}

/// The body of an answer.
pub(super) fn incoming(response: Response) -> Incoming {
    Incoming {
        host: address::host(response.url()),
        length: response.content_length(),
        body: Box::pin(response.bytes_stream().map_err(Into::into)),
    }
}

/// An answer that is no model; `None`: it is longer than such an answer may be.
pub(super) async fn read_short(mut response: Response) -> Result<Option<Vec<u8>>, Failure> {
    let host = address::host(response.url());
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| address::unreachable(&host, &error))? {
        answer.extend_from_slice(&chunk);
        if answer.len() > SHORT {
            return Ok(None);
        }
    }
    Ok(Some(answer))
}

/// How a site is told who asks.
#[derive(Clone)]
pub(super) enum Login {
    Nobody,
    Basic { username: String, password: String },
    Bearer(HeaderValue),
}

impl Login {
    /// From the keys of a `kubernetes.io/basic-auth` Secret, or from a token.
    pub fn of(keys: &Keys) -> Result<Self, Failure> {
        let [token, username, password] = ["token", "username", "password"].map(|key| keys.given(key));
        match (token, username, password) {
            (Some(token), None, None) => {
                Self::bearer(token).ok_or_else(|| keys.invalid("token", "holds characters that no token has"))
            }
            (None, Some(username), Some(password)) => {
                Ok(Self::Basic { username: username.to_owned(), password: password.to_owned() })
            }
            (None, None, None) if keys.are_given() => Err(keys.missing("token", "or username and password")),
            (None, None, None) => Ok(Self::Nobody),
            (None, Some(_), None) => Err(keys.missing("password", "which goes with username")),
            (None, None, Some(_)) => Err(keys.missing("username", "which goes with password")),
            (Some(_), ..) => Err(keys.invalid("token", "stands beside username and password: remove one of the two")),
        }
    }

    /// With a token; `None`: it holds characters that no header can.
    pub fn bearer(token: &str) -> Option<Self> {
        HeaderValue::from_str(&format!("Bearer {token}")).ok().map(Self::Bearer)
    }

    /// The headers that say it.
    pub fn headers(&self) -> HeaderMap {
        let value = match self {
            Self::Nobody => None,
            Self::Basic { username, password } => {
                HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
                    .ok()
            }
            Self::Bearer(value) => Some(value.clone()),
        };
        let value = value.map(|mut value| {
            value.set_sensitive(true);
            (AUTHORIZATION, value)
        });
        value.into_iter().collect()
    }

    /// What it means that a site does not let us in.
    pub fn forbidden(&self, status: StatusCode) -> &'static str {
        match (self, status) {
            (Self::Nobody, StatusCode::UNAUTHORIZED) => {
                "it wants credentials: spec.model.credentialsSecret can name them"
            }
            (Self::Nobody, _) => "it refuses access",
            (_, StatusCode::UNAUTHORIZED) => "it does not accept what stands in the credentials Secret",
            _ => "it refuses access to those whose credentials stand in the credentials Secret",
        }
    }
}

/// What an answer other than the file means. `forbidden`: what it means where nobody is let in.
pub(super) fn refusal(host: &str, status: StatusCode, forbidden: &str) -> Failure {
    let (reason, meaning) = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => (FailureReason::SourceNotFound, "the model is not there"),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (FailureReason::SourceForbidden, forbidden),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => (FailureReason::SourceUnreachable, "it is busy"),
        _ if status.is_server_error() => (FailureReason::SourceUnreachable, "it has a problem of its own"),
        _ => (FailureReason::SourceInvalid, "the model's uri is not one that it gives files for"),
    };
    failure(reason, &format!("{host} answered {}: {meaning}", status.as_u16()))
}
