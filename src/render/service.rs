//! The Service in front of a model's servers.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use ortolan_protocol::ports;

use super::metadata;
use crate::api::{names, validated::DesiredModel};

/// The port of REST on the Service.
const HTTP_PORT: i32 = 80;

/// The Service: REST on 80, gRPC on 8081, to the ready servers of all revisions.
pub fn service(model: &DesiredModel) -> Service {
    let labels = names::model_labels(&model.name);
    let port = |name: &str, port: i32, target: u16, protocol: &str| ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::Int(i32::from(target))),
        protocol: Some("TCP".to_owned()),
        app_protocol: Some(protocol.to_owned()),
        ..ServicePort::default()
    };
    Service {
        metadata: metadata(model, model.name.clone(), labels.clone()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(labels),
            ports: Some(vec![
                port("http", HTTP_PORT, ports::HTTP, "http"),
                port("grpc", i32::from(ports::GRPC), ports::GRPC, "kubernetes.io/h2c"),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Where clients inside the cluster reach the model.
pub fn url(model: &DesiredModel) -> String {
    format!("http://{}.{}.svc", model.name, model.namespace)
}
