//! The Ortolan operator: one `ModelDeployment` becomes inference servers that are scaled from what is observed.
//!
//! Rooms and the direction in which they depend on each other: [`api`] ← the pure rooms ([`scale`], [`rollout`],
//! [`render`], [`status`]) ← [`controller`] → [`observe`] (reads) and [`cluster`] (the only writer).
//! docs/architecture.md is the map.

pub mod api;
pub mod cluster;
pub mod controller;
pub mod metrics;
pub mod observe;
pub mod operations;
pub mod render;
pub mod rollout;
pub mod scale;
pub mod status;
pub mod traces;
