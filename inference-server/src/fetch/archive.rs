//! Models in archives: tar, tar with gzip, and zip, told apart by their bytes.
//!
//! Nothing in an archive is believed. Only plain files and folders are unpacked, below the folder that is given; an archive with
//! anything else (links, devices, paths that lead out, a name twice) is refused as a whole. All that comes out is counted,
//! whatever the archive says about itself. Pickles are left in it.

use std::error::Error as StdError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ortolan_protocol::failure::{Failure, FailureReason};

use super::address::causes;
use super::cache::not_writable;
use super::file::unreadable;
use super::package::is_pickle;
use super::{Fetched, Wanted, blocking, cache, failure, package, too_large};
use crate::inside::Inside;

/// The most entries of an archive.
const MOST_ENTRIES: usize = 10_000;
const BUFFER: usize = 1 << 16;
/// Where a tar says that it is one.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");

/// The kinds of archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tar,
    TarGz,
    Zip,
}

impl Kind {
    /// What a file is, by how it begins; a compressed file that is no tar is none.
    pub fn of(path: &Path) -> Result<Option<Self>, Failure> {
        let mut file = File::open(path).map_err(|error| unreadable(&error))?;
        let head = head(&mut file).map_err(|error| unreadable(&error))?;
        if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            return Ok(Some(Self::Zip));
        }
        if head.starts_with(b"\x1f\x8b") {
            file.seek(SeekFrom::Start(0)).map_err(|error| unreadable(&error))?;
            // Damage is for whoever reads all of it.
            let inflated = self::head(&mut MultiGzDecoder::new(file)).unwrap_or_default();
            return Ok(is_tar(&inflated).then_some(Self::TarGz));
        }
        Ok(is_tar(&head).then_some(Self::Tar))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tar | Self::TarGz => "tar archive",
            Self::Zip => "zip archive",
        }
    }
}

fn head(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head)?;
    Ok(head)
}

fn is_tar(head: &[u8]) -> bool {
    let (at, magic) = TAR_MAGIC;
    head.get(at..at + magic.len()) == Some(magic)
}

/// Unpacks archives, one over the other, and chooses the model in them. Its digest is that of the files, not the archives'.
/// `folder`: in the cache, for what comes out. `what`: they are together, for messages.
pub(super) async fn fetch(
    archives: Vec<(Kind, PathBuf)>,
    what: &'static str,
    folder: &Path,
    wanted: &Wanted<'_>,
) -> Result<Fetched, Failure> {
    let (files, cache) = (folder.join("unpacked"), wanted.cache.to_owned());
    let (max_bytes, data_files) = (wanted.max_bytes, wanted.data_files);
    blocking(move || {
        let (mut names, mut left) = (Vec::new(), max_bytes);
        for (kind, path) in &archives {
            let unpacked = unpack(*kind, path, &files, left)?;
            left -= unpacked.bytes;
            names.extend(unpacked.names);
        }
        let model = files.join(package::choose(what, &names)?);
        cache::keep(&files, package::read(&model, max_bytes, data_files)?, &cache)
    })
    .await
}

/// What was unpacked.
pub(super) struct Unpacked {
    /// The files in the archive, also those that were left there.
    pub names: Vec<Inside>,
    /// How many bytes came out.
    pub bytes: u64,
}

/// Unpacks an archive into a folder. At most `max_bytes` come out.
pub(super) fn unpack(kind: Kind, archive: &Path, folder: &Path, max_bytes: u64) -> Result<Unpacked, Failure> {
    let file = BufReader::with_capacity(BUFFER, File::open(archive).map_err(|error| unreadable(&error))?);
    let mut target = Target { kind, folder, max_bytes, bytes: 0, names: Vec::new() };
    match kind {
        Kind::Tar => untar(file, &mut target)?,
        Kind::TarGz => untar(MultiGzDecoder::new(file), &mut target)?,
        Kind::Zip => unzip(file, &mut target)?,
    }
    Ok(Unpacked { names: target.names, bytes: target.bytes })
}

