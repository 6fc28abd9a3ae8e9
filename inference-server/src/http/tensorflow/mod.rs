//! TensorFlow Serving's REST protocol: `/v1/models/M`, for clients that speak it.
//!
//! The model has one version and one signature, which is the default one. What a request must look like is checked in
//! [`crate::request`], as for every protocol.

mod answer;
mod examples;
mod tensors;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ortolan_protocol::oip::Datatype;
use serde_json::{Map, Value, json};

use super::{Path, Shared, body, infer::timeout_header};
use crate::engine::TensorSpec;
use crate::error::{Error, ErrorKind};
use crate::request::Builder;
use crate::serving::{Model, Server};
use crate::stats::Arrival;
use crate::telemetry::Route;
use crate::wire;

/// The name of a model's only signature.
const SIGNATURE: &str = "serving_default";

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/models/{target}", get(status).post(model_verb))
        .route("/v1/models/{model}/versions/{target}", get(version_status).post(version_verb))
        .route("/v1/models/{model}/metadata", get(metadata))
        .route("/v1/models/{model}/versions/{version}/metadata", get(version_metadata))
}

/// What a client wants of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Predict,
    Classify,
    Regress,
}

impl Verb {
    fn route(self) -> Route {
        match self {
            Self::Predict => Route::Predict,
            Self::Classify => Route::Classify,
            Self::Regress => Route::Regress,
        }
    }

    /// The part of a path behind its last colon.
    fn split(target: &str) -> (&str, Option<Result<Self, Error>>) {
        let Some((name, verb)) = target.rsplit_once(':') else { return (target, None) };
        let verb = match verb {
            "predict" => Ok(Self::Predict),
            "classify" => Ok(Self::Classify),
            "regress" => Ok(Self::Regress),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no ':{}'; there are :predict, :classify and :regress", verb.escape_debug()),
            )),
        };
        (name, Some(verb))
    }
}

async fn status(State(server): Shared, Path(target): Path<String>) -> Result<Response, Error> {
    version_is(&server, &target, |name| server.check_name(name, None))
}

async fn version_status(
    State(server): Shared,
    Path((model, target)): Path<(String, String)>,
) -> Result<Response, Error> {
    version_is(&server, &target, |version| server.check_name(&model, Some(version)))
}

fn version_is(server: &Server, target: &str, check: impl FnOnce(&str) -> Result<(), Error>) -> Result<Response, Error> {
    match Verb::split(target) {
        (name, None) => check(name)?,
        (_, Some(verb)) => return Err(verb.map_or_else(|error| error, |_| Error::method_not_allowed("POST"))),
    }
    let state = match server.phase() {
        _ if !server.is_live() => "END",
        ortolan_protocol::stats::Phase::Fetching => "START",
        ortolan_protocol::stats::Phase::Loading => "LOADING",
        ortolan_protocol::stats::Phase::Ready => "AVAILABLE",
        ortolan_protocol::stats::Phase::Draining => "UNLOADING",
    };
    let status = json!({"error_code": "OK", "error_message": ""});
    let version = json!({"version": server.version(), "state": state, "status": status});
    // The first two are for KServe's client, which speaks this protocol with them.
    let answer = json!({"name": server.name(), "ready": server.is_ready(), "model_version_status": [version]});
    Ok(Json(answer).into_response())
}

async fn metadata(State(server): Shared, Path(model): Path<String>) -> Result<Response, Error> {
    let found = server.model(&model, None)?;
    Ok(Json(described(&server, found)).into_response())
}

