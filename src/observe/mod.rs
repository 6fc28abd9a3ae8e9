//! Reads: cluster objects from watch caches, and `/stats` of model servers. Never writes.

pub mod fresh;
pub mod index;
pub mod models;
pub mod packed;
mod relist;
pub mod scrape;
pub mod seen;
pub mod stores;
pub mod stuck;
pub mod window;