fn untar(archive: impl Read, target: &mut Target<'_>) -> Result<(), Failure> {
    // What is left out is inflated, too.
    let capped = Capped { inner: archive, left: target.max_bytes.saturating_add(1 << 20) };
    let mut archive = tar::Archive::new(capped);
    let entries = archive.entries().map_err(|error| target.damaged(&error))?;
    for (number, entry) in entries.enumerate() {
        target.admit(number)?;
        let mut entry = entry.map_err(|error| target.damaged(&error))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        if !kind.is_file() {
            return Err(target.refused(&name, "is neither a file nor a folder"));
        }
        target.take(&name, &mut entry)?;
    }
    Ok(())
}

fn unzip(archive: impl Read + Seek, target: &mut Target<'_>) -> Result<(), Failure> {
    let damaged = |target: &Target<'_>, error| target.damaged(&io::Error::from(error));
    let mut archive = zip::ZipArchive::new(archive).map_err(|error| damaged(target, error))?;
    for number in 0..archive.len() {
        target.admit(number)?;
        let mut entry = archive.by_index(number).map_err(|error| damaged(target, error))?;
        let name = entry.name().map_err(|error| damaged(target, error))?.into_owned();
        if entry.is_dir() {
            continue;
        }
        if !entry.is_file() || entry.is_symlink() {
            return Err(target.refused(&name, "is neither a file nor a folder"));
        }
        target.take(&name, &mut entry)?;
    }
    Ok(())
}

/// Where an archive's files go, and what has come out so far.
struct Target<'a> {
    kind: Kind,
    folder: &'a Path,
    max_bytes: u64,
    bytes: u64,
    names: Vec<Inside>,
}

impl Target<'_> {
    fn admit(&self, number: usize) -> Result<(), Failure> {
        if number < MOST_ENTRIES {
            return Ok(());
        }
        Err(self.invalid(&format!("it has more than {MOST_ENTRIES} entries")))
    }

    fn take(&mut self, name: &str, content: &mut impl Read) -> Result<(), Failure> {
        let inside = Inside::parse(name).ok_or_else(|| self.refused(name, "leads out of it, or is no plain name"))?;
        if is_pickle(inside.as_str()) {
            self.names.push(inside);
            return Ok(());
        }
        let path = self.folder.join(&inside);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| self.not_created(name, &error))?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| self.not_created(name, &error))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = content.read(&mut buffer).map_err(|error| self.damaged(&error))?;
            if read == 0 {
                break;
            }
            self.bytes += read as u64;
            if self.bytes > self.max_bytes {
                return Err(too_large(self.max_bytes));
            }
            file.write_all(&buffer[..read]).map_err(|error| not_writable(&error))?;
        }
        self.names.push(inside);
        Ok(())
    }

    fn not_created(&self, name: &str, error: &io::Error) -> Failure {
        match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
                self.refused(name, "is there twice")
            }
            _ => not_writable(error),
        }
    }

    fn refused(&self, name: &str, what: &str) -> Failure {
        self.invalid(&format!("its entry '{}' {what}", name.escape_debug()))
    }

    fn damaged(&self, error: &io::Error) -> Failure {
        if is_too_large(error) {
            return too_large(self.max_bytes);
        }
        self.invalid("it is damaged or cut off, or packed in a way that is not read (deflate is)")
    }

    fn invalid(&self, what: &str) -> Failure {
        let kind = self.kind.name();
        failure(FailureReason::ModelInvalid, &format!("the model is in a {kind} that cannot be used: {what}"))
    }
}

/// Ends in an error where more comes than may.
struct Capped<R> {
    inner: R,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("more comes out than may")]
struct TooLarge;

/// The reader of archives wraps errors in its own.
fn is_too_large(error: &io::Error) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>()?.get_ref())
        .any(<dyn StdError + Send + Sync>::is::<TooLarge>)
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| io::Error::other(TooLarge))?;
        Ok(read)
    }
}
