//! The Open Inference Protocol over gRPC.
//!
//! Thin: messages into requests and back. What a request must look like is checked in [`crate::request`], what runs it
//! is the batcher. The calls of other servers that load models, map shared memory or change settings are not here.

mod convert;
mod stream;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request as HttpRequest;
use axum::http::HeaderValue;
use axum::response::Response as HttpResponse;
use futures_util::Stream;
use http_body_util::BodyExt;
use ortolan_protocol::grpc::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use ortolan_protocol::grpc::infer_parameter::ParameterChoice;
use ortolan_protocol::grpc::{
    FILE_DESCRIPTOR_SET, InferParameter, ModelConfigRequest, ModelConfigResponse, ModelInferRequest,
    ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStatisticsRequest, ModelStatisticsResponse, ModelStreamInferResponse, RepositoryIndexRequest,
    RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse,
};
use tonic::codec::{CompressionEncoding, SingleMessageCompressionOverride};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming, async_trait};
use tonic_health::pb::health_server::{Health, HealthServer};
use tracing::error;

use crate::around::{Around, Attendant};
use crate::body::{Bounded, BoundedMessages, MESSAGE_HEAD};
use crate::classify;
use crate::client_limit::Client;
use crate::describe;
use crate::error::{Error, ErrorKind};
use crate::serving::Server;
use crate::stats::Arrival;
use crate::telemetry::{Route, Watch};

/// What tonic answers to a message over the limit; by our rule it is `RESOURCE_EXHAUSTED`.
const OUT_OF_RANGE: &str = "11";
const RESOURCE_EXHAUSTED: HeaderValue = HeaderValue::from_static("8");

/// The call that asks for inference ends so, and the one whose body is a stream of such requests.
const INFERENCE: &str = "/ModelInfer";
const INFERENCE_STREAM: &str = "/ModelStreamInfer";
/// Calls whose bodies are streams of messages end so.
const STREAMS: [&str; 2] = [INFERENCE_STREAM, "/ServerReflectionInfo"];

/// The gRPC port. `health`: answers `grpc.health.v1`.
pub fn app<H: Health>(server: Arc<Server>, health: HealthServer<H>) -> Router {
    let inference = GrpcInferenceServiceServer::new(Service { server: Arc::clone(&server) })
        .max_decoding_message_size(server.limits().max_bytes)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate)
        .send_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Deflate);
    with_reflection(Routes::new(inference).add_service(health))
        .prepare()
        .into_axum_router()
        .layer(Around(Greeter(server)))
}

/// What tells clients such as grpcurl which calls there are, in both versions of that protocol.
fn with_reflection(routes: Routes) -> Routes {
    let describes = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (describes().build_v1(), describes().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => {
            error!(%error, "reflection cannot be offered");
            routes
        }
    }
}

/// Whether a call may be made; who makes it, where that matters later. Health is told to everybody, as over REST.
fn admitted(server: &Server, request: &HttpRequest) -> Result<Option<Client>, Error> {
    let path = request.uri().path();
    if path.starts_with("/grpc.health.v1.Health/") {
        Ok(None)
    } else if path.ends_with(INFERENCE_STREAM) {
        // Each of its messages is a request.
        server.admit_stream(request)
    } else {
        server.admit(request).map(|()| None)
    }
}

/// Lets requests in, under the limits of all bodies.
#[derive(Clone)]
struct Greeter(Arc<Server>);

impl Attendant for Greeter {
    /// What a request for inference is told of by; also one whose message never becomes a call.
    type Kept = Option<Arc<Watch>>;

    fn before(&self, mut request: HttpRequest) -> ControlFlow<HttpResponse, (HttpRequest, Self::Kept)> {
        let client = match admitted(&self.0, &request) {
            Ok(client) => client,
            Err(error) => return ControlFlow::Break(Status::from(error).into_http()),
        };
        client.map(|client| request.extensions_mut().insert(client));
        let is_inference = request.uri().path().ends_with(INFERENCE);
        let watch = is_inference.then(|| self.0.watch(Route::GrpcInfer, request.headers())).flatten();
        if let Some(watch) = &watch {
            request.extensions_mut().insert(Arc::clone(watch));
        }
        ControlFlow::Continue((bound(&self.0, request, watch.clone()), watch))
    }

