//! A model on a local or mounted disk: read once for its digest, and served from where it lies.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};
use sha2::{Digest, Sha256};

use super::{Fetched, failure, hex, too_large};

const CHUNK: usize = 1 << 20;

pub(super) fn read(path: &Path, max_bytes: u64) -> Result<Fetched, Failure> {
    let (digest, bytes) = digest(path, max_bytes)?;
    Ok(Fetched { path: path.to_owned(), digest, bytes })
}

/// SHA-256 and size of a file of at most `max_bytes`.
pub(super) fn digest(path: &Path, max_bytes: u64) -> Result<(String, u64), Failure> {
    let mut file = File::open(path).map_err(|error| unreadable(&error))?;
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if metadata.is_dir() {
        return Err(failure(
            FailureReason::SourceInvalid,
            "the model's path is a folder; it must name the .onnx file in it",
        ));
    }
    if metadata.len() > max_bytes {
        return Err(too_large(max_bytes));
    }
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk).map_err(|error| unreadable(&error))?;
        if read == 0 {
            return Ok((hex(hash), bytes));
        }
        bytes += read as u64;
        // The file may grow, or be a device.
        if bytes > max_bytes {
            return Err(too_large(max_bytes));
        }
        hash.update(&chunk[..read]);
    }
}

fn unreadable(error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound => failure(FailureReason::SourceNotFound, "the model file does not exist"),
        ErrorKind::PermissionDenied => {
            failure(FailureReason::SourceForbidden, "the model file may not be read by this server's user")
        }
        _ => failure(FailureReason::SourceUnreachable, &format!("the model file cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_read_with_its_digest_and_size() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abc").unwrap();
        let fetched = read(file.path(), 3).unwrap();
        assert_eq!(fetched.digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fetched.bytes, 3);
        assert_eq!(read(file.path(), 2).unwrap_err().reason, FailureReason::ModelTooLarge);
    }

    #[test]
    fn what_is_no_readable_file_is_refused_without_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let missing = read(&folder.path().join("m.onnx"), 9).unwrap_err();
        assert_eq!(missing.reason, FailureReason::SourceNotFound);
        assert!(!missing.message.contains('/'), "{}", missing.message);
        assert_eq!(read(folder.path(), 9).unwrap_err().reason, FailureReason::SourceInvalid);
        assert_eq!(read(Path::new("/dev/zero"), 1 << 21).unwrap_err().reason, FailureReason::ModelTooLarge);
    }
}
