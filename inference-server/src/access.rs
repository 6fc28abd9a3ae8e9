//! Who may ask: keys that clients send with each request, where the server is given any.
//!
//! The server knows only the keys' SHA-256, each in a file of a folder (a mounted Secret), so that what it holds lets nobody
//! in. Files that change, come or go count a few seconds later. Keys are long random words: that is what makes one round
//! of SHA-256 enough.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use ortolan_protocol::failure::{Failure, FailureReason};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::info;

use crate::error::{Error, ErrorKind};
use crate::follow::follow;

/// Another header for a key than `Authorization`.
const HEADER: &str = "x-api-key";

type Hash = [u8; 32];

/// The keys that let clients in.
pub struct Keys {
    folder: PathBuf,
    accepted: RwLock<Vec<Hash>>,
}

impl std::fmt::Debug for Keys {
    /// Nothing of what it holds.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the hashes in a folder: in each file one a line, 64 hexadecimal digits.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let invalid = |message| Failure {
            reason: FailureReason::ApiKeysInvalid,
            message: format!("the API keys cannot be used: {message}"),
        };
        let accepted = hashes(folder).map_err(invalid)?;
        if accepted.is_empty() {
            return Err(invalid("there is no key in the folder; expected a file with the SHA-256 of one".to_owned()));
        }
        Ok(Self { folder: folder.to_owned(), accepted: RwLock::new(accepted) })
    }

    /// Lets a request in and tells the SHA-256 of its key, or says what it lacks.
    pub fn check(&self, headers: &HeaderMap) -> Result<[u8; 32], Error> {
        let Some(key) = presented(headers) else {
            return Err(unauthenticated(
                "this server wants an API key, as Authorization: Bearer KEY or x-api-key: KEY",
            ));
        };
        let hash: Hash = Sha256::digest(key).into();
        let accepted = self.accepted.read().unwrap_or_else(PoisonError::into_inner);
        // All are compared, so that time does not tell which one was near.
        let matches = accepted.iter().fold(subtle::Choice::from(0), |found, known| found | known.ct_eq(&hash));
        if bool::from(matches) {
            Ok(hash)
        } else {
            Err(unauthenticated("the API key is not one that this server knows"))
        }
    }

    /// Follows the files for as long as it is polled. Once there are no keys in them, nobody is let in.
    pub async fn follow(&self) {
        follow("the API keys", || self.look_again()).await;
    }

    fn look_again(&self) -> Result<(), String> {
        let found = hashes(&self.folder)?;
        let mut accepted = self.accepted.write().unwrap_or_else(PoisonError::into_inner);
        if *accepted != found {
            info!(keys = found.len(), "the API keys changed");
            *accepted = found;
        }
        Ok(())
    }
}

fn unauthenticated(message: &'static str) -> Error {
    Error::new(ErrorKind::Unauthenticated, message)
}

/// The key that a request carries.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get(HEADER).map(|value| value.as_bytes().trim_ascii()))
}

/// The hashes in a folder, sorted; an error says what is wrong without a path or what stands in a file.
fn hashes(folder: &Path) -> Result<Vec<Hash>, String> {
    let unreadable = |error: io::Error| format!("the folder cannot be read: {error}");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A mounted Secret has its machinery in names that begin so; its files are links into it.
        if name.starts_with("..") || !fs::metadata(entry.path()).map_err(unreadable)?.is_file() {
            continue;
        }
        let text =
            fs::read_to_string(entry.path()).map_err(|error| format!("the file '{name}' cannot be read: {error}"))?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            found.push(hash(line).ok_or_else(|| {
                format!("the file '{name}' has a line that is not the SHA-256 of a key, which is 64 hexadecimal digits")
            })?);
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn hash(hex: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != hash.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn hex(key: &str) -> String {
        crate::fetch::hex(Sha256::new_with_prefix(key))
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn outcome(keys: &Keys, name: &'static str, value: &str) -> Result<(), ErrorKind> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        keys.check(&headers).map(|_| ()).map_err(|error| error.kind())
    }

    #[test]
    fn a_key_is_known_by_its_hash_in_either_header() {
        let upper = hex("other").to_uppercase();
        let folder =
            folder(&[("team-a", &format!("# since May\n{}\n\n{upper}\n", hex("secret"))), ("team-b", &hex("third"))]);
        fs::create_dir(folder.path().join("..2026")).unwrap();
        let keys = Keys::read(folder.path()).unwrap();
        for (name, value, is_known) in [
            ("authorization", "Bearer secret", true),
            ("authorization", "bearer  other ", true),
            ("x-api-key", "third", true),
            ("authorization", "Bearer Secret", false),
            ("authorization", "Basic secret", false),
            ("authorization", "secret", false),
            ("authorization", "Bearer ", false),
            ("x-api-key", "", false),
            ("x-api-key", &hex("secret"), false),
        ] {
            let expected = if is_known { Ok(()) } else { Err(ErrorKind::Unauthenticated) };
            assert_eq!(outcome(&keys, name, value), expected, "{name}: {value}");
        }
        assert!(keys.check(&HeaderMap::new()).unwrap_err().message().contains("wants an API key"));
        assert!(!format!("{keys:?}").contains(&hex("secret")[..6]));
    }

    #[test]
    fn keys_change_with_their_files_and_stay_while_those_cannot_be_read() {
        let folder = folder(&[("a", &hex("old"))]);
        let keys = Keys::read(folder.path()).unwrap();
        fs::write(folder.path().join("a"), hex("new")).unwrap();
        assert!(keys.look_again().is_ok());
        assert_eq!(outcome(&keys, "x-api-key", "old"), Err(ErrorKind::Unauthenticated));
        assert_eq!(outcome(&keys, "x-api-key", "new"), Ok(()));
        fs::write(folder.path().join("a"), "half of a fi").unwrap();
        assert!(keys.look_again().is_err());
        assert_eq!(outcome(&keys, "x-api-key", "new"), Ok(()));
        fs::remove_file(folder.path().join("a")).unwrap();
        assert!(keys.look_again().is_ok());
        assert_eq!(outcome(&keys, "x-api-key", "new"), Err(ErrorKind::Unauthenticated));
    }

    #[test]
    fn what_is_wrong_with_the_folder_is_told_without_what_stands_there() {
        for (files, words) in [
            (vec![], "no key in the folder"),
            (vec![("a", "# nothing\n")], "no key in the folder"),
            (vec![("a", "hunter2")], "the file 'a' has a line that is not"),
        ] {
            let folder = folder(&files);
            let failure = Keys::read(folder.path()).unwrap_err();
            assert_eq!(failure.reason, FailureReason::ApiKeysInvalid);
            assert!(failure.message.contains(words) && !failure.message.contains("hunter2"), "{}", failure.message);
            assert!(!failure.message.contains(folder.path().to_str().unwrap()));
        }
        assert!(Keys::read(Path::new("/nowhere")).unwrap_err().message.contains("cannot be read"));
    }
}
