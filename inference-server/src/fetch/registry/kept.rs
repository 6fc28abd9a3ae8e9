//! An artifact in the cache folder, for the container that comes after this one: its files in a folder with the digest that it is
//! asked for by, and with them the manifests, which bind the files to that digest. Nothing there has to be believed.

use std::fs;
use std::path::{Path, PathBuf};

use ortolan_protocol::failure::Failure;

use super::super::{Fetched, Wanted, cache, package};
use super::manifest::{Layers, Manifest};
use super::{Resolved, digest_of};

/// A list, and the manifest that it names.
const MOST_MANIFESTS: usize = 2;

/// What an earlier container of this pod fetched, if the manifests are those of the wanted digest, and the files theirs.
pub(super) fn find(wanted: &Wanted<'_>) -> Option<Fetched> {
    let digest = wanted.digest.hex()?;
    let folder = wanted.cache.join(digest);
    let Layers::Files { model: (name, layer), others } = manifest(&folder, digest)?.model().ok()? else { return None };
    let fetched = package::read(&folder.join(name.name()), wanted.max_bytes, wanted.data_files).ok()?;
    let beside = fetched.companions.iter().map(|companion| others.get(&name.beside(companion)));
    let is_bound = std::iter::once(Some(&layer))
        .chain(beside)
        .zip(&fetched.parts)
        .all(|(layer, (_, content))| layer.and_then(|layer| layer.sha256().ok()).as_ref() == Some(&content.sha256));
    is_bound.then(|| Fetched { digest: digest.to_owned(), ..fetched })
}

/// Gives a model's folder its place, with the manifests in it.
pub(super) fn keep(folder: &Path, fetched: Fetched, resolved: &Resolved, cache: &Path) -> Result<Fetched, Failure> {
    let places: Vec<PathBuf> = (0..resolved.texts.len()).map(|number| folder.join(file_name(number))).collect();
    if places.iter().any(|place| place.exists()) {
        // Somebody calls a file of a model so: it is fetched again next time.
        return cache::keep(folder, fetched, cache);
    }
    for (place, text) in places.iter().zip(&resolved.texts) {
        fs::write(place, text).map_err(|error| cache::not_writable(&error))?;
    }
    cache::keep_folder(folder, fetched, &cache.join(&resolved.digest))
}

/// The manifest with the model that a digest binds.
fn manifest(folder: &Path, digest: &str) -> Option<Manifest> {
    let mut digest = digest.to_owned();
    for number in 0..MOST_MANIFESTS {
        let text = fs::read(folder.join(file_name(number))).ok()?;
        if digest_of(&text) != digest {
            return None;
        }
        let manifest: Manifest = serde_json::from_slice(&text).ok()?;
        if manifest.manifests.is_empty() {
            return Some(manifest);
        }
        digest = manifest.only().ok()?.sha256().ok()?;
    }
    None
}

fn file_name(number: usize) -> String {
    format!(".manifest-{number}.json")
}
