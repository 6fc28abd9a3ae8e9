//! The server from the outside: real models on the real runtime, through the real routers, sources and process.

// Helpers fail by panicking, as the tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod confined;
mod describe;
mod encodings;
mod errors;
mod grpc;
mod identities;
mod instances;
mod keys;
mod limits;
mod load;
mod mapped;
mod objects;
mod packages;
mod process;
mod program;
mod registries;
mod repeated;
mod rest;
mod sources;
mod stream;
mod telemetry;
mod tensorflow;
mod wrong;
