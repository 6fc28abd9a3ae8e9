//! Where a model's servers may run: an allow-list of what a pod can say about that, and no more of it.
//!
//! Everything here can be said by whoever may write ModelDeployments, who need not be allowed to make pods. So what would
//! reach beyond their own namespace is not here or is refused: the classes with which Kubernetes protects itself,
//! the taints by which it takes a node out of service, its own nodes.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the servers may run. A change begins a new revision.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct Scheduling {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    #[x_kube(
        validation = Rule::new("self.all(key, key.size() <= 317 && key.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))")
            .message("a key of nodeSelector must be a node's label such as disktype or topology.kubernetes.io/zone"),
        validation = Rule::new("self.all(key, self[key].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))")
            .message("a value of nodeSelector must be a label's: at most 63 characters A-Z, a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit")
    )]
    pub node_selector: BTreeMap<String, LabelValue>,
    /// Taints of nodes on which the servers may run all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// How the servers of a revision are spread over nodes and zones. When absent they are spread over nodes as far as
    /// there is room; an empty list spreads nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["topologyKey", "whenUnsatisfiable"])
    )]
    pub spread: Option<Vec<Spread>>,
    /// The PriorityClass of the servers. A ResourceQuota of the namespace can limit which. Those that begin with
    /// `system-` are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
            .message("priorityClassName must be the name of a PriorityClass"),
        validation = Rule::new("!self.startsWith('system-')")
            .message("priorityClassName must not begin with system-: those classes keep the cluster itself running, and would evict other people's pods")
    )]
    pub priority_class_name: Option<String>,
    /// The RuntimeClass of the servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("runtimeClassName must be the name of a RuntimeClass"))]
    pub runtime_class_name: Option<String>,
}

impl Scheduling {
    /// Whether nothing is said, as in a ModelDeployment without `scheduling`.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The value of a label.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct LabelValue(#[schemars(length(max = 63))] pub String);

/// A taint of nodes on which a server may run all the same.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("self.operator != 'Exists' || !has(self.value)")
        .message("a toleration with operator Exists takes any value: remove value, or set operator: Equal"),
    validation = Rule::new("!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')")
        .message("tolerationSeconds goes with effect: NoExecute, which is what ends a running server"),
    validation = Rule::new("!self.key.matches('^node-role[.]kubernetes[.]io/(control-plane|controlplane|master|etcd)$')")
        .message("a toleration must not be for the control plane's nodes: models do not run beside the API server"),
    validation = Rule::new("!self.key.matches('^node[.](cloudprovider[.])?kubernetes[.]io/') || (self.key in ['node.kubernetes.io/not-ready', 'node.kubernetes.io/unreachable'] && has(self.tolerationSeconds))")
        .message("of the taints under node.kubernetes.io, by which Kubernetes takes a node out of service, only not-ready and unreachable can be tolerated, with effect: NoExecute and tolerationSeconds")
)]
pub struct Toleration {
    /// The taint's key.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')")
        .message("key must be a taint's key such as dedicated or nvidia.com/gpu"))]
    pub key: String,
    /// Whether the taint's value counts.
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value, with `operator: Equal`; that of a taint without one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')")
        .message("value must be a taint's value: letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"))]
    pub value: Option<String>,
    /// The taint's effect; all effects when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// How long a server may stay after the taint came, in seconds; with `effect: NoExecute`. For good when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400), extend("format" = "int32"))]
    pub toleration_seconds: Option<u32>,
}

/// How a toleration is compared with a taint.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TolerationOperator {
    /// The key and the value must be the taint's.
    #[default]
    Equal,
    /// The key must be the taint's.
    Exists,
}

impl TolerationOperator {
    /// The name, as Kubernetes takes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "Equal",
            Self::Exists => "Exists",
        }
    }
}

/// What a taint does to pods that do not tolerate it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaintEffect {
    /// New ones are not placed there.
    NoSchedule,
    /// New ones are placed there when there is no other room.
    PreferNoSchedule,
    /// Running ones have to go as well.
    NoExecute,
}

impl TaintEffect {
    /// The name, as Kubernetes takes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

/// An even spread of a revision's servers over the values of a node's label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct Spread {
    /// The label, such as `topology.kubernetes.io/zone` or `kubernetes.io/hostname`.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')")
        .message("topologyKey must be a node's label such as topology.kubernetes.io/zone"))]
    pub topology_key: String,
    /// By how many servers one value may be ahead of another.
    #[serde(default = "default_max_skew")]
    #[schemars(range(min = 1, max = 1000), extend("format" = "int32"))]
    pub max_skew: u32,
    /// What becomes of a server for which that cannot be kept.
    #[serde(default)]
    pub when_unsatisfiable: WhenUnsatisfiable,
}

fn default_max_skew() -> u32 {
    1
}

/// What becomes of a server for which a spread cannot be kept.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenUnsatisfiable {
    /// It runs all the same.
    #[default]
    ScheduleAnyway,
    /// It waits.
    DoNotSchedule,
}

impl WhenUnsatisfiable {
    /// The name, as Kubernetes takes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ScheduleAnyway => "ScheduleAnyway",
            Self::DoNotSchedule => "DoNotSchedule",
        }
    }
}
