//! A look at a model file before the runtime sees it.
//!
//! Two things are checked. That the file is an ONNX model at all: people serve download pages, pickles and zipped
//! folders, and deserve a better answer than "protobuf parsing failed". And which other files it names: an ONNX tensor may
//! lie in another file, which has been a way out of the model's folder in many runtimes. Only files that were fetched with
//! the model and looked at, too, may be named.
//!
//! The file is walked as a protobuf without being read into memory: fields that cannot hold what is looked for,
//! weights above all, are skipped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};

use super::{protobuf, zipmap};
use crate::inside::Inside;

/// Graphs nest inside nodes; ONNX models nest a few levels deep.
const MAX_DEPTH: usize = 64;
const HEAD: usize = 512;
/// The most other files that a model may name; exporters write one, or one for each tensor.
const MOST_FILES: usize = 4096;
/// The tags of the two texts of a `StringStringEntryProto`, and how long they may be here.
const ENTRY_KEY: u64 = 1 << 3 | 2;
const ENTRY_VALUE: u64 = 2 << 3 | 2;
const LONGEST_ENTRY: u64 = 4096;

/// What was found in a model that is good.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Whether there is an operator of that name.
    pub has_zip_map: bool,
}

/// The whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| unreadable(&error))
}

/// The other files that the model in a file names, as far as one may: nothing is known of a file that is no model.
pub(super) fn data_files(path: &Path) -> Vec<Inside> {
    let Ok(walker) = walk(path) else { return Vec::new() };
    let mut files: Vec<_> = walker.external.keys().filter_map(|location| Inside::parse(location)).collect();
    files.sort();
    files.dedup();
    files
}

/// Refuses what is not an ONNX model, and one that names other files than `companions`.
pub(super) fn check(path: &Path, companions: &[Inside]) -> Result<Found, Failure> {
    let walker = walk(path)?;
    for (location, tensor) in &walker.external {
        let file = Inside::parse(location).ok_or_else(|| outside(location, tensor))?;
        if !companions.contains(&file) {
            return Err(missing(&file, tensor));
        }
    }
    Ok(Found { has_zip_map: walker.has_zip_map })
}

fn walk(path: &Path) -> Result<Walker, Failure> {
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let length = file.metadata().map_err(|error| unreadable(&error))?.len();
    let mut head = Vec::with_capacity(HEAD);
    (&file).take(HEAD as u64).read_to_end(&mut head).map_err(|error| unreadable(&error))?;
    if let Some(what) = foreign_format(&head) {
        return Err(invalid(what));
    }
    let reader = BufReader::new(file);
    let mut walker = Walker { reader, position: 0, has_graph: false, has_zip_map: false, external: BTreeMap::new() };
    walker.reader.seek(SeekFrom::Start(0)).map_err(|error| unreadable(&error))?;
    match walker.message(Message::Model, length, 0) {
        Ok(()) if walker.has_graph => Ok(walker),
        Ok(()) => Err(invalid("it holds no graph")),
        Err(Fault::Malformed) => Err(invalid("it is damaged or cut off, or not a protobuf of that kind")),
        Err(Fault::Io(error)) => Err(unreadable(&error)),
    }
}

/// What else the file is, judged by how it begins.
fn foreign_format(head: &[u8]) -> Option<&'static str> {
    let text = head.trim_ascii_start();
    let begins = |prefix: &[u8]| head.starts_with(prefix);
    if head.is_empty() {
        Some("it is empty")
    } else if text.first() == Some(&b'<') {
        Some("it is an HTML or XML page; a download link often leads to a page instead of the file")
    } else if begins(b"version https://git-lfs") {
        Some("it is a Git LFS pointer, not the file it points to")
    } else if begins(b"PK\x03\x04") {
        Some("it is a zip archive (PyTorch and Keras files are); convert the model to ONNX")
    } else if begins(b"\x89HDF\r\n") {
        Some("it is an HDF5 file, as Keras writes them; convert the model to ONNX")
    } else if begins(b"\x1f\x8b") {
        Some("it is compressed with gzip; unpack it first")
    } else if begins(b"\x80") && head.get(1).is_some_and(|version| (2..=5).contains(version)) {
        Some("it is a Python pickle, which is code and is never loaded; convert the model to ONNX")
    } else if head.get(4..8) == Some(b"ORTM") {
        Some("it is in ONNX Runtime's own format (.ort); serve the .onnx file it was made from")
    } else if head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        Some("it starts with text, not a protobuf; expected what onnx.save writes")
    } else {
        None
    }
}

/// The messages of the ONNX format that can lead to a tensor.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    SparseTensor,
    Function,
    TrainingInfo,
    Tensor,
}

