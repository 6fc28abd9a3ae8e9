//! The only writer: server-side apply, prune, status and Events; and who of several processes may write.

pub mod differs;
mod election;
mod events;
pub mod fence;
pub mod lease;
pub mod writer;
