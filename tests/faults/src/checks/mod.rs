//! The faults that are tried, one file for each kind.

pub mod disturbed;
pub mod ending;
pub mod rest;
pub mod stale;
pub mod steps;
pub mod taken;