impl Message {
    /// What a field of this message holds, if it can lead to a tensor. The numbers are those of onnx.proto.
    fn child(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) | (Self::TrainingInfo, 1 | 2) => Some(Self::Graph),
            (Self::Model, 20) => Some(Self::TrainingInfo),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Graph, 1) | (Self::Function, 7) => Some(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::SparseTensor, 1 | 2) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::SparseTensor),
            (Self::Node, 5) | (Self::Function, 11) => Some(Self::Attribute),
            _ => None,
        }
    }
}

enum Fault {
    Malformed,
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Malformed,
            _ => Self::Io(error),
        }
    }
}

struct Walker {
    reader: BufReader<File>,
    position: u64,
    has_graph: bool,
    has_zip_map: bool,
    /// The files in which tensors lie, as the model names them, each with the first tensor in it.
    external: BTreeMap<String, String>,
}

impl Walker {
    fn message(&mut self, message: Message, end: u64, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Malformed);
        }
        let (mut name, mut is_external, mut location) = (String::new(), false, None);
        while self.position < end {
            let tag = self.varint()?;
            let (field, wire_type) = (tag >> 3, tag & 7);
            let value_end = match wire_type {
                0 => {
                    let value = self.varint()?;
                    // TensorProto.data_location, 1: EXTERNAL
                    is_external |= matches!(message, Message::Tensor) && field == 14 && value == 1;
                    continue;
                }
                1 => self.position + 8,
                2 => {
                    let length = self.varint()?;
                    self.position.checked_add(length).ok_or(Fault::Malformed)?
                }
                5 => self.position + 4,
                _ => return Err(Fault::Malformed),
            };
            if field == 0 || value_end > end {
                return Err(Fault::Malformed);
            }
            match (message, field, message.child(field)) {
                (_, _, Some(child)) if wire_type == 2 => {
                    self.has_graph |= matches!((message, child), (Message::Model, Message::Graph));
                    self.message(child, value_end, depth + 1)?;
                }
                // NodeProto.op_type
                (Message::Node, 4, _) if value_end - self.position == zipmap::OPERATOR.len() as u64 => {
                    self.has_zip_map |= self.text(value_end)?.as_bytes() == zipmap::OPERATOR;
                }
                // TensorProto.external_data and TensorProto.name
                (Message::Tensor, 13, _) => {
                    is_external = true;
                    if let Some(found) = self.location(value_end)? {
                        // Of two, nobody knows which one is read.
                        if location.replace(found).is_some() {
                            return Err(Fault::Malformed);
                        }
                    }
                }
                (Message::Tensor, 8, _) if value_end - self.position < 1024 => name = self.text(value_end)?,
                _ => {}
            }
            self.skip_to(value_end)?;
        }
        if self.position != end {
            return Err(Fault::Malformed);
        }
        if is_external {
            self.external.entry(location.unwrap_or_default()).or_insert(name);
            if self.external.len() > MOST_FILES {
                return Err(Fault::Malformed);
            }
        }
        Ok(())
    }

    /// The value of a `StringStringEntryProto` whose key is `location`.
    fn location(&mut self, end: u64) -> Result<Option<String>, Fault> {
        let (mut key, mut value) = (String::new(), String::new());
        while self.position < end {
            let tag = self.varint()?;
            let length = self.varint()?;
            let text_end = self.position.checked_add(length).ok_or(Fault::Malformed)?;
            if text_end > end || length > LONGEST_ENTRY {
                return Err(Fault::Malformed);
            }
            match tag {
                ENTRY_KEY => key = self.text(text_end)?,
                ENTRY_VALUE => value = self.text(text_end)?,
                _ => return Err(Fault::Malformed),
            }
        }
        Ok((key == "location").then_some(value))
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let (value, length) = protobuf::varint(&mut self.reader)?;
        self.position += length;
        Ok(value)
    }

    fn text(&mut self, end: u64) -> Result<String, Fault> {
        let mut bytes = vec![0; usize::try_from(end - self.position).map_err(|_| Fault::Malformed)?];
        self.reader.read_exact(&mut bytes)?;
        self.position = end;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip_to(&mut self, end: u64) -> Result<(), Fault> {
        let distance = i64::try_from(end - self.position).map_err(|_| Fault::Malformed)?;
        self.reader.seek_relative(distance)?;
        self.position = end;
        Ok(())
    }
}

fn missing(file: &Inside, tensor: &str) -> Failure {
    let (file, tensor) = (file.as_str().escape_debug(), tensor.escape_debug());
    Failure {
        reason: FailureReason::ExternalDataMissing,
        message: format!(
            "the model keeps the tensor '{tensor}' in another file, '{file}', which is not beside it: put the file there, or save the \
             model with its data inside (onnx.save with save_as_external_data=False)"
        ),
    }
}

