//! What crosses a process boundary in Ortolan, and nothing else.
//!
//! - [`oip`]: the Open Inference Protocol over REST, as clients of a model speak it.
//! - `grpc` (feature of that name): the same protocol over gRPC.
//! - [`stats`]: what a model pod tells the operator (and later the router) about itself, once a second.
//! - [`histogram`]: the latency histogram inside it, which adds up across pods.
//! - [`failure`]: why a model server gave up, left behind for the operator as the container's termination message.
//! - [`ports`]: where a model server listens.
//!
//! No IO and no runtime: only types, their wire form and arithmetic on them.

pub mod failure;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod histogram;
pub mod oip;
pub mod ports;
pub mod stats;
