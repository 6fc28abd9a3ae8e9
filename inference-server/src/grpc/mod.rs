//! The Open Inference Protocol over gRPC.
//!
//! Thin: messages into requests and back. What a request must look like is checked in [`crate::request`], what runs it
//! is the batcher. The calls of other servers that load models, map shared memory or change settings are not here.

mod convert;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::HeaderValue;
use axum::middleware;
use axum::response::Response as HttpResponse;
use http_body_util::BodyExt;
use ortolan_protocol::grpc::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use ortolan_protocol::grpc::infer_parameter::ParameterChoice;
use ortolan_protocol::grpc::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::body::Bounded;
use crate::error::{Error, ErrorKind};
use crate::serving::Server;
use crate::stats::Arrival;

/// What tonic answers to a message over the limit; by our rule it is `RESOURCE_EXHAUSTED`.
const OUT_OF_RANGE: &str = "11";
const RESOURCE_EXHAUSTED: HeaderValue = HeaderValue::from_static("8");

/// In front of a message stand a byte for its encoding and four for its length.
const FRAMING: usize = 5;

/// The gRPC port. `health`: answers `grpc.health.v1`.
pub fn app<H: Health>(server: Arc<Server>, health: HealthServer<H>) -> Router {
    let inference = GrpcInferenceServiceServer::new(Service { server: Arc::clone(&server) })
        .max_decoding_message_size(server.limits().max_bytes);
    Routes::new(inference)
        .add_service(health)
        .prepare()
        .into_axum_router()
        .layer(middleware::map_response_with_state(Arc::clone(&server), name_too_large))
        .layer(middleware::map_request_with_state(server, bound))
}

/// Puts a body under the limits of all bodies. One that breaks them never becomes a call, and is counted here.
async fn bound(State(server): State<Arc<Server>>, request: HttpRequest) -> HttpRequest {
    request.map(|body| {
        let bounded = Bounded::new(body, server.bodies(), FRAMING);
        Body::new(bounded.map_err(move |error| {
            server.counters().arrive().finish(&Err::<(), _>(error.clone()));
            Status::from(error)
        }))
    })
}

async fn name_too_large(State(server): State<Arc<Server>>, mut response: HttpResponse) -> HttpResponse {
    if let Some(status) = response.headers_mut().get_mut("grpc-status").filter(|status| *status == OUT_OF_RANGE) {
        *status = RESOURCE_EXHAUSTED;
        server.counters().arrive().finish(&Err::<(), _>(Error::new(ErrorKind::TooLarge, "")));
    }
    response
}

struct Service {
    server: Arc<Server>,
}

#[async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: self.server.is_live() }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.server.is_ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        self.server.check_name(&request.name, Some(&request.version))?;
        Ok(Response::new(ModelReadyResponse { ready: self.server.is_ready() }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let metadata = self.server.metadata();
        Ok(Response::new(ServerMetadataResponse {
            name: metadata.name,
            version: metadata.version,
            extensions: metadata.extensions,
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let model = self.server.model(&request.name, Some(&request.version))?;
        Ok(Response::new(convert::metadata(self.server.model_metadata(model))))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let arrival = self.server.counters().arrive();
        let outcome = infer(&self.server, request, &arrival).await;
        arrival.finish(&outcome);
        Ok(Response::new(outcome?))
    }
}

async fn infer(
    server: &Server,
    request: Request<ModelInferRequest>,
    arrival: &Arrival,
) -> Result<ModelInferResponse, Error> {
    let (metadata, _, message) = request.into_parts();
    let model = server.model(&message.model_name, Some(&message.model_version))?;
    let timeouts = [call_timeout(&metadata), timeout_parameter(&message.parameters)?];
    let (id, name) = (message.id.clone(), message.model_name.clone());
    let request = convert::request(model, message, crate::wire::deadline(arrival.since(), timeouts))?;
    let outputs = request.outputs.clone();
    let tensors = server.infer(model, request, arrival).await?;
    let named = outputs.iter().map(|index| model.signature.outputs[*index].name.clone()).zip(tensors);
    let (outputs, raw_output_contents) = convert::outputs(named)?;
    Ok(ModelInferResponse {
        model_name: name,
        model_version: server.version().to_owned(),
        id,
        parameters: HashMap::new(),
        outputs,
        raw_output_contents,
    })
}

/// The header `grpc-timeout`: at most eight digits and a unit. What is not of that form is no deadline.
fn call_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let value = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let amount = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Triton's `timeout`, in microseconds; zero: none.
fn timeout_parameter(parameters: &HashMap<String, InferParameter>) -> Result<Option<Duration>, Error> {
    let Some(parameter) = parameters.get("timeout") else { return Ok(None) };
    let microseconds = match parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(microseconds)) => u64::try_from(microseconds).ok(),
        Some(ParameterChoice::Uint64Param(microseconds)) => Some(microseconds),
        _ => None,
    };
    microseconds
        .map(|time| Some(time).filter(|time| *time > 0).map(Duration::from_micros))
        .ok_or_else(|| Error::invalid("the parameter timeout must be a number of microseconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_s_timeout_is_read_in_every_unit_and_ignored_when_it_is_none() {
        let cases = [
            ("2H", Some(Duration::from_hours(2))),
            ("3M", Some(Duration::from_mins(3))),
            ("4S", Some(Duration::from_secs(4))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("123456789S", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(call_timeout(&metadata), expected, "{text}");
        }
        assert_eq!(call_timeout(&MetadataMap::new()), None);
    }
}
