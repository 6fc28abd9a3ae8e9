//! Where an artifact is: `oci://HOST/REPOSITORY:TAG` or `oci://HOST/REPOSITORY@sha256:DIGEST`.

use std::fmt;

use ortolan_protocol::failure::Failure;
use reqwest::Url;

use super::super::{address, invalid, is_sha256};

/// What is read where neither a tag nor a digest is named.
const LATEST: &str = "latest";
/// Docker's registry answers under another name than its own.
const DOCKER: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// An artifact in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The registry, without a path.
    pub(super) registry: Url,
    /// The registry's name as a person writes it, which credentials are kept under.
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) tag: String,
    /// The digest of its manifest, as hex, where it is named.
    pub(super) sha256: Option<String>,
}

impl Reference {
    /// Parses what follows `oci://`, or `oci+http://` for a registry without TLS.
    pub fn parse(scheme: &str, rest: &str) -> Result<Self, Failure> {
        let form = || {
            invalid(
                "the model's uri must be oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:DIGEST, in small letters",
            )
        };
        let (host, path) = rest.split_once('/').ok_or_else(form)?;
        let (path, digest) = path.split_once('@').map_or((path, None), |(path, digest)| (path, Some(digest)));
        let sha256 = digest.map(|digest| hex_of(digest).ok_or_else(form)).transpose()?;
        let (repository, tag) = path.split_once(':').unwrap_or((path, LATEST));
        let is_repository = repository.len() <= 255 && repository.split('/').all(is_component);
        if !is_repository || !is_tag(tag) || host.contains('@') {
            return Err(form());
        }
        let protocol = if scheme == "oci+http" { "http" } else { "https" };
        let name = if host == DOCKER.0 { DOCKER.1 } else { host };
        let registry = Url::parse(&format!("{protocol}://{name}/")).map_err(|_| form())?;
        address::check(&registry)?;
        Ok(Self { registry, host: host.to_owned(), repository: repository.to_owned(), tag: tag.to_owned(), sha256 })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, repository, tag, sha256, .. } = self;
        match sha256 {
            Some(sha256) => write!(formatter, "{host}/{repository}@sha256:{sha256}"),
            None => write!(formatter, "{host}/{repository}:{tag}"),
        }
    }
}

/// The hexadecimal digits of a digest; others than SHA-256 are not taken.
pub(super) fn hex_of(digest: &str) -> Option<String> {
    let hex = digest.strip_prefix("sha256:")?;
    is_sha256(hex).then(|| hex.to_owned())
}

/// A part of a repository's name: small letters and digits, with separators in between.
fn is_component(component: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [component.bytes().next(), component.bytes().next_back()];
    ends.into_iter().all(|end| end.is_some_and(is_plain))
        && component.bytes().all(|byte| is_plain(byte) || matches!(byte, b'.' | b'_' | b'-'))
        && !component.contains("..")
}

fn is_tag(tag: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=128).contains(&tag.len()) && tag.bytes().all(is_plain) && !tag.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_a_tag_or_a_digest() {
        let digest = "ab".repeat(32);
        for (rest, shown) in [
            ("localhost:5000/m", "localhost:5000/m:latest".to_owned()),
            ("r.example.com/models/digits_1:v1.2", "r.example.com/models/digits_1:v1.2".to_owned()),
            (&format!("r.example.com/a/b:v1@sha256:{digest}"), format!("r.example.com/a/b@sha256:{digest}")),
        ] {
            assert_eq!(Reference::parse("oci", rest).unwrap().to_string(), shown);
        }
        let docker = Reference::parse("oci", "docker.io/org/m:1").unwrap();
        assert_eq!((docker.registry.as_str(), docker.host.as_str()), ("https://registry-1.docker.io/", "docker.io"));
        assert_eq!(Reference::parse("oci+http", "r:5000/m").unwrap().registry.as_str(), "http://r:5000/");
    }

    #[test]
    fn what_no_registry_would_take_is_refused_before_it_is_asked() {
        for rest in [
            "",
            "r",
            "r/",
            "r/M:1",
            "r/a//b:1",
            "r/../b:1",
            "r/a:",
            "r/a:-1",
            "r/a@sha256:12",
            "r/a@sha512:00",
            "r/a/:1",
            "u:p@r/a:1",
            "r/a?b:1",
        ] {
            assert!(Reference::parse("oci", rest).unwrap_err().message.contains("oci://HOST/REPOSITORY"), "{rest}");
        }
        assert!(Reference::parse("oci", "169.254.169.254/a:1").unwrap_err().message.contains("link-local"));
    }
}
