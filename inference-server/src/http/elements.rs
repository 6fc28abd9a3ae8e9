//! The elements of an input, out of JSON.
//!
//! They are read straight into the bytes that the engine takes; no tree is built. Data may be flat, or nested exactly as
//! the shape says.

use std::fmt;

use bytes::Bytes;
use ortolan_protocol::oip::Datatype;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

use crate::error::Error;
use crate::request::Slot;
use crate::tensor::{Data, display_shape};
use crate::wire::check_count;

/// Reads a `data` array.
pub(super) fn from_json(slot: &Slot<'_>, json: &str) -> Result<Data, Error> {
    match slot.datatype {
        Datatype::Bool => read::<bool>(slot, json).map(fixed),
        Datatype::Uint8 => read::<u8>(slot, json).map(fixed),
        Datatype::Uint16 => read::<u16>(slot, json).map(fixed),
        Datatype::Uint32 => read::<u32>(slot, json).map(fixed),
        Datatype::Uint64 => read::<u64>(slot, json).map(fixed),
        Datatype::Int8 => read::<i8>(slot, json).map(fixed),
        Datatype::Int16 => read::<i16>(slot, json).map(fixed),
        Datatype::Int32 => read::<i32>(slot, json).map(fixed),
        Datatype::Int64 => read::<i64>(slot, json).map(fixed),
        Datatype::Fp32 => read::<f32>(slot, json).map(fixed),
        Datatype::Fp64 => read::<f64>(slot, json).map(fixed),
        Datatype::Bytes => read::<String>(slot, json).map(Data::Strings),
        Datatype::Fp16 | Datatype::Bf16 => Err(Error::invalid(format!(
            "input '{}' is {}, which JSON cannot hold; send it in binary",
            slot.name, slot.datatype
        ))),
    }
}

fn fixed(bytes: Vec<u8>) -> Data {
    Data::Fixed(Bytes::from(bytes))
}

fn read<T: Element>(slot: &Slot<'_>, json: &str) -> Result<T::Sink, Error> {
    // What the shape claims is believed only as far as the text can hold it: an element takes two characters.
    let room = slot.elements.min(json.len() / 2 + 1);
    if let Some(sink) = flat::<T>(slot.elements, json, room) {
        return Ok(sink);
    }
    let mut reader = Reader::<T> { slot, sink: T::sink(room), found: 0, is_nested: None };
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let outcome = Level { reader: &mut reader, depth: 0 }.deserialize(&mut deserializer);
    outcome.map_err(|error| {
        let message = error.to_string();
        // The position counts from the beginning of the data, which nobody can find.
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        Error::invalid(format!("input '{}': {message}", slot.name))
    })?;
    check_count(slot, reader.found)?;
    Ok(reader.sink)
}

/// The numbers of a flat array of as many as the shape takes: what most clients send, read in half the time. `None` for
/// everything else, right or wrong. The text is known to be JSON.
fn flat<T: Element>(elements: usize, json: &str, room: usize) -> Option<T::Sink> {
    let mut rest = json.as_bytes().trim_ascii().strip_prefix(b"[")?;
    let mut sink = T::sink(room);
    for place in 1..=elements {
        // Where there are no digits at all, zero is what is found in nothing.
        let text = rest.trim_ascii_start();
        let (number, length) = T::first_number(text).filter(|(_, length)| *length > 0)?;
        T::push(number, &mut sink);
        let (&after, others) = text.get(length..)?.trim_ascii_start().split_first()?;
        match after {
            b',' if place < elements => rest = others,
            b']' if place == elements => return Some(sink),
            _ => return None,
        }
    }
    None
}

/// What has been read of an input so far.
struct Reader<'s, T: Element> {
    slot: &'s Slot<'s>,
    sink: T::Sink,
    found: usize,
    /// Whether the first element was an array; known once it was seen.
    is_nested: Option<bool>,
}

/// A value at some depth: 0 is the data itself, which must be an array.
struct Level<'r, 's, T: Element> {
    reader: &'r mut Reader<'s, T>,
    depth: usize,
}

