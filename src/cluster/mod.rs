//! The only writer: server-side apply, prune, status and Events; and who of several processes may write.
//! Around every client: how long answers are waited for, and how often watches are begun.

pub mod differs;
mod election;
mod ending;
mod events;
pub mod fence;
pub mod lease;
pub mod pace;
pub mod patience;
pub mod writer;
