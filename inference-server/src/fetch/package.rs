//! A model and the files beside it in which it keeps data, in one folder.
//!
//! Which files those are, the model says, and a model may be hostile: only plain files below its own folder are taken, no links,
//! and a file with several names neither, since another of its names may be outside.
//!
//! One file has its own digest. Of several it is the digest of what `sha256sum` prints about them, the model's file first and
//! the others in the order of their names.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ortolan_protocol::failure::{Failure, FailureReason};
use sha2::{Digest, Sha256};

use super::file::{self, Content, unreadable};
use super::{DataFiles, Fetched, failure, hex, too_large};
use crate::inside::Inside;

/// The model's file and its companions, and what they hold.
pub(super) struct Package {
    path: PathBuf,
    companions: Vec<Inside>,
    parts: Vec<(PathBuf, Content)>,
}

impl Package {
    /// A model's file without others.
    pub fn of(path: PathBuf, content: Content) -> Self {
        Self { path: path.clone(), companions: Vec::new(), parts: vec![(path, content)] }
    }

    /// Adds a companion. They come in the order of their names.
    pub fn add(&mut self, name: Inside, path: PathBuf, content: Content) {
        self.companions.push(name);
        self.parts.push((path, content));
    }

    /// How many bytes they have together.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, content)| content.bytes).sum()
    }

    /// All together, with their digest.
    pub fn fetched(self) -> Fetched {
        let (digest, bytes) = (self.digest(), self.bytes());
        let Self { path, companions, parts } = self;
        Fetched { path, digest, bytes, companions, parts }
    }

    fn digest(&self) -> String {
        if let [(_, only)] = &self.parts[..] {
            return only.sha256.clone();
        }
        let model = self.path.file_name().unwrap_or_default().to_string_lossy();
        let names = std::iter::once(&*model).chain(self.companions.iter().map(Inside::as_str));
        let mut listing = Sha256::new();
        for (name, (_, content)) in names.zip(&self.parts) {
            listing.update(format!("{}  {name}\n", content.sha256));
        }
        hex(listing)
    }
}

/// Reads a model on the disk: its file, and those beside it that it names and that are there. Those that are not are for the
/// engine to miss.
pub(super) fn read(path: &Path, max_bytes: u64, data_files: DataFiles) -> Result<Fetched, Failure> {
    let mut package = Package::of(path.to_owned(), file::read(path, max_bytes)?);
    let folder = path.parent().unwrap_or(Path::new(""));
    let names = data_files(path);
    if !names.is_empty() && path.is_symlink() {
        return Err(failure(
            FailureReason::SourceInvalid,
            "the model's file is a link, and it keeps data in files beside it, which are not looked for elsewhere: name the file itself",
        ));
    }
    for name in names {
        if !is_there(folder, &name)? {
            continue;
        }
        let place = folder.join(&name);
        let content = file::read(&place, max_bytes - package.bytes()).map_err(|refused| match refused.reason {
            FailureReason::ModelTooLarge => too_large(max_bytes),
            _ => refused,
        })?;
        package.add(name, place, content);
    }
    Ok(package.fetched())
}

/// Whether a companion is there; one that is anything but a plain file is refused.
fn is_there(folder: &Path, name: &Inside) -> Result<bool, Failure> {
    let mut place = folder.to_owned();
    let mut found = None;
    for part in name.parts() {
        place.push(part);
        let metadata = match fs::symlink_metadata(&place) {
            Ok(metadata) => metadata,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(error) => return Err(unreadable(&error)),
        };
        if metadata.is_symlink() {
            return Err(refused(name, "a link, or lies behind one"));
        }
        found = Some(metadata);
    }
    match found {
        Some(metadata) if !metadata.is_file() => Err(refused(name, "not a file")),
        Some(metadata) if metadata.nlink() > 1 => {
            Err(refused(name, "a file with another name elsewhere (a hard link)"))
        }
        found => Ok(found.is_some()),
    }
}

fn refused(name: &Inside, what: &str) -> Failure {
    let name = name.as_str().escape_debug();
    failure(
        FailureReason::SourceInvalid,
        &format!(
            "the model keeps data in '{name}', which is {what}, and only plain files beside the model are read: copy it there"
        ),
    )
}

/// Chooses the model's file among those of a folder or an archive: the only one whose name says so, or `model.onnx`.
/// `what`: the folder or archive, for messages.
pub(super) fn choose<'n>(what: &str, names: &'n [Inside]) -> Result<&'n Inside, Failure> {
    let is_model = |name: &&Inside| name.name().to_ascii_lowercase().ends_with(".onnx");
    let models: Vec<&Inside> = names.iter().filter(is_model).collect();
    let usual: Vec<&Inside> = models.iter().copied().filter(|name| name.name() == Inside::model().as_str()).collect();
    match (&models[..], &usual[..]) {
        ([only], _) | (_, [only]) => Ok(only),
        ([], _) => {
            Err(failure(FailureReason::ModelInvalid, &format!("the {what} holds no .onnx file: {}", instead(names))))
        }
        _ => {
            let listed = listed(models.iter().map(|name| name.as_str()));
            let message = format!(
                "the {what} holds several .onnx files ({listed}), and not one of them is {}: give that name to the one that is meant",
                Inside::model()
            );
            Err(failure(FailureReason::ModelInvalid, &message))
        }
    }
}

/// What there is in place of a model.
fn instead(names: &[Inside]) -> String {
    let holds = |file: &str| names.iter().any(|name| name.name() == file);
    if let Some(pickle) = names.iter().find(|name| is_pickle(name.as_str())) {
        return format!(
            "'{}' is a Python pickle, which is code and is never loaded; convert the model to ONNX",
            pickle.as_str().escape_debug()
        );
    }
    if holds("saved_model.pb") {
        return "it is a TensorFlow SavedModel; convert it to ONNX".to_owned();
    }
    if holds("model.weights.h5") {
        return "it is a Keras model; convert it to ONNX".to_owned();
    }
    match names {
        [] => "there is nothing in it".to_owned(),
        names => format!("there is only {}", listed(names.iter().map(Inside::as_str))),
    }
}

/// Whether a file's name says that it is a Python pickle, or holds one as PyTorch's files do.
pub(super) fn is_pickle(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt"].iter().any(|ending| name.ends_with(ending))
}

fn listed<'n>(names: impl Iterator<Item = &'n str> + Clone) -> String {
    const SHOWN: usize = 5;
    let more = names.clone().count().saturating_sub(SHOWN);
    let shown: Vec<String> = names.take(SHOWN).map(|name| format!("'{}'", name.escape_debug())).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// The files directly in a folder.
pub(super) fn files_of(folder: &Path) -> Result<Vec<Inside>, Failure> {
    const MOST: usize = 10_000;
    let entries = fs::read_dir(folder).map_err(|error| unreadable(&error))?;
    // A link counts: where Kubernetes mounts a ConfigMap, all files are links.
    let files = entries.flatten().take(MOST).filter(|entry| entry.path().is_file());
    let mut names: Vec<_> = files.filter_map(|entry| Inside::parse(entry.file_name().to_str()?)).collect();
    names.sort();
    Ok(names)
}
