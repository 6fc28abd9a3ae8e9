//! The faults that are tried, one file for each kind.

pub mod disturbed;
pub mod rest;
pub mod stale;
pub mod steps;