    fn after(&self, watch: Self::Kept, response: &mut HttpResponse) {
        name_too_large(&self.0, response, watch);
    }
}

/// Puts a body under the limits of all bodies. One that breaks them never becomes a call, and is counted here.
fn bound(server: &Arc<Server>, request: HttpRequest, watch: Option<Arc<Watch>>) -> HttpRequest {
    let is_stream = STREAMS.iter().any(|call| request.uri().path().ends_with(call));
    request.map(|body| {
        let (server, bodies) = (Arc::clone(server), Arc::clone(server.bodies()));
        let refuse = move |error: Error| {
            server.counters().arrive().watched(watch.clone()).finish(&Err::<(), _>(error.clone()));
            Status::from(error)
        };
        if is_stream {
            Body::new(BoundedMessages::new(body, &bodies).map_err(refuse))
        } else {
            Body::new(Bounded::new(body, &bodies, MESSAGE_HEAD).map_err(refuse))
        }
    })
}

fn name_too_large(server: &Server, response: &mut HttpResponse, watch: Option<Arc<Watch>>) {
    if let Some(status) = response.headers_mut().get_mut("grpc-status").filter(|status| *status == OUT_OF_RANGE) {
        *status = RESOURCE_EXHAUSTED;
        server.counters().arrive().watched(watch).finish(&Err::<(), _>(Error::new(ErrorKind::TooLarge, "")));
    }
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
        let watch = request.extensions().get::<Arc<Watch>>().cloned();
        let arrival = self.server.counters().arrive().watched(watch);
        arrival.note(|watch| watch.received(arrival.since()));
        let (metadata, _, message) = request.into_parts();
        let deadline = crate::wire::deadline(arrival.since(), [call_timeout(&metadata)]);
        let outcome = infer(&self.server, message, deadline, &arrival).await;
        arrival.finish(&outcome);
        Ok(as_encoded(&metadata, Response::new(outcome?)))
    }

    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (metadata, extensions, messages) = request.into_parts();
        let call = stream::Call {
            client: extensions.get().copied(),
            deadline: crate::wire::deadline(Instant::now(), [call_timeout(&metadata)]),
            headers: metadata.clone().into_headers(),
        };
        let answers: Self::ModelStreamInferStream = Box::pin(stream::answers(Arc::clone(&self.server), messages, call));
        Ok(as_encoded(&metadata, Response::new(answers)))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let model = self.server.model(&request.name, Some(&request.version))?;
        Ok(Response::new(ModelConfigResponse { config: Some(describe::config(&self.server, model)) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let request = request.into_inner();
        let name = if request.name.is_empty() { self.server.name() } else { &request.name };
        self.server.model(name, Some(&request.version))?;
        Ok(Response::new(ModelStatisticsResponse { model_stats: vec![describe::statistics(&self.server)] }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let models = describe::index(&self.server, request.into_inner().ready);
        Ok(Response::new(RepositoryIndexResponse { models }))
    }
}

/// Answers are compressed where the request was. Many clients say that they accept compression without wanting it.
fn as_encoded<T>(metadata: &MetadataMap, mut response: Response<T>) -> Response<T> {
    if metadata.get("grpc-encoding").is_none_or(|encoding| encoding == "identity") {
        response.extensions_mut().insert(SingleMessageCompressionOverride::Disable);
    }
    response
}

/// Answers one message. `deadline`: that of its call.
async fn infer(
    server: &Server,
    message: ModelInferRequest,
    deadline: Option<Instant>,
    arrival: &Arrival,
) -> Result<ModelInferResponse, Error> {
    arrival.note(|watch| watch.named(&message.id));
    let model = server.model(&message.model_name, Some(&message.model_version))?;
    let own = crate::wire::deadline(arrival.since(), [timeout_parameter(&message.parameters)?]);
    let classes = convert::classes(&message.outputs)?;
    let (id, name) = (message.id.clone(), message.model_name.clone());
    let request = convert::request(model, message, deadline.into_iter().chain(own).min())?;
    let outputs = request.outputs.clone();
    let tensors = classify::tops(server.infer(model, request, arrival).await?, &outputs, &classes, model)?;
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
