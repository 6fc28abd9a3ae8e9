//! A look at a model file before the runtime sees it.
//!
//! Two things are checked. That the file is an ONNX model at all: people serve download pages, pickles and zipped
//! folders, and deserve a better answer than "protobuf parsing failed". And that it is self-contained: an ONNX tensor may
//! name another file to read its numbers from, which has been a way out of the model's folder in many runtimes.
//!
//! The file is walked as a protobuf without being read into memory: fields that cannot hold what is looked for,
//! weights above all, are skipped.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};

use super::zipmap;

/// Graphs nest inside nodes; ONNX models nest a few levels deep.
const MAX_DEPTH: usize = 64;
const HEAD: usize = 512;

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

/// Refuses what is not a self-contained ONNX model.
pub(super) fn check(path: &Path) -> Result<Found, Failure> {
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let length = file.metadata().map_err(|error| unreadable(&error))?.len();
    let mut head = Vec::with_capacity(HEAD);
    (&file).take(HEAD as u64).read_to_end(&mut head).map_err(|error| unreadable(&error))?;
    if let Some(what) = foreign_format(&head) {
        return Err(invalid(what));
    }
    let mut walker = Walker { reader: BufReader::new(file), position: 0, has_graph: false, has_zip_map: false };
    walker.reader.seek(SeekFrom::Start(0)).map_err(|error| unreadable(&error))?;
    match walker.message(Message::Model, length, 0) {
        Ok(()) if walker.has_graph => Ok(Found { has_zip_map: walker.has_zip_map }),
        Ok(()) => Err(invalid("it holds no graph")),
        Err(Fault::External(tensor)) => Err(Failure {
            reason: FailureReason::ExternalDataMissing,
            message: format!(
                "the model keeps the tensor '{tensor}' in another file, which is not there: only models in one file are served. \
                 Save it with its data inside (onnx.save with save_as_external_data=False)"
            ),
        }),
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
    /// A tensor of that name lies in another file.
    External(String),
    Malformed,
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Malformed } else { Self::Io(error) }
    }
}

struct Walker {
    reader: BufReader<File>,
    position: u64,
    has_graph: bool,
    has_zip_map: bool,
}

impl Walker {
    fn message(&mut self, message: Message, end: u64, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Malformed);
        }
        let (mut name, mut is_external) = (String::new(), false);
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
                (Message::Tensor, 13, _) => is_external = true,
                (Message::Tensor, 8, _) if value_end - self.position < 1024 => name = self.text(value_end)?,
                _ => {}
            }
            self.skip_to(value_end)?;
        }
        if self.position != end {
            return Err(Fault::Malformed);
        }
        if is_external { Err(Fault::External(name)) } else { Ok(()) }
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.reader.read_exact(&mut byte)?;
            self.position += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::Malformed)
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
        check(file.path())
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
            assert_eq!(failure.reason, FailureReason::ExternalDataMissing, "{name}");
            assert!(failure.message.contains("'w'"), "{}", failure.message);
        }
    }
}
