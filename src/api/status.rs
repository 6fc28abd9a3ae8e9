//! `status`: what Ortolan observed and decided.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What Ortolan observed and decided.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
// Written by the API server into an object that is new, so that nobody takes it for one that is as it should be.
#[schemars(extend("default" = {"observedGeneration": -1}))]
pub struct ModelDeploymentStatus {
    /// The generation of `spec` that the whole of this status is about; behind while a change could not be carried out,
    /// -1 before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What holds (`Ready`, `ArtifactResolved`, `ModelLoaded`, `WorkloadAvailable`, `RouteReady`, `ScalingActive`) and, only while it is so,
    /// what is not normal (`Reconciling`, `Stalled`, `ScalingLimited`).
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Where clients inside the cluster reach the model over REST; `https://` with `spec.server.tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The servers that exist and are not on their way out.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub replicas: u32,
    /// The label selector of the servers, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The revision that served last with all its servers ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<RevisionStatus>,
    /// The revision that is on its way to replace it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<RevisionStatus>,
    /// The numbers of each build of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<VariantStatus>,
    /// The last decision on the number of servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingStatus>,
}

impl ModelDeploymentStatus {
    /// The digest, as hex, that a revision is known to have.
    pub fn digest_of(&self, revision: &str) -> Option<&str> {
        let known = [&self.stable, &self.candidate].into_iter().flatten().find(|known| known.revision == revision)?;
        Some(known.digest.as_ref()?.trim_start_matches("sha256:"))
    }
}

/// A revision: what one pod would run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// The hash of the part of `spec` that a pod depends on; the ControllerRevision is named by it.
    pub revision: String,
    /// `sha256:…` of the model's bytes, once a server has fetched them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// The numbers of one build of the model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VariantStatus {
    /// The variant's name; `default` when there is one.
    pub name: String,
    /// The revision that the numbers are about.
    pub revision: String,
    /// Servers that exist.
    #[schemars(extend("format" = "int32"))]
    pub replicas: u32,
    /// Servers that answer.
    #[schemars(extend("format" = "int32"))]
    pub ready: u32,
    /// Observed latency; absent without requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyStatus>,
    /// Answered requests, as `120/s`; absent while nothing was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<String>,
}

/// Observed latency, in two significant digits.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LatencyStatus {
    /// The median, as `4.1ms`.
    pub p50: String,
    /// The 99th percentile.
    pub p99: String,
}

/// The last decision on the number of servers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingStatus {
    /// The number of servers that there should be.
    #[schemars(extend("format" = "int32"))]
    pub desired: u32,
    /// Why, in words.
    pub reason: String,
    /// When `desired` changed last.
    pub at: Time,
}
