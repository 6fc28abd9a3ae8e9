//! The numbers and fields that protobuf messages are made of.

use std::io::{self, ErrorKind, Read};

/// Reads a number of variable length; gives it, and how many bytes it took.
pub(super) fn varint(reader: &mut impl Read) -> io::Result<(u64, u64)> {
    let mut value = 0;
    for (shift, length) in (0..64).step_by(7).zip(1..) {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok((value, length));
        }
    }
    Err(ErrorKind::InvalidData.into())
}

/// Writes a field that is a number.
pub(super) fn put_number(message: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(message, field << 3);
    put_varint(message, value);
}

/// Writes a field that is a text, bytes or a message.
pub(super) fn put(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    put_varint(message, field << 3 | 2);
    put_varint(message, value.len() as u64);
    message.extend_from_slice(value);
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    message.push(value.to_le_bytes()[0]);
}
