//! The cache folder: what is being fetched, what was fetched by the name of its digest, and what becomes of that when nobody
//! needs it any more. A model in one file is a file there, one in several files a folder.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};
use tempfile::TempDir;
use tracing::{info, warn};

use super::{Fetched, Wanted, is_sha256, package};

/// How the names of files begin that are still being written.
pub(super) const PART: &str = ".part-";

/// Makes the folder, or one in it.
pub(super) fn create(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| not_writable(&error))
}

/// A new folder in it, for what is being fetched; removed when it is dropped.
pub(super) fn part(cache: &Path) -> Result<TempDir, Failure> {
    tempfile::Builder::new().prefix(PART).tempdir_in(cache).map_err(|error| not_writable(&error))
}

/// What an earlier container of this pod fetched, if it still has the wanted digest.
pub(super) fn find(wanted: &Wanted<'_>) -> Option<Fetched> {
    let sha256 = wanted.digest.hex()?;
    let folder = wanted.cache.join(sha256);
    let path = match package::files_of(&folder) {
        Ok(names) => folder.join(package::choose("folder", &names).ok()?),
        Err(_) => wanted.cache.join(file_name(sha256)),
    };
    let fetched = package::read(&path, wanted.max_bytes, wanted.data_files).ok()?;
    (fetched.digest == sha256).then_some(fetched)
}

/// Gives a model in `folder` its place. Nothing in the cache has a name that it does not deserve.
pub(super) fn keep(folder: &Path, mut fetched: Fetched, cache: &Path) -> Result<Fetched, Failure> {
    if !fetched.companions.is_empty() {
        let place = cache.join(&fetched.digest);
        return keep_folder(folder, fetched, &place);
    }
    let place = cache.join(file_name(&fetched.digest));
    let moved = fs::rename(&fetched.path, &place).and_then(|()| fetched.move_to(|_| Some(place.clone())));
    moved.map_err(|error| not_writable(&error))?;
    Ok(fetched)
}

/// Gives the folder of a model its place.
pub(super) fn keep_folder(folder: &Path, mut fetched: Fetched, place: &Path) -> Result<Fetched, Failure> {
    // One that is there was not what its name says, or would have been found.
    let _ = fs::remove_dir_all(place);
    let moved = fs::rename(folder, place)
        .and_then(|()| fetched.move_to(|path| Some(place.join(path.strip_prefix(folder).ok()?))));
    moved.map_err(|error| not_writable(&error))?;
    Ok(fetched)
}

/// The name of a model's file.
pub(super) fn file_name(digest: &str) -> String {
    format!("{digest}.onnx")
}

/// Removes what earlier servers left in a folder that is used by one after the other: parts of downloads that were
/// killed, and models other than the wanted one. A container's restart keeps the folder, and it has a limit.
pub fn sweep(cache: &Path, wanted: Option<&str>) {
    // A folder that does not exist yet has nothing in it; one that cannot be read fails when it is needed.
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_ours(name) && (wanted.is_none() || digest_of(name) != wanted))
        else {
            continue;
        };
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_file() => fs::remove_file(entry.path()),
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            _ => continue,
        };
        match removed {
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
    name.starts_with(PART) || digest_of(name).is_some()
}

/// The digest that a name in the cache is made of.
fn digest_of(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".onnx").unwrap_or(name);
    is_sha256(stem).then_some(stem)
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
        let foreign = ["model.onnx", "part-1", ".partial", &format!("{}.onnx", "A".repeat(64)), "folder"];
        let leftovers = [".part-x1Y2z3".to_owned(), file_name(&other), ".part-folder".to_owned(), other.clone()];
        let place = |name: &str| folder.path().join(name);
        for name in foreign.into_iter().chain(leftovers.iter().map(String::as_str)).chain([&file_name(&wanted)[..]]) {
            if name.contains('.') && !name.contains("folder") {
                fs::write(place(name), "x").unwrap();
            } else {
                fs::create_dir(place(name)).unwrap();
                fs::write(place(name).join("model.onnx"), "x").unwrap();
            }
        }
        sweep(folder.path(), Some(&wanted));
        assert!(leftovers.iter().all(|name| !place(name).exists()));
        assert!(foreign.iter().all(|name| place(name).exists()));
        assert!(place(&file_name(&wanted)).exists());
        sweep(folder.path(), None);
        assert!(!place(&file_name(&wanted)).exists(), "without a digest it cannot be found again");
        sweep(&place("nowhere"), None);
    }
}
