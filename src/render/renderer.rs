//! Versions of the rendering: what lets an operator change how pods look without rolling a single one that is there.
//!
//! A snapshot carries the version that its pods are rendered by, and every version stays here for good. **To change the
//! rendering of pods**: raise [`Renderer::NEWEST`], do the new thing where `snapshot.renderer >= Renderer(n)`, and add a golden
//! file for it. The golden files of a released version never change. What is outside the pod template (the Service, the
//! budget, a Deployment's strategy) restarts nothing and needs no version.

use serde::{Deserialize, Serialize};

/// A version of the rendering. A later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Renderer(u32);

impl Renderer {
    /// That of snapshots which do not say.
    pub const FIRST: Self = Self(1);
    /// Pods mount the digest lock of their revision.
    pub const LOCKED: Self = Self(2);
    /// That of new revisions.
    pub const NEWEST: Self = Self::LOCKED;
    /// Stands for the version after the newest one in tests of upgrades, beyond all that will ever be released. Only an
    /// operator that was told to try it knows it.
    pub const TRIAL: Self = Self(1_000_000);

    /// Snapshots do not mention the first version: those that are stored already cannot be changed.
    #[allow(clippy::trivially_copy_pass_by_ref)] // the signature is serde's
    pub(super) fn is_first(&self) -> bool {
        *self == Self::FIRST
    }
}

impl Default for Renderer {
    fn default() -> Self {
        Self::FIRST
    }
}
