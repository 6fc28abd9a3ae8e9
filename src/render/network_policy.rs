//! Who may talk to a model's servers, and whom they may talk to.
//!
//! NetworkPolicies add up: whatever one of them allows is allowed. So each rule here also opens what a policy of the
//! namespace closes, and no more is said than must be. Egress is not mentioned unless the administrator wants metadata
//! services closed, as this can only be said by allowing everything else, and a tenant could open a closed namespace by it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use ortolan_protocol::ports;

use super::metadata;
use crate::api::{names, validated::DesiredModel};

/// The label with a namespace's name, which the API server sets and nobody can change.
const NAMESPACE: &str = "kubernetes.io/metadata.name";

/// Every address and those of metadata services in it: of AWS, Azure, Google and most others; of Google behind its
/// redirection; of AWS for containers; of Alibaba.
const EVERY_V4: (&str, &[&str]) =
    ("0.0.0.0/0", &["169.254.169.254/32", "169.254.169.252/32", "169.254.170.0/24", "100.100.100.200/32"]);
/// The same for IPv6: of AWS, of AWS for containers, of Google.
const EVERY_V6: (&str, &[&str]) = ("::/0", &["fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128"]);

/// What the cluster's administrator says about the network of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The namespace of the operator, which reads statistics.
    pub operator: String,
    /// Namespaces of whatever scrapes metrics.
    pub monitoring: Vec<String>,
    /// Whose requests are let in.
    pub clients: Clients,
    /// Whether metadata services are closed to servers.
    pub block_metadata: bool,
}

/// Whose requests are let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Everyone, from inside and outside of the cluster.
    Everyone,
    /// Pods of the model's own namespace and of these.
    Namespaces(Vec<String>),
}

/// The NetworkPolicy of all servers of a model.
pub fn network_policy(model: &DesiredModel, network: &Network) -> NetworkPolicy {
    let labels = names::model_labels(&model.name);
    let clients = match &network.clients {
        Clients::Everyone => None,
        Clients::Namespaces(others) => Some(pods_of(std::iter::once(&model.namespace).chain(others))),
    };
    let readers = pods_of(std::iter::once(&network.operator).chain(&network.monitoring));
    let mut types = vec!["Ingress".to_owned()];
    let mut egress = None;
    if network.block_metadata {
        types.push("Egress".to_owned());
        egress = Some(vec![NetworkPolicyEgressRule { ports: None, to: Some(everywhere_else()) }]);
    }
    NetworkPolicy {
        metadata: metadata(model, names::network_policy(&model.name), labels.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }),
            policy_types: Some(types),
            ingress: Some(vec![
                NetworkPolicyIngressRule { ports: Some(vec![port(ports::HTTP), port(ports::GRPC)]), from: clients },
                NetworkPolicyIngressRule { ports: Some(vec![port(ports::OPERATIONS)]), from: Some(readers) },
            ]),
            egress,
        }),
    }
}

fn port(number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(number))),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    }
}

/// All pods of the namespaces with these names.
fn pods_of<'a>(namespaces: impl Iterator<Item = &'a String>) -> Vec<NetworkPolicyPeer> {
    let labels = namespaces.map(|name| BTreeMap::from([(NAMESPACE.to_owned(), name.clone())]));
    labels.map(|labels| peer(LabelSelector { match_labels: Some(labels), ..LabelSelector::default() })).collect()
}

fn peer(namespaces: LabelSelector) -> NetworkPolicyPeer {
    NetworkPolicyPeer { namespace_selector: Some(namespaces), ..NetworkPolicyPeer::default() }
}

/// Everywhere but metadata services. Pods are named apart, since to some networks an address is never a pod's.
fn everywhere_else() -> Vec<NetworkPolicyPeer> {
    let block = |(every, except): (&str, &[&str])| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: every.to_owned(),
            except: Some(except.iter().map(ToString::to_string).collect()),
        }),
        ..NetworkPolicyPeer::default()
    };
    vec![peer(LabelSelector::default()), block(EVERY_V4), block(EVERY_V6)]
}
