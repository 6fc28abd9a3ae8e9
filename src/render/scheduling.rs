//! Where a revision's pods may run.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{PodSpec, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use crate::api::scheduling::{self, Scheduling, Spread};

/// `pod`, with what `scheduling` says about its place. `selector` finds the pods that are spread.
pub fn placed(pod: PodSpec, scheduling: &Scheduling, selector: &LabelSelector) -> PodSpec {
    let Scheduling { node_selector, tolerations, spread, priority_class_name, runtime_class_name } = scheduling;
    let labels: BTreeMap<_, _> = node_selector.iter().map(|(label, value)| (label.clone(), value.0.clone())).collect();
    let tolerations: Vec<_> = tolerations.iter().map(toleration).collect();
    let constraint = |spread: &Spread| TopologySpreadConstraint {
        max_skew: i32::try_from(spread.max_skew).unwrap_or(i32::MAX),
        topology_key: spread.topology_key.clone(),
        when_unsatisfiable: spread.when_unsatisfiable.as_str().to_owned(),
        label_selector: Some(selector.clone()),
        ..TopologySpreadConstraint::default()
    };
    let constraints: Vec<_> = match spread {
        Some(spread) => spread.iter().map(constraint).collect(),
        None => vec![constraint(&over_nodes())],
    };
    PodSpec {
        node_selector: (!labels.is_empty()).then_some(labels),
        tolerations: (!tolerations.is_empty()).then_some(tolerations),
        topology_spread_constraints: (!constraints.is_empty()).then_some(constraints),
        priority_class_name: priority_class_name.clone(),
        runtime_class_name: runtime_class_name.clone(),
        ..pod
    }
}

/// One lost node should not take all servers, but a server on a full node is better than none.
fn over_nodes() -> Spread {
    Spread {
        topology_key: "kubernetes.io/hostname".to_owned(),
        max_skew: 1,
        when_unsatisfiable: scheduling::WhenUnsatisfiable::ScheduleAnyway,
    }
}

fn toleration(toleration: &scheduling::Toleration) -> Toleration {
    Toleration {
        key: Some(toleration.key.clone()),
        operator: Some(toleration.operator.as_str().to_owned()),
        value: toleration.value.clone(),
        effect: toleration.effect.map(|effect| effect.as_str().to_owned()),
        toleration_seconds: toleration.toleration_seconds.map(i64::from),
    }
}
