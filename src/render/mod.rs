//! One pure file per child object: `(model, revision, …) → object`, byte-identical for equal input.
//!
//! A revision is rendered from its [`Snapshot`], never from `spec` or from the operator's present settings, so that a
//! revision that lives on is rendered the same by a newer operator and its pods are left alone; [`Renderer`] says how that
//! rendering can change all the same.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod access;
mod controller_revision;
mod deployment;
mod disruption_budget;
mod lock;
mod network_policy;
mod ports;
mod renderer;
mod scheduling;
mod service;
mod telemetry;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

pub use controller_revision::{controller_revision, snapshot_of};
pub use deployment::deployment;
pub use disruption_budget::disruption_budget;
pub use lock::{lock, locked};
pub use network_policy::{Clients, Network, network_policy};
pub use ports::Kinds;
pub use renderer::Renderer;
pub use service::{service, url};

use crate::api::validated::{DesiredModel, RevisionSpec};

/// Everything that a revision's pods are rendered from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The pod-affecting part of `spec`.
    pub spec: RevisionSpec,
    /// The inference server's image at the time.
    pub image: String,
    /// The version of the rendering at the time.
    #[serde(default, skip_serializing_if = "Renderer::is_first")]
    pub renderer: Renderer,
}

impl Snapshot {
    /// Whether the digest that the first server finds binds the others; one that a person gave needs no lock.
    pub fn is_locked(&self) -> bool {
        self.renderer >= Renderer::LOCKED && self.spec.model.sha256.is_none()
    }
}

/// The metadata of a child: it goes when its ModelDeployment goes.
fn metadata(model: &DesiredModel, name: String, labels: std::collections::BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(model.namespace.clone()),
        labels: Some(labels),
        owner_references: Some(vec![model.owner.clone()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
