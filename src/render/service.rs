//! The Service in front of a model's servers.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::{Kinds, metadata};
use crate::api::{names, validated::DesiredModel};

/// The Service to the ready servers of all revisions: REST on 80 and gRPC on 8081; with TLS, on 443 and 8443.
pub fn service(model: &DesiredModel, kinds: Kinds) -> Service {
    let labels = names::model_labels(&model.name);
    Service {
        metadata: metadata(model, model.name.clone(), labels.clone()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(labels),
            ports: Some(kinds.service_ports()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Where clients inside the cluster reach the servers that `spec` asks for.
pub fn url(model: &DesiredModel) -> String {
    let scheme = if model.revision.server.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}.{}.svc", model.name, model.namespace)
}
