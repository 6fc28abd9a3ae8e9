//! Gets the model's bytes onto the local disk: within a limit, with their digest known, and from nowhere but where a
//! model may come from.
//!
//! What is mounted into the pod (volume claims, config maps) is read where it lies; what comes over the network (a web
//! server, an object store) is streamed into the cache folder by [`download`]. Registries are not here yet; their schemes
//! are refused by name.

mod address;
mod cache;
mod credentials;
mod download;
mod file;
mod http;
mod object;
mod wanted;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::str::FromStr;

use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::Url;
use sha2::{Digest as _, Sha256};

pub use cache::sweep;
pub use download::Retries;
use file::Stamp;
pub use object::Location;
pub use wanted::{Access, Digest, Wanted};

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file on a local or mounted disk.
    File(PathBuf),
    /// Something that answers GET.
    Http(Url),
    /// An object in an object store.
    Object(Location),
}

impl FromStr for Source {
    type Err = Failure;

    fn from_str(uri: &str) -> Result<Self, Failure> {
        let Some((scheme, rest)) = uri.split_once("://") else {
            return if uri.is_empty() {
                Err(invalid("the model's uri is empty"))
            } else {
                Ok(Self::File(PathBuf::from(uri)))
            };
        };
        let scheme = scheme.to_ascii_lowercase();
        if let Some(location) = Location::parse(&scheme, rest) {
            return location.map(Self::Object);
        }
        match scheme.as_str() {
            "file" if rest.starts_with('/') => Ok(Self::File(PathBuf::from(rest))),
            "file" => Err(invalid("a file uri has three slashes and an absolute path: file:///models/model.onnx")),
            "http" | "https" => {
                let url = Url::parse(uri)
                    .map_err(|error| invalid(&format!("the model's uri is not a valid URL: {error}")))?;
                address::check(&url)?;
                Ok(Self::Http(url))
            }
            other => Err(invalid(&format!(
                "models cannot be fetched by '{}'; supported are https://, http://, s3://, gs://, az://, file:/// and plain paths",
                other.escape_debug()
            ))),
        }
    }
}

/// A model on the local disk.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The file.
    pub path: PathBuf,
    /// The SHA-256 of its bytes in lower-case hex.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
    /// The file as it was before its digest was taken.
    stamp: Stamp,
}

impl Fetched {
    /// To be asked after the file was loaded by its path: whether what was loaded is what has the digest. A file that
    /// changed in between, or was replaced, is read again, unless it only looks like it.
    pub fn check_unchanged(&self) -> Result<(), Failure> {
        if Stamp::of(&self.path).is_ok_and(|stamp| stamp == self.stamp) {
            return Ok(());
        }
        match file::read(&self.path, self.bytes) {
            Ok(now) if now.digest == self.digest => Ok(()),
            _ => Err(failure(
                FailureReason::DigestMismatch,
                &format!("the model file changed while it was loaded: its SHA-256 was {}", self.digest),
            )),
        }
    }
}

/// Gets the model. The failure says which part of it failed, for a person.
pub async fn fetch(source: &Source, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    let fetched = match source {
        Source::File(path) => {
            let (path, max_bytes) = (path.clone(), wanted.max_bytes);
            tokio::task::spawn_blocking(move || file::read(&path, max_bytes)).await.unwrap_or_else(|_| {
                Err(failure(FailureReason::Internal, "reading the model file stopped unexpectedly"))
            })?
        }
        Source::Http(url) => download::fetch(&http::Site::new(url, wanted.access)?, wanted).await?,
        Source::Object(location) => download::fetch(&object::Object::new(location, wanted.access), wanted).await?,
    };
    wanted.digest.check(&fetched.digest)?;
    Ok(fetched)
}

fn too_large(max_bytes: u64) -> Failure {
    failure(FailureReason::ModelTooLarge, &format!("the model is larger than the {max_bytes} bytes that are allowed"))
}

pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn invalid(message: &str) -> Failure {
    failure(FailureReason::SourceInvalid, message)
}

fn failure(reason: FailureReason, message: &str) -> Failure {
    Failure { reason, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_path_or_a_uri_of_a_supported_scheme() {
        let file = |path: &str| Source::File(PathBuf::from(path));
        assert_eq!("model.onnx".parse(), Ok(file("model.onnx")));
        assert_eq!("/models/a b.onnx".parse(), Ok(file("/models/a b.onnx")));
        assert_eq!("file:///models/m.onnx".parse(), Ok(file("/models/m.onnx")));
        assert!(matches!("HTTPS://example.com/m.onnx".parse(), Ok(Source::Http(_))));
        assert!(matches!("s3://models/digits/m.onnx".parse(), Ok(Source::Object(_))));
    }

    #[test]
    fn other_sources_are_refused_with_what_is_supported() {
        let cases = [
            ("", "empty"),
            ("oci://registry/model", "supported are https://"),
            ("s3://bucket", "s3://BUCKET/KEY"),
            ("gopher://x", "'gopher'"),
            ("file://models/m.onnx", "three slashes"),
            ("https://", "not a valid URL"),
            ("http://169.254.169.254/latest", "link-local"),
            ("http://[fe80::1]/m", "link-local"),
            ("http://[::ffff:169.254.169.254]/m", "link-local"),
            ("http://[fd00:ec2::254]/m", "metadata"),
            ("http://0xA9FEA9FE/m", "link-local"),
        ];
        for (uri, words) in cases {
            let failure = uri.parse::<Source>().unwrap_err();
            assert_eq!(failure.reason, FailureReason::SourceInvalid, "{uri}");
            assert!(failure.message.contains(words), "{uri}: {}", failure.message);
        }
    }
}
