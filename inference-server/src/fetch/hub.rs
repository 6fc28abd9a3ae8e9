//! A model in a repository of the Hugging Face Hub, or of a mirror that speaks like it: `hf://OWNER/NAME[@REVISION]/PATH`.
//!
//! A revision is a branch, a tag or a commit. It is looked up once for each start of a server, and all of the model's files are read
//! at the commit that was found. Files lie behind redirects to other hosts, which are not shown the token.

use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::credentials::{Keys, Provider};
use super::download::{Incoming, Origin};
use super::http::{self, Login};
use super::wanted::Access;
use super::{address, failure, invalid};
use crate::inside::Inside;

const ENDPOINT: &str = "https://huggingface.co";
const MAIN: &str = "main";
/// Where the hub says more exactly what it did not find.
const ERROR_CODE: &str = "x-error-code";

/// A file in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    owner: String,
    name: String,
    revision: String,
    path: Inside,
}

impl Entry {
    /// Parses what follows `hf://`.
    pub fn parse(rest: &str) -> Result<Self, Failure> {
        let form = || {
            invalid(
                "the model's uri must be hf://OWNER/NAME/PATH or hf://OWNER/NAME@REVISION/PATH, with the path of the .onnx file",
            )
        };
        let mut parts = rest.splitn(3, '/');
        let (Some(owner), Some(name), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(form());
        };
        let (name, revision) = name.split_once('@').unwrap_or((name, MAIN));
        let is_word = |word: &str| {
            let plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
            !word.is_empty() && word.len() <= 128 && word.chars().all(plain) && !word.starts_with('.')
        };
        if ![owner, name, revision].into_iter().all(is_word) {
            return Err(form());
        }
        let path = Inside::parse(path).ok_or_else(form)?;
        Ok(Self { owner: owner.to_owned(), name: name.to_owned(), revision: revision.to_owned(), path })
    }
}

/// A repository, and what it takes to be let in.
pub(super) struct Repository<'a> {
    client: Client,
    entry: &'a Entry,
    access: Access<'a>,
    /// What the revision is.
    commit: OnceCell<String>,
}

/// What the hub tells about a revision, as far as it matters.
#[derive(Deserialize)]
struct Revision {
    sha: String,
}

/// Who is asked, and as whom.
struct Hub {
    endpoint: Url,
    login: Login,
}

impl Hub {
    fn new(access: Access<'_>) -> Result<Self, Failure> {
        let keys = Keys::read(access.credentials)?;
        keys.check(Provider::HuggingFace)?;
        let endpoint = keys.get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = Url::parse(&endpoint).ok().filter(Url::has_host);
        let endpoint = endpoint
            .ok_or_else(|| keys.invalid("HF_ENDPOINT", "is not the URL of a hub such as https://huggingface.co"))?;
        let login = match keys.get("HF_TOKEN") {
            Some(token) => {
                Login::bearer(&token).ok_or_else(|| keys.invalid("HF_TOKEN", "holds characters that no token has"))?
            }
            None => Login::Nobody,
        };
        Ok(Self { endpoint, login })
    }

    fn url<'p>(&self, parts: impl Iterator<Item = &'p str>) -> Url {
        let mut url = self.endpoint.clone();
        // A URL with a host has a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }
}

impl<'a> Repository<'a> {
    pub fn new(entry: &'a Entry, access: Access<'a>) -> Result<Self, Failure> {
        Ok(Self { client: address::client()?, entry, access, commit: OnceCell::new() })
    }

    async fn get(&self, hub: &Hub, url: &Url, what: &str) -> Result<Response, Failure> {
        let response = http::get(&self.client, url, &hub.login.headers()).await?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(self.refusal(&response, &hub.login, what))
    }

    /// The commit that the revision is.
    async fn commit(&self, hub: &Hub) -> Result<&str, Failure> {
        let Entry { owner, name, revision, .. } = self.entry;
        let look_up = async || {
            let url = hub.url(["api", "models", owner, name, "revision", revision].into_iter());
            let response = self.get(hub, &url, "").await?;
            let host = address::host(response.url());
            let told: Option<Revision> =
                http::read_short(response).await?.and_then(|answer| serde_json::from_slice(&answer).ok());
            let is_commit =
                |sha: &String| (7..=64).contains(&sha.len()) && sha.bytes().all(|byte| byte.is_ascii_hexdigit());
            told.map(|revision| revision.sha).filter(is_commit).ok_or_else(|| {
                let message =
                    format!("{host} does not say which commit the revision '{revision}' is: it is no Hugging Face Hub");
                failure(FailureReason::SourceInvalid, &message)
            })
        };
        self.commit.get_or_try_init(look_up).await.map(String::as_str)
    }

    fn refusal(&self, response: &Response, login: &Login, file: &str) -> Failure {
        let (host, status) = (address::host(response.url()), response.status());
        let Entry { owner, name, revision, .. } = self.entry;
        let said = |code: &str| response.headers().get(ERROR_CODE).is_some_and(|said| said == code);
        let missing = |what: String| {
            failure(FailureReason::SourceNotFound, &format!("{host} answered {}: there is no {what}", status.as_u16()))
        };
        let repository = format!("repository '{owner}/{name}'");
        if said("RevisionNotFound") {
            return missing(format!("revision '{revision}' in {repository}"));
        }
        if said("EntryNotFound") {
            return missing(format!("file '{}' in {repository} at '{revision}'", file.escape_debug()));
        }
        let is_open = matches!(login, Login::Nobody);
        let forbidden = match (said("GatedRepo"), is_open) {
            (true, true) => {
                "the repository is gated: accept its terms and give a token as HF_TOKEN in spec.model.credentialsSecret"
            }
            (true, false) => "the repository is gated, and the owner of HF_TOKEN has not been let in",
            (false, true) => {
                "there is no such repository, or it is private: spec.model.credentialsSecret can name a Secret with HF_TOKEN"
            }
            (false, false) => "there is no such repository, or the owner of HF_TOKEN may not read it",
        };
        if status == StatusCode::NOT_FOUND {
            return missing(repository);
        }
        http::refusal(&host, status, forbidden)
    }
}

impl Origin for Repository<'_> {
    fn name(&self) -> Option<Inside> {
        Inside::parse(self.entry.path.name())
    }

    async fn open(&self, beside: Option<&Inside>) -> Result<Incoming, Failure> {
        let hub = Hub::new(self.access)?;
        let commit = self.commit(&hub).await?;
        let Entry { owner, name, path, .. } = self.entry;
        let path = beside.map_or_else(|| path.clone(), |beside| path.beside(beside));
        let url = hub.url([owner.as_str(), name, "resolve", commit].into_iter().chain(path.parts()));
        self.get(&hub, &url, path.as_str()).await.map(http::incoming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_file_at_a_revision() {
        let entry = Entry::parse("org/digits-v1.0@refs-1/onnx/model.onnx").unwrap();
        assert_eq!(
            (entry.owner.as_str(), entry.name.as_str(), entry.revision.as_str()),
            ("org", "digits-v1.0", "refs-1")
        );
        assert_eq!(entry.path.as_str(), "onnx/model.onnx");
        assert_eq!(Entry::parse("org/digits/model.onnx").unwrap().revision, "main");
        for rest in [
            "",
            "org",
            "org/digits",
            "org/digits/",
            "org/@main/m",
            "org/digits@/m",
            "../digits/m",
            "org/d/../m",
            "o?/d/m",
        ] {
            assert!(Entry::parse(rest).unwrap_err().message.contains("hf://OWNER/NAME"), "{rest}");
        }
    }
}
