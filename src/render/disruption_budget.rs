//! The budget that keeps voluntary disruptions (a drained node) from taking more than one server at a time.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::metadata;
use crate::api::{names, validated::DesiredModel};

/// One server at a time, over all revisions. Not `minAvailable`, which would block every drain of a single server.
pub fn disruption_budget(model: &DesiredModel) -> PodDisruptionBudget {
    let labels = names::model_labels(&model.name);
    PodDisruptionBudget {
        metadata: metadata(model, model.name.clone(), labels.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }),
            // A server that is not ready helps nobody: it must never hold up a drain.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
