//! A model on a local or mounted disk, served from where it lies; an archive is unpacked into the cache folder.

use std::path::{Path, PathBuf};

use ortolan_protocol::failure::{Failure, FailureReason};

use super::archive::{self, Kind};
use super::{Fetched, Wanted, blocking, cache, failure, file, package};

/// Reads a model's file, or the one in a folder, and those that belong to it.
pub(super) async fn fetch(path: &Path, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    let (path, max_bytes, data_files) = (path.to_owned(), wanted.max_bytes, wanted.data_files);
    let (path, kind) = blocking(move || {
        let path = if path.is_dir() { model_in(&path)? } else { path };
        let path = in_real_folder(&path).unwrap_or(path);
        let kind = Kind::of(&path)?;
        Ok((path, kind))
    })
    .await?;
    let Some(kind) = kind else {
        let fetched = blocking(move || package::read(&path, max_bytes, data_files)).await?;
        wanted.found(&fetched.digest)?;
        return Ok(fetched);
    };
    let archive = path.clone();
    let content = blocking(move || file::read(&archive, max_bytes)).await?;
    wanted.found(&content.sha256)?;
    cache::create(wanted.cache)?;
    let folder = cache::part(wanted.cache)?;
    let fetched = archive::fetch(vec![(kind, path.clone())], "archive", folder.path(), wanted).await?;
    if !content.is_in(&path) {
        return Err(failure(FailureReason::DigestMismatch, "the archive with the model changed while it was unpacked"));
    }
    Ok(Fetched { digest: content.sha256, ..fetched })
}

/// The same file without links on the way to it: what lies beside it is looked for by us and by the runtime, in one and the same folder.
fn in_real_folder(path: &Path) -> Option<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(folder.canonicalize().ok()?.join(path.file_name()?))
}

fn model_in(folder: &Path) -> Result<PathBuf, Failure> {
    let names = package::files_of(folder)?;
    Ok(folder.join(package::choose("folder", &names)?))
}
