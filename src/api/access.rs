//! Who may ask the servers, and how much: TLS and what one client may send.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::IS_NAME;

/// TLS on the ports of the servers that clients use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct Tls {
    /// A Secret of type `kubernetes.io/tls` in the same namespace, as cert-manager writes it: `tls.crt` and `tls.key`. Mounted
    /// into the pods; the operator never reads it. A new certificate in it counts without new pods.
    #[x_kube(validation = Rule::new(IS_NAME)
        .message("certificateSecret must be a Secret's name: a-z, 0-9, '-' and '.'"))]
    pub certificate_secret: String,
    /// A Secret in the same namespace whose `ca.crt` has the authorities of clients: they must then show a certificate of one of
    /// them. May be the same Secret. Nothing else of it is mounted.
    #[serde(default, rename = "clientCASecret", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(IS_NAME)
        .message("clientCASecret must be a Secret's name: a-z, 0-9, '-' and '.'"))]
    pub client_ca_secret: Option<String>,
}

/// What one client may ask of each server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct ClientLimit {
    /// Requests a second that one client may send to one server in the long run. Each server counts by itself.
    #[schemars(range(min = 1, max = 1_000_000), extend("format" = "int32"))]
    pub requests_per_second: u32,
    /// Requests that it may send at once after it was quiet; as many as in a second when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000), extend("format" = "int32"))]
    pub burst: Option<u32>,
}