fn outside(location: &str, tensor: &str) -> Failure {
    let (location, tensor) = (location.escape_debug(), tensor.escape_debug());
    Failure {
        reason: FailureReason::ModelInvalid,
        message: format!(
            "the model keeps the tensor '{tensor}' in '{location}', which is no file below the model's own folder, and nothing else is \
             read: save the model with its data beside it or inside"
        ),
    }
}

fn invalid(what: &str) -> Failure {
    Failure { reason: FailureReason::ModelInvalid, message: format!("the file is not an ONNX model: {what}") }
}

fn unreadable(error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => FailureReason::SourceNotFound,
        io::ErrorKind::PermissionDenied => FailureReason::SourceForbidden,
        _ => FailureReason::Internal,
    };
    Failure { reason, message: format!("the model file cannot be read: {error}") }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn checked(bytes: &[u8]) -> Result<Found, Failure> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        check(file.path(), &[])
    }

    fn model(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)).unwrap()
    }

    #[test]
    fn models_in_one_file_pass() {
        for name in ["mlp.onnx", "types.onnx", "sequence.onnx", "gather.onnx", "zipmap.onnx"] {
            assert_eq!(checked(&model(name)), Ok(Found { has_zip_map: name == "zipmap.onnx" }), "{name}");
        }
    }

    #[test]
    fn files_of_other_kinds_are_refused_with_a_word_that_helps() {
        let cases: [(&[u8], &str); 11] = [
            (b"", "empty"),
            (b"<!DOCTYPE html>", "HTML"),
            (b"  \n<html>", "HTML"),
            (b"hello", "starts with text"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
            (b"PK\x03\x04rest", "zip"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\x80\x04\x95", "pickle"),
            (b"\x18\x00\x00\x00ORTM", ".ort"),
            (b"\xff\xfe\xfd\x00\x01", "damaged"),
        ];
        for (bytes, word) in cases {
            let failure = checked(bytes).unwrap_err();
            assert_eq!(failure.reason, FailureReason::ModelInvalid, "{word}");
            assert!(failure.message.contains(word), "{word}: {}", failure.message);
        }
    }

    #[test]
    fn a_model_that_is_cut_off_anywhere_is_refused_or_has_no_graph() {
        let whole = model("mlp.onnx");
        for length in 1..whole.len() {
            let outcome = checked(&whole[..length]);
            // The graph is followed by the operator sets: without those the walk may still succeed, and the runtime decides.
            assert!(outcome.is_err() || length > whole.len() - 16, "{length} of {} bytes passed", whole.len());
        }
    }

    #[test]
    fn a_tensor_in_another_file_is_refused_wherever_it_hides() {
        for name in ["refused-external.onnx", "refused-external-attribute.onnx"] {
            let failure = checked(&model(name)).unwrap_err();
            assert_eq!(failure.reason, FailureReason::ModelInvalid, "{name}");
            assert!(failure.message.contains("'w'"), "{}", failure.message);
        }
    }

    #[test]
    fn a_model_may_name_only_the_files_that_came_with_it() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/external.onnx");
        let named = data_files(&path);
        assert_eq!(named.iter().map(Inside::as_str).collect::<Vec<_>>(), ["external.bin"]);
        assert_eq!(check(&path, &named), Ok(Found { has_zip_map: false }));
        let failure = check(&path, &[]).unwrap_err();
        assert_eq!(failure.reason, FailureReason::ExternalDataMissing);
        assert!(failure.message.contains("'w' in another file, 'external.bin'"), "{}", failure.message);
        // Every way out that a location could be, in place of the name; of the same length, so that the file stays well-formed.
        let bytes = model("external.onnx");
        for way_out in
            ["/etc/shadow.", "../weights..", "a/../../b.bi", "*/_ORT_MEM_A", "a\\..\\..\\b.bi", "w\u{0}eights.bin"]
        {
            assert_eq!(way_out.len(), "external.bin".len(), "{way_out}");
            let changed = replaced(&bytes, b"external.bin", way_out.as_bytes());
            let failure = checked(&changed).unwrap_err();
            assert_eq!(failure.reason, FailureReason::ModelInvalid, "{way_out}");
            assert!(failure.message.contains("no file below the model's own folder"), "{}", failure.message);
        }
    }

    fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut changed = bytes.to_vec();
        let places: Vec<usize> =
            bytes.windows(from.len()).enumerate().filter(|(_, found)| *found == from).map(|(place, _)| place).collect();
        for place in places {
            changed[place..place + to.len()].copy_from_slice(to);
        }
        changed
    }
}
