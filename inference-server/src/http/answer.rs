//! Writes the answer to an inference request: JSON, and behind it the outputs that were asked for in binary.

use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ortolan_protocol::oip::{self, Datatype};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::elements::fits_json;
use crate::error::{Error, ErrorKind};
use crate::tensor::{Data, Tensor};
use crate::wire;

/// Who answers what.
pub(super) struct Head<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub id: Option<&'a str>,
}

/// Which outputs are wanted in binary.
pub(super) struct Form {
    /// For outputs that were not named.
    pub default_binary: bool,
    /// For those that were, in their order.
    pub binary: Vec<bool>,
}

pub(super) fn write<'m>(
    head: &Head<'_>,
    outputs: impl Iterator<Item = (&'m str, Tensor)>,
    form: &Form,
) -> Result<Response, Error> {
    let mut tail: Vec<Bytes> = Vec::new();
    let mut written = Vec::new();
    for (position, (name, tensor)) in outputs.enumerate() {
        let is_binary = form.binary.get(position).copied().unwrap_or(form.default_binary);
        if !is_binary && !fits_json(tensor.datatype) {
            return Err(Error::invalid(format!(
                "output '{name}' is {}, which JSON cannot hold; ask for it in binary (binary_data: true)",
                tensor.datatype
            )));
        }
        let mut output = Output { name, tensor, binary_size: None };
        if is_binary {
            let bytes = wire::to_binary(std::mem::replace(&mut output.tensor.data, Data::Fixed(Bytes::new())))?;
            output.binary_size = Some(bytes.len());
            tail.push(bytes);
        }
        written.push(output);
    }
    let tail_size = tail.iter().map(Bytes::len).sum::<usize>();
    let mut body = Vec::with_capacity(256 + tail_size + written.iter().map(Output::expected_size).sum::<usize>());
    serde_json::to_writer(&mut body, &Answer { head, outputs: &written })
        .map_err(|error| Error::new(ErrorKind::Internal, format!("the answer cannot be written: {error}")))?;
    if tail.is_empty() {
        return Ok((super::content("application/json"), body).into_response());
    }
    let length = [(HeaderName::from_static(oip::HEADER_LENGTH), body.len().to_string())];
    for bytes in tail {
        body.extend_from_slice(&bytes);
    }
    Ok((super::content("application/octet-stream"), length, body).into_response())
}

struct Answer<'a> {
    head: &'a Head<'a>,
    outputs: &'a [Output<'a>],
}

struct Output<'a> {
    name: &'a str,
    tensor: Tensor,
    binary_size: Option<usize>,
}

impl Output<'_> {
    fn expected_size(&self) -> usize {
        // Numbers take more room in text than in memory.
        128 + 3 * self.tensor.byte_size()
    }
}

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("model_name", self.head.name)?;
        map.serialize_entry("model_version", self.head.version)?;
        if let Some(id) = self.head.id {
            map.serialize_entry("id", id)?;
        }
        map.serialize_entry("outputs", self.outputs)?;
        map.end()
    }
}

impl Serialize for Output<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Parameters {
            binary_data_size: usize,
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", self.name)?;
        map.serialize_entry("datatype", &self.tensor.datatype)?;
        map.serialize_entry("shape", self.tensor.shape.as_slice())?;
        match self.binary_size {
            Some(binary_data_size) => map.serialize_entry("parameters", &Parameters { binary_data_size })?,
            None => map.serialize_entry("data", &Elements(&self.tensor))?,
        }
        map.end()
    }
}

/// Elements as a flat JSON array. What is not a number (and infinity) is `null`: JSON has no word for it.
pub(super) struct Elements<'a>(pub &'a Tensor);

impl Elements<'_> {
    /// The element of a tensor that has only one, without a list.
    pub(super) fn serialize_only<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = match &self.0.data {
            Data::Fixed(bytes) => bytes,
            Data::Strings(strings) => return strings.first().serialize(serializer),
        };
        match self.0.datatype {
            Datatype::Bool => only(serializer, bytes, |[byte]: [u8; 1]| byte != 0),
            Datatype::Uint8 => only(serializer, bytes, u8::from_le_bytes),
            Datatype::Uint16 => only(serializer, bytes, u16::from_le_bytes),
            Datatype::Uint32 => only(serializer, bytes, u32::from_le_bytes),
            Datatype::Uint64 => only(serializer, bytes, u64::from_le_bytes),
            Datatype::Int8 => only(serializer, bytes, i8::from_le_bytes),
            Datatype::Int16 => only(serializer, bytes, i16::from_le_bytes),
            Datatype::Int32 => only(serializer, bytes, i32::from_le_bytes),
            Datatype::Int64 => only(serializer, bytes, i64::from_le_bytes),
            Datatype::Fp32 => only(serializer, bytes, f32::from_le_bytes),
            Datatype::Fp64 => only(serializer, bytes, f64::from_le_bytes),
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => Err(cannot_hold()),
        }
    }
}

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = match &self.0.data {
            Data::Fixed(bytes) => bytes,
            Data::Strings(strings) => return strings.serialize(serializer),
        };
        match self.0.datatype {
            Datatype::Bool => sequence(serializer, bytes, |[byte]: [u8; 1]| byte != 0),
            Datatype::Uint8 => sequence(serializer, bytes, u8::from_le_bytes),
            Datatype::Uint16 => sequence(serializer, bytes, u16::from_le_bytes),
            Datatype::Uint32 => sequence(serializer, bytes, u32::from_le_bytes),
            Datatype::Uint64 => sequence(serializer, bytes, u64::from_le_bytes),
            Datatype::Int8 => sequence(serializer, bytes, i8::from_le_bytes),
            Datatype::Int16 => sequence(serializer, bytes, i16::from_le_bytes),
            Datatype::Int32 => sequence(serializer, bytes, i32::from_le_bytes),
            Datatype::Int64 => sequence(serializer, bytes, i64::from_le_bytes),
            Datatype::Fp32 => sequence(serializer, bytes, f32::from_le_bytes),
            Datatype::Fp64 => sequence(serializer, bytes, f64::from_le_bytes),
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => Err(cannot_hold()),
        }
    }
}

fn cannot_hold<E: serde::ser::Error>() -> E {
    E::custom("elements that JSON cannot hold")
}

fn only<S: Serializer, const N: usize, T: Serialize>(
    serializer: S,
    bytes: &Bytes,
    element: impl Fn([u8; N]) -> T,
) -> Result<S::Ok, S::Error> {
    bytes.first_chunk::<N>().map(|bytes| element(*bytes)).serialize(serializer)
}

fn sequence<S: Serializer, const N: usize, T: Serialize>(
    serializer: S,
    bytes: &Bytes,
    element: impl Fn([u8; N]) -> T,
) -> Result<S::Ok, S::Error> {
    let (elements, _) = bytes.as_chunks::<N>();
    let mut sequence = serializer.serialize_seq(Some(elements.len()))?;
    for bytes in elements {
        sequence.serialize_element(&element(*bytes))?;
    }
    sequence.end()
}
