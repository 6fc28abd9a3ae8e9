//! A model without its large weights: each is named by its place in the model's file.
//!
//! ONNX Runtime holds a model that it reads several times for a moment: the file's bytes, the tensors made of them, and what
//! operators make of those. Weights that are said to lie in another file it maps, and gives back one by one. So it is given a
//! small model in memory, whose weights are said to lie in the file that it was made from.
//!
//! Only weights of the main graph are left out, and only whole ones that stand in the file as raw bytes. What is checked of a model
//! ([`super::inspect`]) comes before. A model that would not become much smaller has no skeleton.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::protobuf::{self, put, put_number};

/// Messages are given by what their fields hold; the numbers are those of onnx.proto.
const MODEL_GRAPH: u64 = 7;
const GRAPH_INITIALIZER: u64 = 5;
const TENSOR_RAW_DATA: u64 = 9;
const TENSOR_EXTERNAL_DATA: u64 = 13;
const TENSOR_DATA_LOCATION: u64 = 14;
const ENTRY_KEY: u64 = 1;
const ENTRY_VALUE: u64 = 2;

/// Of the model's bytes at most this part is kept; otherwise nothing is gained.
const KEPT: u64 = 2;

/// What ONNX Runtime is given.
pub(super) struct Skeleton {
    /// The model.
    pub model: Vec<u8>,
    /// The folder in which its weights' file is looked for.
    pub folder: String,
    /// That file, without symbolic links.
    pub file: PathBuf,
}

impl Skeleton {
    /// The skeleton of a model that was found to be one. Weights of at least so many bytes are left out. `None`: there is nothing to
    /// gain, or the file cannot be named.
    pub fn of(path: &Path, least: u64) -> Option<Self> {
        // ONNX Runtime wants a file in a folder, and follows no links out of it.
        let path = path.canonicalize().ok()?;
        let folder = path.parent()?.to_str()?.to_owned();
        let file = File::open(&path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut source = Source {
            reader: BufReader::new(file),
            position: 0,
            name: path.file_name()?.to_str()?.to_owned(),
            least,
            kept: length / KEPT,
        };
        Some(Self { model: source.model(length).ok()?, folder, file: path })
    }
}

/// One field of a message, by its places in the file.
struct Field {
    number: u64,
    is_message: bool,
    /// The number itself for a varint.
    value: u64,
    whole: Range<u64>,
    /// What is inside.
    inside: Range<u64>,
}

struct Source {
    reader: BufReader<File>,
    position: u64,
    /// The file's name.
    name: String,
    least: u64,
    /// How much may still be kept.
    kept: u64,
}

impl Source {
    fn model(&mut self, end: u64) -> io::Result<Vec<u8>> {
        let mut model = Vec::new();
        while self.position < end {
            let field = self.next()?;
            if field.number == MODEL_GRAPH && field.is_message {
                put(&mut model, MODEL_GRAPH, &self.graph(field.inside.end)?);
            } else {
                self.copy(&field.whole, &mut model)?;
            }
        }
        Ok(model)
    }

    fn graph(&mut self, end: u64) -> io::Result<Vec<u8>> {
        let mut graph = Vec::new();
        while self.position < end {
            let field = self.next()?;
            let is_large = field.inside.end - field.inside.start >= self.least;
            let reference = if field.number == GRAPH_INITIALIZER && field.is_message && is_large {
                self.reference(field.inside.end)?
            } else {
                None
            };
            match reference {
                Some(tensor) => {
                    put(&mut graph, GRAPH_INITIALIZER, &tensor);
                    self.go_to(field.whole.end)?;
                }
                None => self.copy(&field.whole, &mut graph)?,
            }
        }
        Ok(graph)
    }

    /// A tensor whose bytes are named by their place; `None` where it has to stay as it is.
    fn reference(&mut self, end: u64) -> io::Result<Option<Vec<u8>>> {
        let (mut tensor, mut raw) = (Vec::new(), None);
        while self.position < end {
            let field = self.next()?;
            match field.number {
                TENSOR_RAW_DATA if raw.is_none() && field.is_message => {
                    self.go_to(field.inside.end)?;
                    raw = Some(field.inside);
                }
                TENSOR_DATA_LOCATION if field.value == 0 => {}
                TENSOR_RAW_DATA | TENSOR_EXTERNAL_DATA | TENSOR_DATA_LOCATION => return Ok(None),
                _ => self.copy(&field.whole, &mut tensor)?,
            }
        }
        let Some(raw) = raw.filter(|raw| raw.end - raw.start >= self.least) else { return Ok(None) };
        let (offset, length) = (raw.start.to_string(), (raw.end - raw.start).to_string());
        for (key, value) in [("location", &self.name), ("offset", &offset), ("length", &length)] {
            let mut entry = Vec::new();
            put(&mut entry, ENTRY_KEY, key.as_bytes());
            put(&mut entry, ENTRY_VALUE, value.as_bytes());
            put(&mut tensor, TENSOR_EXTERNAL_DATA, &entry);
        }
        put_number(&mut tensor, TENSOR_DATA_LOCATION, 1);
        Ok(Some(tensor))
    }

    /// Reads the next field up to where its inside begins.
    fn next(&mut self) -> io::Result<Field> {
        let start = self.position;
        let tag = self.varint()?;
        let mut value = 0;
        let mut from = self.position;
        let length = match tag & 7 {
            0 => {
                value = self.varint()?;
                self.position - from
            }
            1 => 8,
            2 => {
                let length = self.varint()?;
                from = self.position;
                length
            }
            5 => 4,
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        let end = from.checked_add(length).ok_or(ErrorKind::InvalidData)?;
        Ok(Field { number: tag >> 3, is_message: tag & 7 == 2, value, whole: start..end, inside: from..end })
    }

    fn varint(&mut self) -> io::Result<u64> {
        let (value, length) = protobuf::varint(&mut self.reader)?;
        self.position += length;
        Ok(value)
    }

    /// Keeps a part of the file, and goes to its end.
    fn copy(&mut self, part: &Range<u64>, to: &mut Vec<u8>) -> io::Result<()> {
        let length = part.end - part.start;
        self.kept = self.kept.checked_sub(length).ok_or(ErrorKind::FileTooLarge)?;
        self.go_to(part.start)?;
        let copied = (&mut self.reader).take(length).read_to_end(to)? as u64;
        self.position = part.end;
        if copied == length { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    fn go_to(&mut self, position: u64) -> io::Result<()> {
        match i64::try_from(i128::from(position) - i128::from(self.position)) {
            Ok(distance) => self.reader.seek_relative(distance)?,
            Err(_) => _ = self.reader.seek(SeekFrom::Start(position))?,
        }
        self.position = position;
        Ok(())
    }
}
