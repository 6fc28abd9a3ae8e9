//! Gets the model's bytes onto the local disk: within a limit, with their digest known, and from nowhere but where a
//! model may come from.
//!
//! What is mounted into the pod (volume claims, config maps) is read where it lies; what comes over the network is streamed
//! into the cache folder: by [`download`] where each file is asked for by itself (a web server, an object store, a hub), by
//! [`registry`] where a manifest lists them. A model may keep data in files beside its own ([`package`]), and may come
//! in an [`archive`].

mod address;
mod archive;
mod cache;
mod credentials;
mod download;
mod file;
mod http;
mod hub;
mod local;
mod object;
mod package;
mod registry;
mod wanted;

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::Url;
use sha2::{Digest as _, Sha256};

pub(crate) use address::host;
pub use cache::sweep;
pub use download::Retries;
use file::{Content, Stamp};
pub use hub::Entry;
pub use object::Location;
pub use registry::Reference;
pub use wanted::{Access, DataFiles, Digest, Wanted};

use crate::inside::Inside;

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file on a local or mounted disk.
    File(PathBuf),
    /// Something that answers GET.
    Http(Url),
    /// An object in an object store.
    Object(Location),
    /// An artifact in an OCI registry.
    Registry(Reference),
    /// A file in a repository of the Hugging Face Hub.
    Hub(Entry),
}

impl FromStr for Source {
    type Err = Failure;

    fn from_str(uri: &str) -> Result<Self, Failure> {
        if package::is_pickle(uri.split(['?', '#']).next().unwrap_or_default()) {
            return Err(invalid(
                "the model's uri names a Python pickle, or a file of PyTorch's that holds one: that is code and is never loaded. Convert the model to ONNX",
            ));
        }
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
            "oci" | "oci+http" => Reference::parse(&scheme, rest).map(Self::Registry),
            "hf" => Entry::parse(rest).map(Self::Hub),
            other => Err(invalid(&format!(
                "models cannot be fetched by '{}'; supported are https://, http://, s3://, gs://, az://, oci://, hf://, file:/// and plain paths",
                other.escape_debug()
            ))),
        }
    }
}

/// A model on the local disk.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its file.
    pub path: PathBuf,
    /// Its SHA-256 in lower-case hex: of the file; of several files, or of what they came in, see [`package`] and [`registry`].
    pub digest: String,
    /// The size of its files.
    pub bytes: u64,
    /// The files beside the first in which it keeps data, by their paths from its folder.
    pub companions: Vec<Inside>,
    /// All files, as they were before their digests were taken.
    parts: Vec<(PathBuf, Content)>,
}

impl Fetched {
    /// To be asked after the files were loaded by their paths: whether what was loaded is what has the digest.
    pub fn check_unchanged(&self) -> Result<(), Failure> {
        if self.parts.iter().all(|(path, content)| content.is_in(path)) {
            return Ok(());
        }
        let message = format!("the model changed while it was loaded: its SHA-256 was {}", self.digest);
        Err(failure(FailureReason::DigestMismatch, &message))
    }

    /// The files were moved, which leaves marks on them, but not in them.
    fn move_to(&mut self, place: impl Fn(&Path) -> Option<PathBuf>) -> io::Result<()> {
        let moved = |path: &Path| place(path).ok_or(io::Error::from(io::ErrorKind::NotFound));
        self.path = moved(&self.path)?;
        for (path, content) in &mut self.parts {
            *path = moved(path)?;
            content.stamp = Stamp::of(path)?;
        }
        Ok(())
    }
}

/// Gets the model. The failure says which part of it failed, for a person.
pub async fn fetch(source: &Source, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    match source {
        Source::File(path) => local::fetch(path, wanted).await,
        Source::Http(url) => download::fetch(&http::Site::new(url, wanted.access)?, wanted).await,
        Source::Object(location) => download::fetch(&object::Object::new(location, wanted.access), wanted).await,
        Source::Registry(reference) => registry::fetch(reference, wanted).await,
        Source::Hub(entry) => download::fetch(&hub::Repository::new(entry, wanted.access)?, wanted).await,
    }
}

/// Runs what reads or writes much on a thread where that is no harm.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let stopped = |_| failure(FailureReason::Internal, "reading the model's files stopped unexpectedly");
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}

fn too_large(max_bytes: u64) -> Failure {
    failure(FailureReason::ModelTooLarge, &format!("the model is larger than the {max_bytes} bytes that are allowed"))
}

/// Whether a text is a SHA-256 in lower-case hex.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
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
        assert!(matches!("oci://registry.example.com/models/digits:3".parse(), Ok(Source::Registry(_))));
        assert!(matches!("hf://org/digits@main/onnx/model.onnx".parse(), Ok(Source::Hub(_))));
    }

    #[test]
    fn other_sources_are_refused_with_what_is_supported() {
        let cases = [
            ("", "empty"),
            ("ftp://registry/model", "supported are https://"),
            ("oci://registry", "oci://HOST/REPOSITORY"),
            ("hf://org/repo", "hf://OWNER/NAME"),
            ("https://example.com/m.pkl", "pickle"),
            ("s3://models/net.PT", "pickle"),
            ("/models/m.joblib", "pickle"),
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
