//! Reads: cluster objects from watch caches, and `/stats` of model servers. Never writes.

pub mod index;
pub mod models;
pub mod packed;
pub mod scrape;
pub mod seen;
pub mod stores;
pub mod stuck;
pub mod window;
