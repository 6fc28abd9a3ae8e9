//! A model in an object store: `s3://`, `gs://` and `az://`.
//!
//! The object_store crate signs requests and knows where they go; everything else is ours, so that the same rules hold
//! as for any other source: requests leave through [`service`], answers that are no success become sentences in
//! [`answer`], and the bytes go through [`super::download`].

mod answer;
mod service;
mod stores;

use std::fmt;

use futures_util::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectStore};
use ortolan_protocol::failure::Failure;

use super::credentials::{Keys, Provider};
use super::download::{Incoming, Origin};
use super::wanted::Access;
use super::{failure, invalid};
use crate::inside::Inside;
use answer::Asked;
use stores::Opened;

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    kind: Kind,
    /// The bucket, or container.
    bucket: String,
    /// The object's name in it, as it is: nothing is decoded.
    key: String,
}

/// The kinds of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    S3,
    Google,
    Azure,
}

impl Kind {
    fn provider(self) -> Provider {
        match self {
            Self::S3 => Provider::Aws,
            Self::Google => Provider::Google,
            Self::Azure => Provider::Azure,
        }
    }

    /// What this store calls a bucket.
    fn bucket(self) -> &'static str {
        match self {
            Self::S3 | Self::Google => "bucket",
            Self::Azure => "container",
        }
    }
}

impl Location {
    /// Reads `scheme://rest`; `None` where the scheme is no object store's.
    pub(super) fn parse(scheme: &str, rest: &str) -> Option<Result<Self, Failure>> {
        let kind = match scheme {
            "s3" => Kind::S3,
            "gs" => Kind::Google,
            "az" => Kind::Azure,
            _ => return None,
        };
        Some(Self::of(kind, scheme, rest))
    }

    fn of(kind: Kind, scheme: &str, rest: &str) -> Result<Self, Failure> {
        let form = format!("{scheme}://{}/KEY", kind.bucket().to_uppercase());
        let (bucket, key) = rest.split_once('/').ok_or_else(|| invalid(&format!("the model's uri must be {form}")))?;
        let is_plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
        if bucket.is_empty() || bucket.len() > 255 || !bucket.chars().all(is_plain) || bucket.starts_with('.') {
            let what = kind.bucket();
            return Err(invalid(&format!(
                "the model's uri must be {form}, and the {what}'s name holds other characters"
            )));
        }
        // An empty part would be dropped on the way, and another object be read than the one that was named.
        if Key::parse(key).is_err() || key.split('/').any(str::is_empty) {
            return Err(invalid(&format!(
                "the model's uri must be {form}, with a key that names an object: no part between slashes may be empty, '.' or '..'"
            )));
        }
        Ok(Self { kind, bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

impl Location {
    /// Where another file in the same folder is.
    fn beside(&self, beside: Option<&Inside>) -> Self {
        let folder = self.key.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let key = beside.map_or_else(|| self.key.clone(), |beside| format!("{folder}{beside}"));
        Self { key, ..self.clone() }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "object '{}' in {} '{}'", self.key.escape_debug(), self.kind.bucket(), self.bucket)
    }
}

/// An object, and what it takes to be let in.
pub(super) struct Object<'a> {
    location: &'a Location,
    access: Access<'a>,
}

impl<'a> Object<'a> {
    pub fn new(location: &'a Location, access: Access<'a>) -> Self {
        Self { location, access }
    }
}

impl Origin for Object<'_> {
    fn name(&self) -> Option<Inside> {
        Inside::parse(self.location.key.rsplit('/').next()?)
    }

    async fn open(&self, beside: Option<&Inside>) -> Result<Incoming, Failure> {
        let keys = Keys::read(self.access.credentials)?;
        keys.check(self.location.kind.provider())?;
        let Opened { store, host, identity } = stores::open(self.location, &keys, self.access.cloud_identity).await?;
        let location = self.location.beside(beside);
        let asked = Asked { location: &location, host: &host, identity };
        let key = Key::parse(&location.key).map_err(|_| invalid("the model's uri names no object"))?;
        let found = store.get_opts(&key, GetOptions::default()).await.map_err(|error| asked.failure(&error))?;
        Ok(Incoming { length: Some(found.meta.size), body: Box::pin(found.into_stream().map_err(Into::into)), host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_as_it_is_and_one_that_would_become_another_is_refused() {
        let parse = |scheme: &str, rest: &str| Location::parse(scheme, rest).unwrap();
        let found = parse("s3", "models/digits/3/model v2+%20?#.onnx").unwrap();
        assert_eq!((found.bucket.as_str(), found.key.as_str()), ("models", "digits/3/model v2+%20?#.onnx"));
        assert_eq!(parse("az", "m/k").unwrap().to_string(), "object 'k' in container 'm'");
        for rest in ["models", "models/", "models//k", "models/a//k", "models/a/", "/k", "mo:dels/k", "m/../k", "m/./k"]
        {
            let failure = parse("gs", rest).unwrap_err();
            assert!(failure.message.contains("gs://BUCKET/KEY"), "{rest}: {}", failure.message);
        }
        assert!(Location::parse("oci", "a/b").is_none());
    }
}
