//! The only writer: server-side apply, prune, status and Events; and who of several processes may write.

pub mod differs;
mod election;
pub mod fence;
pub mod lease;
pub mod writer;
