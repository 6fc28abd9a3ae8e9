//! Ortolan's inference server: one ONNX model behind the Open Inference Protocol.
//!
//! A request's way: [`http`] or [`grpc`] parse it with the checks of [`request`], the [`batch`]er joins it with others,
//! the [`engine`] runs the batch, and the same protocol writes the answer. Around that: [`fetch`] gets the model's bytes,
//! [`load`] makes them answer, [`lifecycle`] starts and stops it all, [`ops`] tells how it goes, and [`telemetry`] how single
//! requests went.
//!
//! Deliberately not here: more than one model, loading on request, and anything that a client could use to make the server
//! read or run something else.

pub mod access;
pub mod arguments;
mod around;
pub mod autotune;
pub mod batch;
pub mod body;
mod cgroup;
pub mod classify;
pub mod client_limit;
pub mod config;
pub mod confine;
pub mod cpu;
pub mod describe;
pub mod engine;
pub mod error;
pub mod fetch;
mod follow;
pub mod grpc;
pub mod healthcheck;
pub mod http;
pub mod inside;
pub mod last_words;
pub mod lifecycle;
pub mod listen;
pub mod load;
pub mod memory;
pub mod metrics;
pub mod ops;
pub mod request;
pub mod response_cache;
pub mod serving;
pub mod stats;
pub mod telemetry;
pub mod tensor;
pub mod tls;
pub mod warm_up;
pub mod wire;
