//! The Ortolan operator: one `ModelDeployment` becomes inference servers that are scaled from what is observed.
//!
//! Rooms and the direction in which they depend on each other: [`api`] ← the pure rooms ([`scale`]) .
//! docs/architecture.md is the map.

pub mod api;
pub mod render;
pub mod rollout;
pub mod scale;
pub mod status;
