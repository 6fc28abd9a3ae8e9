//! The keys of a credentials Secret, as files in a folder: read at each attempt, so that a Secret that was put right or
//! rotated is used without a restart.
//!
//! What is not in the Secret may be in the environment: that is where people put it outside Kubernetes, and where the
//! clouds' webhooks put a pod's identity. Values are never told; a message names the key.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};

/// A key's value is at most this long; a Secret as a whole may have 1 MiB.
const LONGEST: u64 = 64 * 1024;
/// Where Kubernetes and Docker keep the credentials of registries.
pub(super) const DOCKER_CONFIG: &str = ".dockerconfigjson";

/// Whose keys are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    /// S3, or something that speaks like it.
    Aws,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
    /// The Hugging Face Hub.
    HuggingFace,
}

impl Provider {
    /// The keys that are read from a Secret.
    fn known(self) -> &'static [&'static str] {
        match self {
            Self::Aws => &[
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_REGION",
                "AWS_DEFAULT_REGION",
                "AWS_ENDPOINT_URL",
                "AWS_ENDPOINT_URL_S3",
            ],
            Self::Google => &["GOOGLE_SERVICE_ACCOUNT_KEY", "key.json", "GOOGLE_BASE_URL"],
            Self::Azure => &[
                "AZURE_STORAGE_ACCOUNT_NAME",
                "AZURE_STORAGE_ACCOUNT_KEY",
                "AZURE_STORAGE_SAS_TOKEN",
                "AZURE_STORAGE_ENDPOINT",
                "AZURE_TENANT_ID",
                "AZURE_CLIENT_ID",
                "AZURE_CLIENT_SECRET",
            ],
            Self::HuggingFace => &["HF_TOKEN", "HF_ENDPOINT"],
        }
    }

    /// How its keys begin: one that begins so and is not known is a mistake, and not somebody else's key.
    fn prefix(self) -> &'static str {
        match self {
            Self::Aws => "AWS_",
            Self::Google => "GOOGLE_",
            Self::Azure => "AZURE_",
            Self::HuggingFace => "HF_",
        }
    }
}

/// What a credentials Secret holds.
#[derive(Default)]
pub(super) struct Keys {
    /// Absent: there is no Secret.
    given: Option<BTreeMap<String, String>>,
}

impl Keys {
    /// Reads the folder, if there is to be one.
    pub fn read(folder: Option<&Path>) -> Result<Self, Failure> {
        let Some(folder) = folder else { return Ok(Self::default()) };
        let entries = fs::read_dir(folder)
            .map_err(|error| unusable(format!("the folder of the credentials Secret cannot be read: {error}")))?;
        let mut given = BTreeMap::new();
        for entry in entries.flatten() {
            // Kubernetes keeps the files behind links, in folders whose names begin with dots; one key begins so, too.
            let is_key = |name: &&str| !name.starts_with('.') || *name == DOCKER_CONFIG;
            let Some(key) = entry.file_name().to_str().filter(is_key).map(str::to_owned) else {
                continue;
            };
            let value = read(&entry.path())
                .map_err(|problem| unusable(format!("the key {key} of the credentials Secret {problem}")))?;
            // `echo` and editors end a file with a line break.
            given.insert(key, value.trim().to_owned());
        }
        Ok(Self { given: Some(given) })
    }

    /// Whether there is a Secret.
    pub fn are_given(&self) -> bool {
        self.given.is_some()
    }

