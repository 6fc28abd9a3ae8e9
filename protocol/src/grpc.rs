//! The Open Inference Protocol's messages and service over gRPC, generated from `proto/inference.proto`.
//!
//! The generated code is committed, so that a build needs no `protoc`; `tests/generated.rs` fails when the two differ
//! and says how to generate anew.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)] // generated

use serde::{Serialize, Serializer};

include!("generated/inference.rs");

/// The service and its messages as protobuf describes itself, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/inference.bin");

fn data_type_name<S: Serializer>(data_type: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    DataType::try_from(*data_type).unwrap_or_default().as_str_name().serialize(serializer)
}

fn kind_name<S: Serializer>(kind: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    model_instance_group::Kind::try_from(*kind).unwrap_or_default().as_str_name().serialize(serializer)
}
