//! One file on a local or mounted disk: read once for its digest, and known again afterwards.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};
use sha2::{Digest, Sha256};

use super::{failure, hex, too_large};

const CHUNK: usize = 1 << 20;

/// What tells that a file has not been written to nor replaced: device and inode, size, and the times of the last changes
/// to its bytes and to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// The SHA-256 of its bytes in lower-case hex.
    pub sha256: String,
    /// How many there are.
    pub bytes: u64,
    /// The file as it was before they were read.
    pub stamp: Stamp,
}

impl Content {
    /// Whether the file still holds this. One that was written to or replaced is read again, unless it only looks like it.
    pub fn is_in(&self, path: &Path) -> bool {
        Stamp::of(path).is_ok_and(|stamp| stamp == self.stamp)
            || read(path, self.bytes).is_ok_and(|now| now.sha256 == self.sha256)
    }
}

/// Reads a file of at most `max_bytes`.
pub(super) fn read(path: &Path, max_bytes: u64) -> Result<Content, Failure> {
    let mut file = File::open(path).map_err(|error| unreadable(&error))?;
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if metadata.len() > max_bytes {
        return Err(too_large(max_bytes));
    }
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk).map_err(|error| unreadable(&error))?;
        if read == 0 {
            return Ok(Content { sha256: hex(hash), bytes, stamp: Stamp::from(&metadata) });
        }
        bytes += read as u64;
        // The file may grow, or be a device.
        if bytes > max_bytes {
            return Err(too_large(max_bytes));
        }
        hash.update(&chunk[..read]);
    }
}

pub(super) fn unreadable(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound => failure(FailureReason::SourceNotFound, "the model file does not exist"),
        ErrorKind::PermissionDenied => {
            failure(FailureReason::SourceForbidden, "the model file may not be read by this server's user")
        }
        kind => failure(FailureReason::SourceUnreachable, &format!("the model file cannot be read: {kind}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_with_its_digest_and_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        fs::write(&path, "abc").unwrap();
        let content = read(&path, 3).unwrap();
        assert_eq!(content.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(content.bytes, 3);
        assert_eq!(read(&path, 2).unwrap_err().reason, FailureReason::ModelTooLarge);
    }

    #[test]
    fn a_file_that_changed_since_it_was_read_is_another_unless_its_bytes_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["m.onnx", "other"].map(|name| folder.path().join(name));
        fs::write(&path, "abc").unwrap();
        let content = read(&path, 3).unwrap();
        assert!(content.is_in(&path));
        let replace = |bytes: &str| {
            fs::write(&other, bytes).unwrap();
            fs::rename(&other, &path).unwrap();
        };
        replace("abc");
        assert!(content.is_in(&path));
        for bytes in ["abd", "abcd", ""] {
            replace(bytes);
            assert!(!content.is_in(&path), "{bytes}");
        }
        fs::remove_file(&path).unwrap();
        assert!(!content.is_in(&path));
    }

    #[test]
    fn what_is_no_readable_file_is_refused_without_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let missing = read(&folder.path().join("m.onnx"), 9).unwrap_err();
        assert_eq!(missing.reason, FailureReason::SourceNotFound);
        assert!(!missing.message.contains('/'), "{}", missing.message);
        assert_eq!(read(Path::new("/dev/zero"), 1 << 21).unwrap_err().reason, FailureReason::ModelTooLarge);
    }
}
