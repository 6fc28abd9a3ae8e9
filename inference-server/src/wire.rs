//! What REST and gRPC have in common: tensors in binary, and deadlines.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ortolan_protocol::oip::Datatype;

use crate::error::{Error, ErrorKind};
use crate::request::Slot;
use crate::tensor::{Data, display_shape};

/// Reads elements in little-endian byte order; BYTES elements have a four-byte length before each.
pub fn from_binary(slot: &Slot<'_>, bytes: Bytes) -> Result<Data, Error> {
    let Some(size) = slot.datatype.element_size() else {
        return strings(slot, bytes).map(Data::Strings);
    };
    let expected = slot.elements * size;
    if bytes.len() != expected {
        return Err(Error::invalid(format!(
            "input '{}' of shape {} and type {} takes {expected} bytes, not {}",
            slot.name,
            display_shape(&slot.shape),
            slot.datatype,
            bytes.len()
        )));
    }
    if slot.datatype == Datatype::Bool && bytes.iter().any(|byte| *byte > 1) {
        return Err(Error::invalid(format!("input '{}' has a BOOL element that is neither 0 nor 1", slot.name)));
    }
    Ok(Data::Fixed(bytes))
}

fn strings(slot: &Slot<'_>, mut bytes: Bytes) -> Result<Vec<String>, Error> {
    let mut strings = Vec::with_capacity(slot.elements.min(bytes.len() / 4));
    while !bytes.is_empty() {
        let length = bytes
            .try_get_u32_le()
            .ok()
            .and_then(|length| usize::try_from(length).ok())
            .filter(|length| *length <= bytes.len());
        let length = length
            .ok_or_else(|| Error::invalid(format!("input '{}' ends in the middle of a BYTES element", slot.name)))?;
        strings.push(string(slot, &bytes.split_to(length))?);
    }
    check_count(slot, strings.len())?;
    Ok(strings)
}

/// One BYTES element. ONNX strings are text.
pub fn string(slot: &Slot<'_>, bytes: &[u8]) -> Result<String, Error> {
    std::str::from_utf8(bytes).map(ToOwned::to_owned).map_err(|_| {
        Error::invalid(format!(
            "input '{}' has a BYTES element that is not UTF-8, which the model cannot take",
            slot.name
        ))
    })
}

/// The count must be what the shape says.
pub fn check_count(slot: &Slot<'_>, found: usize) -> Result<(), Error> {
    if found == slot.elements {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "input '{}' of shape {} takes {} elements, not {found}",
        slot.name,
        display_shape(&slot.shape),
        slot.elements
    )))
}

/// Elements in the form that [`from_binary`] reads.
pub fn to_binary(data: Data) -> Result<Bytes, Error> {
    let strings = match data {
        Data::Fixed(bytes) => return Ok(bytes),
        Data::Strings(strings) => strings,
    };
    let mut bytes = BytesMut::with_capacity(strings.iter().map(|string| 4 + string.len()).sum());
    for string in strings {
        let length = u32::try_from(string.len()).map_err(|_| {
            Error::new(ErrorKind::Internal, "an output holds a string that is longer than the protocol allows")
        })?;
        bytes.put_u32_le(length);
        bytes.put_slice(string.as_bytes());
    }
    Ok(bytes.freeze())
}

/// The earliest of the deadlines that a request carries.
pub fn deadline(arrival: Instant, timeouts: impl IntoIterator<Item = Option<Duration>>) -> Option<Instant> {
    // A time so far that it cannot be counted is no deadline.
    timeouts.into_iter().flatten().min().and_then(|timeout| arrival.checked_add(timeout))
}
