//! What crosses a process boundary in Ortolan, and nothing else.
//!
//! - [`stats`]: what a model pod tells the operator (and later the router) about itself, once a second.
//! - [`histogram`]: the latency histogram inside it, which adds up across pods.
//! - [`failure`]: why a model server gave up, left behind for the operator as the container's termination message.
//! - [`ports`]: where a model server listens.
//!
//! No IO and no runtime: only types, their wire form and arithmetic on them.

pub mod failure;
pub mod histogram;
pub mod ports;
pub mod stats;
