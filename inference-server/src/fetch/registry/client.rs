//! Asks a registry, as the OCI Distribution Specification describes it, and is let in as registries do it: who is refused is told
//! where to get a token, and asks again.
//!
//! Only reading, and by the same rules as any other source: the addresses of [`address`] are refused, at each hop.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::header::{ACCEPT, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::super::credentials::{DOCKER_CONFIG, Keys};
use super::super::http::{self, Login};
use super::super::wanted::Access;
use super::super::{address, failure};
use super::manifest::unusable;
use super::reference::Reference;

/// The name under which Docker keeps those of its own registry.
const DOCKER_LEGACY: &str = "https://index.docker.io/v1/";

/// A conversation about one repository.
pub(super) struct Conversation<'a> {
    client: Client,
    reference: &'a Reference,
    login: Login,
    /// Shown once it was asked for.
    shown: Mutex<Option<Login>>,
}

impl<'a> Conversation<'a> {
    pub fn new(reference: &'a Reference, access: Access<'_>) -> Result<Self, Failure> {
        let login = login(&Keys::read(access.credentials)?, &reference.host)?;
        Ok(Self { client: address::client()?, reference, login, shown: Mutex::new(None) })
    }

    /// Asks for `kind` (`manifests` or `blobs`) with a name. `accept`: the media types of the answer.
    pub async fn get(&self, kind: &str, name: &str, accept: &'static str) -> Result<Response, Failure> {
        let mut url = self.reference.registry.clone();
        url.set_path(&format!("/v2/{}/{kind}/{name}", self.reference.repository));
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let response = self.ask(&url, &shown.clone().unwrap_or(Login::Nobody), accept).await?;
        if response.status() == StatusCode::UNAUTHORIZED && shown.is_none() {
            let login = self.answer_challenge(&response).await?;
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(login.clone());
            return self.accepted(self.ask(&url, &login, accept).await?);
        }
        self.accepted(response)
    }

    async fn ask(&self, url: &Url, login: &Login, accept: &'static str) -> Result<Response, Failure> {
        let mut headers = login.headers();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        http::get(&self.client, url, &headers).await
    }

    fn accepted(&self, response: Response) -> Result<Response, Failure> {
        let (status, host) = (response.status(), address::host(response.url()));
        match status {
            StatusCode::OK => Ok(response),
            StatusCode::NOT_FOUND => {
                let message = format!("{host} answered 404: there is no {}", self.reference);
                Err(failure(FailureReason::SourceNotFound, &message))
            }
            _ => Err(http::refusal(&host, status, self.forbidden())),
        }
    }

    fn forbidden(&self) -> &'static str {
        match self.login {
            Login::Nobody => {
                "there is no such repository, or it wants credentials: spec.model.credentialsSecret can name them (a Secret of type \
                 kubernetes.io/dockerconfigjson)"
            }
            _ => "it does not let in those whose credentials stand in the credentials Secret",
        }
    }

    /// What is shown to a registry that wants to know who asks.
    async fn answer_challenge(&self, response: &Response) -> Result<Login, Failure> {
        let host = address::host(response.url());
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        for challenge in challenges.flat_map(|text| http_auth::parse_challenges(text).unwrap_or_default()) {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                return Ok(self.login.clone());
            }
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let params: HashMap<String, String> = challenge
                    .params
                    .iter()
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.to_unescaped()))
                    .collect();
                return self.token(&host, &params).await;
            }
        }
        Err(unusable(&format!("{host} wants to know who asks, in a way that is not known here (Basic and Bearer are)")))
    }

    /// Gets a token from where the registry says, as its token service wants it.
    async fn token(&self, host: &str, challenge: &HashMap<String, String>) -> Result<Login, Failure> {
        let realm = challenge.get("realm").and_then(|realm| Url::parse(realm).ok());
        let Some(mut realm) = realm else {
            return Err(unusable(&format!("{host} does not say where its tokens are to be had")));
        };
        if realm.scheme() != "https" && self.reference.registry.scheme() == "https" {
            return Err(unusable(&format!("{host} sends for its tokens to a place without TLS")));
        }
        let wanted = ["service", "scope"].into_iter().filter_map(|name| Some((name, challenge.get(name)?)));
        realm.query_pairs_mut().extend_pairs(wanted);
        let response = http::get(&self.client, &realm, &self.login.headers()).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(http::refusal(&address::host(&realm), status, self.forbidden()));
        }
        let answer = http::read_short(response).await?;
        let token = answer.and_then(|answer| serde_json::from_slice::<Token>(&answer).ok()).and_then(Token::text);
        token.and_then(|token| Login::bearer(&token)).ok_or_else(|| {
            unusable(&format!("{} gave no token that can be shown to the registry", address::host(&realm)))
        })
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Token {
    fn text(self) -> Option<String> {
        self.token.or(self.access_token).filter(|token| !token.is_empty())
    }
}

/// Docker's configuration, as far as it matters.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl DockerAuth {
    fn login(self) -> Option<Login> {
        let packed = self.auth.filter(|auth| !auth.is_empty());
        let unpacked = packed.and_then(|auth| String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok());
        let pair =
            unpacked.and_then(|pair| pair.split_once(':').map(|(name, word)| (name.to_owned(), word.to_owned())));
        let (username, password) = pair.or_else(|| Some((self.username?, self.password?)))?;
        Some(Login::Basic { username, password })
    }
}

/// Who asks, by the keys of a Secret: Docker's configuration where it is there, else like any web server's.
fn login(keys: &Keys, host: &str) -> Result<Login, Failure> {
    let Some(config) = keys.given(DOCKER_CONFIG) else { return Login::of(keys) };
    let config: DockerConfig = serde_json::from_str(config)
        .map_err(|_| keys.invalid(DOCKER_CONFIG, "is not what `kubectl create secret docker-registry` writes"))?;
    let is_host = |name: &str| {
        let name = if name == DOCKER_LEGACY { "docker.io" } else { name };
        name.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/') == host
    };
    let names: Vec<String> = config.auths.keys().cloned().collect();
    let found = config.auths.into_iter().find(|(name, _)| is_host(name));
    found.and_then(|(_, auth)| auth.login()).ok_or_else(|| {
        keys.invalid(
            DOCKER_CONFIG,
            &format!("has no user and password for {host}; it has some for: {}", names.join(", ")),
        )
    })
}
