//! The names of files in the cache folder, and what becomes of those that nobody needs any more.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};
use tracing::{info, warn};

/// How the names of files begin that are still being written.
pub(super) const PART: &str = ".part-";

/// The name of a model's file.
pub(super) fn file_name(digest: &str) -> String {
    format!("{digest}.onnx")
}

/// Removes what earlier servers left in a folder that is used by one after the other: parts of downloads that were
/// killed, and models other than the wanted one. A container's restart keeps the folder, and it has a limit.
pub fn sweep(cache: &Path, wanted: Option<&str>) {
    // A folder that does not exist yet has nothing in it; one that cannot be read fails when it is needed.
    let Ok(entries) = fs::read_dir(cache) else { return };
    let wanted = wanted.map(file_name);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_ours(name) && Some(*name) != wanted.as_deref()) else {
            continue;
        };
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => info!(name, "removed from the cache folder: an earlier server left it"),
            Err(error) => warn!(name, %error, "an earlier server's file cannot be removed from the cache folder"),
        }
    }
}

/// What keeps a model from being written to the cache folder. Not the error's own text: it may hold the path.
pub(super) fn not_writable(error: &io::Error) -> Failure {
    let (reason, what) = match error.kind() {
        ErrorKind::ReadOnlyFilesystem => (FailureReason::VolumeReadOnly, "is mounted read-only".to_owned()),
        ErrorKind::PermissionDenied => {
            (FailureReason::VolumeReadOnly, "may not be written to by this server's user".to_owned())
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            (FailureReason::VolumeFull, "has no room for the model".to_owned())
        }
        kind => (FailureReason::Internal, format!("cannot be written to: {kind}")),
    };
    super::failure(reason, &format!("the volume for fetched models (cache) {what}"))
}

fn is_ours(name: &str) -> bool {
    let is_digest = |stem: &str| stem.len() == 64 && stem.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    name.starts_with(PART) || name.strip_suffix(".onnx").is_some_and(is_digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_written_to_says_why_without_its_path() {
        for (code, reason) in [
            (libc::EROFS, FailureReason::VolumeReadOnly),
            (libc::EACCES, FailureReason::VolumeReadOnly),
            (libc::ENOSPC, FailureReason::VolumeFull),
            (libc::EDQUOT, FailureReason::VolumeFull),
            (libc::EIO, FailureReason::Internal),
        ] {
            assert_eq!(not_writable(&io::Error::from_raw_os_error(code)).reason, reason);
        }
        let error = tempfile::Builder::new().tempfile_in("/nowhere").unwrap_err();
        assert!(!not_writable(&error).message.contains("nowhere"));
    }

    #[test]
    fn only_files_that_servers_write_and_that_are_not_wanted_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let [wanted, other] = ["a".repeat(64), "0".repeat(64)];
        let foreign = ["model.onnx", "part-1", ".partial", &format!("{}.onnx", "A".repeat(64)), &other[..]];
        let leftovers = [".part-x1Y2z3".to_owned(), file_name(&other)];
        let place = |name: &str| folder.path().join(name);
        for name in foreign.into_iter().chain(leftovers.iter().map(String::as_str)).chain([&file_name(&wanted)[..]]) {
            fs::write(place(name), "x").unwrap();
        }
        fs::create_dir(place(".part-folder")).unwrap();
        sweep(folder.path(), Some(&wanted));
        assert!(leftovers.iter().all(|name| !place(name).exists()));
        assert!(foreign.iter().all(|name| place(name).exists()));
        assert!(place(".part-folder").exists() && place(&file_name(&wanted)).exists());
        sweep(folder.path(), None);
        assert!(!place(&file_name(&wanted)).exists(), "without a digest it cannot be found again");
        sweep(&place("nowhere"), None);
    }
}
