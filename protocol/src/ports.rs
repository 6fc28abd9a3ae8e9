//! Where a model server listens inside its pod.

/// Open Inference Protocol over REST.
pub const HTTP: u16 = 8080;
/// Open Inference Protocol over gRPC.
pub const GRPC: u16 = 8081;
/// `/metrics`, `/stats` and `/healthz`: for the operator and Prometheus, never for clients of a model.
pub const OPERATIONS: u16 = 9090;