async fn version_metadata(
    State(server): Shared,
    Path((model, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    let found = server.model(&model, Some(&version))?;
    Ok(Json(described(&server, found)).into_response())
}

/// The answer to a question for metadata, as TensorFlow Serving writes it.
fn described(server: &Server, model: &Model) -> Value {
    let tensors = |specs: &[TensorSpec]| -> Map<String, Value> {
        specs.iter().map(|spec| (spec.name.clone(), tensor_info(spec))).collect()
    };
    let signature = json!({
        "inputs": tensors(&model.signature.inputs),
        "outputs": tensors(&model.signature.outputs),
        "method_name": "tensorflow/serving/predict",
    });
    json!({
        "model_spec": {"name": server.name(), "signature_name": "", "version": server.version()},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    })
}

fn tensor_info(spec: &TensorSpec) -> Value {
    let dim = |size: i64| json!({"size": size.to_string(), "name": ""});
    let dims: Vec<Value> = spec.protocol_shape().into_iter().map(dim).collect();
    json!({
        "dtype": type_name(spec.datatype),
        "tensor_shape": {"dim": dims, "unknown_rank": false},
        "name": spec.name,
    })
}

fn type_name(datatype: Datatype) -> &'static str {
    match datatype {
        Datatype::Bool => "DT_BOOL",
        Datatype::Uint8 => "DT_UINT8",
        Datatype::Uint16 => "DT_UINT16",
        Datatype::Uint32 => "DT_UINT32",
        Datatype::Uint64 => "DT_UINT64",
        Datatype::Int8 => "DT_INT8",
        Datatype::Int16 => "DT_INT16",
        Datatype::Int32 => "DT_INT32",
        Datatype::Int64 => "DT_INT64",
        Datatype::Fp16 => "DT_HALF",
        Datatype::Bf16 => "DT_BFLOAT16",
        Datatype::Fp32 => "DT_FLOAT",
        Datatype::Fp64 => "DT_DOUBLE",
        Datatype::Bytes => "DT_STRING",
    }
}

async fn model_verb(State(server): Shared, Path(target): Path<String>, request: Request) -> Result<Response, Error> {
    let (name, verb) = Verb::split(&target);
    run(&server, name, None, verb, request).await
}

async fn version_verb(
    State(server): Shared,
    Path((model, target)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Error> {
    let (version, verb) = Verb::split(&target);
    run(&server, &model, Some(version), verb, request).await
}

async fn run(
    server: &Server,
    name: &str,
    version: Option<&str>,
    verb: Option<Result<Verb, Error>>,
    request: Request,
) -> Result<Response, Error> {
    let verb = verb.ok_or_else(|| Error::method_not_allowed("GET,HEAD"))??;
    let mut arrival = server.arrive(verb.route(), request.headers());
    let outcome = answered(server, (name, version), verb, request, &mut arrival).await;
    arrival.finish(&outcome);
    outcome
}

async fn answered(
    server: &Server,
    (name, version): (&str, Option<&str>),
    verb: Verb,
    request: Request,
    arrival: &mut Arrival,
) -> Result<Response, Error> {
    let model = server.model(name, version)?;
    let (parts, body) = request.into_parts();
    let timeout = timeout_header(&parts.headers)?;
    let (body, held) = body::read(&parts.headers, body, server.limits().max_bytes, server.bodies()).await?;
    arrival.body_received();
    let mut builder = Builder::new(model.rules());
    let form = match verb {
        Verb::Predict => tensors::read(&body, model, &mut builder)?,
        Verb::Classify | Verb::Regress => examples::read(&body, model, &mut builder)?,
    };
    drop((body, held));
    let rows = form.rows;
    let request = builder.build(wire::deadline(arrival.since(), [timeout]))?;
    let found = server.infer(model, request, arrival).await?;
    let outputs = || model.signature.outputs.iter().zip(&found);
    match verb {
        Verb::Predict if form.is_columns => answer::columns(outputs()),
        Verb::Predict => answer::rows(outputs(), rows),
        Verb::Classify => answer::classes(outputs(), rows),
        Verb::Regress => answer::values(outputs(), rows),
    }
}

/// How a request was written, and so how its answer is.
struct Form {
    is_columns: bool,
    /// How many instances or examples there were.
    rows: usize,
}

fn check_signature(name: Option<&str>) -> Result<(), Error> {
    match name {
        None | Some("" | SIGNATURE) => Ok(()),
        Some(name) => Err(Error::invalid(format!(
            "there is no signature '{}'; the model has '{SIGNATURE}' only",
            name.escape_debug()
        ))),
    }
}

fn parsed<'b, T: serde::Deserialize<'b>>(body: &'b [u8], expected: &str) -> Result<T, Error> {
    match body.trim_ascii_start().first() {
        Some(b'{') => {}
        Some(_) => return Err(Error::invalid(format!("the body is not {expected}"))),
        None => return Err(Error::invalid(format!("the body is empty; expected {expected}"))),
    }
    serde_json::from_slice(body).map_err(|error| Error::invalid(format!("the body is not {expected}: {error}")))
}