impl<T: Element> Level<'_, '_, T> {
    fn element<E: serde::de::Error>(self, element: Option<T>, text: impl fmt::Display) -> Result<(), E> {
        let reader = self.reader;
        let rank = reader.slot.shape.len();
        let is_nested = *reader.is_nested.get_or_insert(self.depth > 1);
        if self.depth == 0 || is_nested != (self.depth > 1) || (is_nested && self.depth != rank) {
            return Err(E::custom(misnested(&reader.slot.shape)));
        }
        if reader.found == reader.slot.elements {
            return Err(E::custom(format!(
                "there are more elements than shape {} takes",
                display_shape(&reader.slot.shape)
            )));
        }
        let element = element.ok_or_else(|| E::custom(format!("{text} is not {}", T::EXPECTED)))?;
        T::push(element, &mut reader.sink);
        reader.found += 1;
        Ok(())
    }
}

impl<'de, T: Element> DeserializeSeed<'de> for Level<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Element> Visitor<'de> for Level<'_, '_, T> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.depth == 0 { formatter.write_str("an array") } else { formatter.write_str(T::EXPECTED) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let (reader, depth) = (self.reader, self.depth + 1);
        let shape = &reader.slot.shape;
        if depth > shape.len().max(1) {
            return Err(A::Error::custom(misnested(shape)));
        }
        let mut length = 0;
        while sequence.next_element_seed(Level { reader: &mut *reader, depth })?.is_some() {
            length += 1;
        }
        let is_nested = if length == 0 { depth > 1 } else { reader.is_nested.unwrap_or(depth > 1) };
        match shape.get(depth - 1) {
            Some(expected) if is_nested && length != *expected => Err(A::Error::custom(misnested(shape))),
            _ => Ok(()),
        }
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.element(T::from_bool(value), value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.element(T::from_u64(value), value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.element(T::from_i64(value), value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.element(T::from_f64(value), value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.element(T::from_str(value), "a string")
    }
}

fn misnested(shape: &[usize]) -> String {
    format!("data must be flat, or nested exactly as the shape says: {}", display_shape(shape))
}

/// An element that JSON can hold.
trait Element: Sized {
    /// Where elements of this type are collected.
    type Sink;
    /// What it is, for messages.
    const EXPECTED: &'static str;

    fn sink(room: usize) -> Self::Sink;

    fn push(self, sink: &mut Self::Sink);

    /// The number of JSON that a text begins with, where it is one that this type can hold, and its length.
    fn first_number(_: &[u8]) -> Option<(Self, usize)> {
        None
    }

    fn from_bool(_: bool) -> Option<Self> {
        None
    }

    fn from_u64(_: u64) -> Option<Self> {
        None
    }

    fn from_i64(_: i64) -> Option<Self> {
        None
    }

    fn from_f64(_: f64) -> Option<Self> {
        None
    }

    fn from_str(_: &str) -> Option<Self> {
        None
    }
}

macro_rules! little_endian {
    ($type:ty) => {
        type Sink = Vec<u8>;

        fn sink(room: usize) -> Vec<u8> {
            Vec::with_capacity(room.saturating_mul(size_of::<$type>()))
        }

        fn push(self, sink: &mut Vec<u8>) {
            sink.extend_from_slice(&self.to_le_bytes());
        }
    };
}

macro_rules! integers {
    ($($type:ty: $expected:literal),*) => {$(
        impl Element for $type {
            const EXPECTED: &'static str = $expected;

            little_endian!($type);

            fn first_number(text: &[u8]) -> Option<(Self, usize)> {
                lexical_core::parse_partial(text).ok()
            }

            fn from_u64(value: u64) -> Option<Self> {
                value.try_into().ok()
            }

            fn from_i64(value: i64) -> Option<Self> {
                value.try_into().ok()
            }
        }
    )*};
}

integers! {
    u8: "an integer from 0 to 255",
    u16: "an integer from 0 to 65535",
    u32: "an integer from 0 to 4294967295",
    u64: "an integer from 0 to 18446744073709551615",
    i8: "an integer from -128 to 127",
    i16: "an integer from -32768 to 32767",
    i32: "an integer from -2147483648 to 2147483647",
    i64: "an integer from -9223372036854775808 to 9223372036854775807"
}

macro_rules! floats {
    ($($type:ty: $expected:literal),*) => {$(
        #[allow(clippy::cast_possible_truncation, clippy::cast_lossless)] // rounding is what floats do; the range is checked
        impl Element for $type {
            const EXPECTED: &'static str = $expected;

            little_endian!($type);

            fn first_number(text: &[u8]) -> Option<(Self, usize)> {
                lexical_core::parse_partial(text).ok().filter(|(value, _): &(Self, _)| value.is_finite())
            }

            fn from_u64(value: u64) -> Option<Self> {
                Some(value as Self)
            }

            fn from_i64(value: i64) -> Option<Self> {
                Some(value as Self)
            }

            fn from_f64(value: f64) -> Option<Self> {
                let value = value as Self;
                value.is_finite().then_some(value)
            }
        }
    )*};
}

floats! { f32: "a number that FP32 can hold", f64: "a number that FP64 can hold" }

impl Element for bool {
    type Sink = Vec<u8>;

    const EXPECTED: &'static str = "true or false";

    fn sink(room: usize) -> Vec<u8> {
        Vec::with_capacity(room)
    }

    fn push(self, sink: &mut Vec<u8>) {
        sink.push(u8::from(self));
    }

    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl Element for String {
    type Sink = Vec<Self>;

    const EXPECTED: &'static str = "a string";

    fn sink(room: usize) -> Vec<Self> {
        Vec::with_capacity(room)
    }

    fn push(self, sink: &mut Vec<Self>) {
        sink.push(self);
    }

    fn from_str(value: &str) -> Option<Self> {
        Some(value.to_owned())
    }
}

/// Whether elements of a type can stand in JSON.
pub(super) fn fits_json(datatype: Datatype) -> bool {
    !matches!(datatype, Datatype::Fp16 | Datatype::Bf16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    use super::*;

    /// Numbers as JSON has them, some of which do not fit some types.
    fn number() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<f32>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| format!("{value:e}")),
            any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| format!("{value:?}")),
            any::<i64>().prop_map(|value| value.to_string()),
            any::<u64>().prop_map(|value| value.to_string()),
            any::<i8>().prop_map(|value| value.to_string()),
            prop::sample::select(vec!["-0.0", "0.5E+2", "1e-400", "1.0", "1e400", "null", "[1]", "\"1\"", "true"])
                .prop_map(str::to_owned),
        ]
    }

    fn array() -> impl Strategy<Value = (String, usize)> {
        let space = prop::sample::select(vec!["", " ", "\n\t ", "\r"]);
        prop::collection::vec((space.clone(), number(), space), 0..5).prop_map(|numbers| {
            let count = numbers.len();
            let texts: Vec<_> =
                numbers.into_iter().map(|(before, number, after)| before.to_owned() + &number + after).collect();
            (format!("[{}]", texts.join(",")), count)
        })
    }

    /// What is read quickly is what `serde_json` reads.
    fn check<T: Element<Sink = Vec<u8>> + DeserializeOwned>(json: &str, count: usize) {
        let read = serde_json::from_str::<Vec<T>>(json).ok().map(|numbers| {
            let mut sink = T::sink(count);
            for number in numbers {
                number.push(&mut sink);
            }
            sink
        });
        let quick = flat::<T>(count, json, count);
        if count > 0 {
            assert_eq!(quick, read, "{json}");
        }
        assert_eq!(flat::<T>(count + 1, json, count), None, "too few: {json}");
        assert_eq!(count.checked_sub(1).and_then(|fewer| flat::<T>(fewer, json, count)), None, "too many: {json}");
    }

    proptest! {
        #[test]
        fn numbers_are_read_quickly_as_serde_json_reads_them((json, count) in array()) {
            check::<u8>(&json, count);
            check::<i8>(&json, count);
            check::<u64>(&json, count);
            check::<i64>(&json, count);
            check::<f64>(&json, count);
        }
    }
}
