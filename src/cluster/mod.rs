//! The only writer: server-side apply, prune, status and Events.

pub mod differs;
pub mod writer;
