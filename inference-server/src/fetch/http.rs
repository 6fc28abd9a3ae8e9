//! A model over HTTP.
//!
//! Redirects are followed by hand, because each hop is checked like the first one: its scheme, and the addresses that its
//! name resolves to. Credentials go to the place that the uri names and to no other.

use futures_util::TryStreamExt;
use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::credentials::Keys;
use super::download::{Incoming, Origin};
use super::wanted::Access;
use super::{address, failure, invalid};

const MAX_REDIRECTS: usize = 10;

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

    async fn follow(&self) -> Result<Response, Failure> {
        let login = Login::of(&Keys::read(self.access.credentials)?)?;
        let mut url = self.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            address::check(&url)?;
            let host = address::host(&url);
            let request = self.client.get(url.clone());
            let request = if url.origin() == self.url.origin() { login.add_to(request) } else { request };
            let response = request.send().await.map_err(|error| address::unreachable(&host, &error))?;
            if !response.status().is_redirection() {
                return checked_status(response, &host, &login);
            }
            let target = response
                .headers()
                .get(LOCATION)
                .and_then(|target| target.to_str().ok())
                .and_then(|target| url.join(target).ok());
            url = target.ok_or_else(|| {
                let message = format!("{host} answered with a redirect that leads nowhere");
                failure(FailureReason::SourceUnreachable, &message)
            })?;
        }
        Err(invalid(&format!("the model's source redirects more than {MAX_REDIRECTS} times")))
    }
}

impl Origin for Site<'_> {
    async fn open(&self) -> Result<Incoming, Failure> {
        let response = self.follow().await?;
        Ok(Incoming {
            host: address::host(response.url()),
            length: response.content_length(),
            body: Box::pin(response.bytes_stream().map_err(Into::into)),
        })
    }
}

/// How a site is told who asks.
enum Login {
    Nobody,
    Basic { username: String, password: String },
    Bearer(HeaderValue),
}

impl Login {
    /// From the keys of a `kubernetes.io/basic-auth` Secret, or from a token.
    fn of(keys: &Keys) -> Result<Self, Failure> {
        let [token, username, password] = ["token", "username", "password"].map(|key| keys.given(key));
        match (token, username, password) {
            (Some(token), None, None) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| keys.invalid("token", "holds characters that no token has"))?;
                value.set_sensitive(true);
                Ok(Self::Bearer(value))
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

    fn add_to(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::Basic { username, password } => request.basic_auth(username, Some(password)),
            Self::Bearer(value) => request.header(AUTHORIZATION, value.clone()),
        }
    }

    fn forbidden(&self, status: StatusCode) -> &'static str {
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

fn checked_status(response: Response, host: &str, login: &Login) -> Result<Response, Failure> {
    let status = response.status();
    let (reason, meaning) = match status {
        StatusCode::OK => return Ok(response),
        StatusCode::NOT_FOUND | StatusCode::GONE => (FailureReason::SourceNotFound, "the model is not there"),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (FailureReason::SourceForbidden, login.forbidden(status)),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => (FailureReason::SourceUnreachable, "it is busy"),
        _ if status.is_server_error() => (FailureReason::SourceUnreachable, "it has a problem of its own"),
        _ => (FailureReason::SourceInvalid, "the model's uri is not one that it gives files for"),
    };
    Err(failure(reason, &format!("{host} answered {}: {meaning}", status.as_u16())))
}
