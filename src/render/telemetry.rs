//! What a server is told of traces and of its log of requests.

use k8s_openapi::api::core::v1::EnvVar;

use crate::api::{Server, validated::DesiredModel};

/// The flags about single requests.
pub(super) fn arguments(server: &Server) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(tracing) = &server.tracing {
        arguments.push(format!("--otlp-endpoint={}", tracing.endpoint));
        arguments.push(format!("--trace-sample-ratio={}", tracing.sample_ratio));
    }
    arguments.extend(server.request_log.as_ref().map(|log| format!("--request-log-sample-ratio={}", log.sample_ratio)));
    arguments
}

/// Traces of models of the same name are told apart by their namespaces, which a server does not know by itself.
pub(super) fn environment(model: &DesiredModel, server: &Server) -> Option<Vec<EnvVar>> {
    server.tracing.as_ref().map(|_| {
        vec![EnvVar {
            name: "OTEL_RESOURCE_ATTRIBUTES".to_owned(),
            value: Some(format!("k8s.namespace.name={}", model.namespace)),
            ..EnvVar::default()
        }]
    })
}
