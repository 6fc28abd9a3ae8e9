//! The ports of a model's servers and of the Service in front of them: with TLS or without.
//!
//! A server speaks TLS or does not, on the same numbers; only the names of its ports tell. While servers of both kinds live,
//! the Service has the ports of both, and each leads by name to the pods that have a port of that name. So a client is never
//! sent to a server that does not speak as it does, and the ports of a kind go with its last server.

use k8s_openapi::{
    api::core::v1::{ContainerPort, PodSpec, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use ortolan_protocol::ports;

use super::Snapshot;
use crate::api::names;

/// A port of a server that clients use, and of the Service.
struct Port {
    name: &'static str,
    /// On the Service. The same for as long as a model lives: clients have it in their settings.
    number: i32,
    /// In the pod.
    target: u16,
    protocol: &'static str,
}

const PLAIN: [Port; 2] = [
    Port { name: "http", number: 80, target: ports::HTTP, protocol: "http" },
    Port { name: "grpc", number: 8081, target: ports::GRPC, protocol: "kubernetes.io/h2c" },
];
const TLS: [Port; 2] = [
    Port { name: "https", number: 443, target: ports::HTTP, protocol: "https" },
    Port { name: "grpcs", number: 8443, target: ports::GRPC, protocol: "https" },
];

/// The kinds of servers that a model has, or is about to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    plain: bool,
    tls: bool,
}

impl Kinds {
    /// The kinds of revisions and of pods, which may be older than all of them.
    pub fn of<'a>(snapshots: impl Iterator<Item = &'a Snapshot>, pods: impl Iterator<Item = &'a PodSpec>) -> Self {
        let mut kinds = Self::default();
        for snapshot in snapshots {
            kinds.tls |= is_tls(snapshot);
            kinds.plain |= !is_tls(snapshot);
        }
        let servers = pods.flat_map(|pod| &pod.containers).filter(|container| container.name == names::CONTAINER);
        for port in servers.flat_map(|server| server.ports.iter().flatten()) {
            kinds.plain |= port.name.as_deref() == Some(PLAIN[0].name);
            kinds.tls |= port.name.as_deref() == Some(TLS[0].name);
        }
        kinds
    }

    /// The kinds that a Service leads to.
    pub fn of_service(service: &Service) -> Self {
        let live: Vec<_> = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).collect();
        let leads = |port: &Port| {
            let targets = [IntOrString::Int(i32::from(port.target)), IntOrString::String(port.name.to_owned())];
            let same = |live: &&&ServicePort| live.name.as_deref() == Some(port.name);
            live.iter()
                .find(same)
                .and_then(|live| live.target_port.as_ref())
                .is_some_and(|target| targets.contains(target))
        };
        Self { plain: leads(&PLAIN[0]), tls: leads(&TLS[0]) }
    }

    /// Whether a kind of `self` is none of `others`.
    pub fn has_more_than(self, others: Self) -> bool {
        self.plain && !others.plain || self.tls && !others.tls
    }

    /// The ports of the Service. One kind alone is found by number, so that a Service without TLS is what it always was.
    pub(super) fn service_ports(self) -> Vec<ServicePort> {
        let by_name = self.plain && self.tls;
        let target = |port: &Port| {
            if by_name { IntOrString::String(port.name.to_owned()) } else { IntOrString::Int(i32::from(port.target)) }
        };
        let plain = PLAIN.iter().filter(|_| self.plain);
        let ports = plain.chain(TLS.iter().filter(|_| self.tls));
        ports
            .map(|port| ServicePort {
                name: Some(port.name.to_owned()),
                port: port.number,
                target_port: Some(target(port)),
                protocol: Some("TCP".to_owned()),
                app_protocol: Some(port.protocol.to_owned()),
                ..ServicePort::default()
            })
            .collect()
    }
}

fn is_tls(snapshot: &Snapshot) -> bool {
    snapshot.spec.server.tls.is_some()
}

/// The ports of a server's container.
pub(super) fn container_ports(snapshot: &Snapshot) -> Vec<ContainerPort> {
    let serving = if is_tls(snapshot) { &TLS } else { &PLAIN };
    let serving = serving.iter().map(|port| (port.name, port.target));
    serving
        .chain([("operations", ports::OPERATIONS)])
        .map(|(name, number)| ContainerPort {
            name: Some(name.to_owned()),
            container_port: i32::from(number),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        })
        .collect()
}
