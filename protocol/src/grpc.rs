//! The Open Inference Protocol's messages and service over gRPC, generated from `proto/inference.proto`.
//!
//! The generated code is committed, so that a build needs no `protoc`; `tests/generated.rs` fails when the two differ
//! and says how to generate anew.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)] // generated

include!("generated/inference.rs");