    /// A key of the Secret.
    pub fn given(&self, key: &str) -> Option<&str> {
        self.given.as_ref()?.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A key of the Secret or, failing that, of the environment.
    pub fn get(&self, key: &str) -> Option<String> {
        self.given(key).map(str::to_owned).or_else(|| env::var(key).ok().filter(|value| !value.is_empty()))
    }

    /// Refuses keys that look like this provider's and are not: a setting that is not carried out would be missed.
    pub fn check(&self, provider: Provider) -> Result<(), Failure> {
        let (known, prefix) = (provider.known(), provider.prefix());
        let mut given = self.given.iter().flat_map(BTreeMap::keys);
        match given.find(|key| key.starts_with(prefix) && !known.contains(&key.as_str())) {
            Some(key) => {
                Err(unusable(format!("the credentials Secret has a key {key}, but read are {}", known.join(", "))))
            }
            None => Ok(()),
        }
    }

    /// The failure of a key that is needed.
    pub fn missing(&self, key: &str, why: &str) -> Failure {
        let Some(given) = &self.given else {
            return unusable(format!(
                "{key} is missing, {why}: spec.model.credentialsSecret can name a Secret with it"
            ));
        };
        let there = match given.keys().map(String::as_str).collect::<Vec<_>>() {
            keys if keys.is_empty() => "none".to_owned(),
            keys => keys.join(", "),
        };
        unusable(format!("the credentials Secret has no key {key}, {why}; its keys are: {there}"))
    }

    /// The failure of a key that holds what it cannot.
    pub fn invalid(&self, key: &str, problem: &str) -> Failure {
        let place = if self.given(key).is_some() { "of the credentials Secret" } else { "of the environment" };
        unusable(format!("the key {key} {place} {problem}"))
    }
}

/// The problem is a predicate: the key stands before it.
fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(|_| "is not text".to_owned())?;
    if text.len() as u64 > LONGEST { Err(format!("is longer than {LONGEST} bytes")) } else { Ok(text) }
}

fn unusable(message: String) -> Failure {
    Failure { reason: FailureReason::CredentialsInvalid, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(given: &[(&str, &str)]) -> Keys {
        let folder = tempfile::tempdir().unwrap();
        for (key, value) in given {
            fs::write(folder.path().join(key), value).unwrap();
        }
        // As Kubernetes lays a Secret out.
        fs::create_dir(folder.path().join("..2026_11_25")).unwrap();
        std::os::unix::fs::symlink("..2026_11_25", folder.path().join("..data")).unwrap();
        Keys::read(Some(folder.path())).unwrap()
    }

    #[test]
    fn keys_are_read_without_the_line_break_at_their_end() {
        let keys = keys(&[("AWS_REGION", "eu-west-1\n"), ("AWS_SESSION_TOKEN", "\n"), ("other", "x")]);
        assert_eq!(keys.given("AWS_REGION"), Some("eu-west-1"));
        assert_eq!(keys.given("AWS_SESSION_TOKEN"), None, "an empty key is none");
        keys.check(Provider::Aws).unwrap();
        assert!(keys.are_given() && !Keys::read(None).unwrap().are_given());
    }

    #[test]
    fn a_mistyped_key_is_named_with_those_that_are_read_and_no_value_is_told() {
        let keys = keys(&[("AWS_SECRET_KEY", "hush"), ("username", "hush")]);
        let failure = keys.check(Provider::Aws).unwrap_err();
        assert_eq!(failure.reason, FailureReason::CredentialsInvalid);
        assert!(failure.message.contains("AWS_SECRET_KEY,") && failure.message.contains("AWS_SECRET_ACCESS_KEY"));
        keys.check(Provider::Google).unwrap();
        let failure = keys.missing("password", "which goes with username");
        assert!(failure.message.ends_with("its keys are: AWS_SECRET_KEY, username"), "{}", failure.message);
        assert!(!failure.message.contains("hush"));
    }

    #[test]
    fn what_no_key_can_hold_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), vec![b'x'; 65 * 1024]).unwrap();
        let message = |folder: &Path| Keys::read(Some(folder)).err().unwrap().message;
        assert!(message(folder.path()).contains("token of the credentials Secret is longer than 65536 bytes"));
        fs::write(folder.path().join("token"), [0xff, 0xfe]).unwrap();
        assert!(message(folder.path()).ends_with("is not text"));
        assert!(message(&folder.path().join("none")).contains("cannot be read"));
    }
}
