//! The server from the outside: real models on the real runtime, through the real routers, sources and process.

// Helpers fail by panicking, as the tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod describe;
mod encodings;
mod grpc;
mod identities;
mod instances;
mod keys;
mod load;
mod mapped;
mod objects;
mod process;
mod repeated;
mod rest;
mod sources;
mod stream;
mod tensorflow;
mod wrong;
