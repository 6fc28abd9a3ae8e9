//! `POST …/infer`: a body into a request, and the way it goes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ortolan_protocol::oip::{self, InferInput, InferRequest, Parameter, Parameters};

use super::answer::{self, Form};
use super::{Path, Shared, body, elements};
use crate::classify;
use crate::error::Error;
use crate::request::{Builder, Slot};
use crate::serving::{Model, Server};
use crate::stats::Arrival;
use crate::telemetry::Route;
use crate::tensor::Data;
use crate::wire;

pub(super) async fn model(State(server): Shared, Path(model): Path<String>, request: Request) -> Response {
    respond(server, model, None, request).await
}

pub(super) async fn version(
    State(server): Shared,
    Path((model, version)): Path<(String, String)>,
    request: Request,
) -> Response {
    respond(server, model, Some(version), request).await
}

async fn respond(server: Arc<Server>, model: String, version: Option<String>, request: Request) -> Response {
    let mut arrival = server.arrive(Route::Infer, request.headers());
    let outcome = infer(&server, &model, version.as_deref(), request, &mut arrival).await;
    arrival.finish(&outcome);
    outcome.unwrap_or_else(IntoResponse::into_response)
}

async fn infer(
    server: &Server,
    name: &str,
    version: Option<&str>,
    request: Request,
    arrival: &mut Arrival,
) -> Result<Response, Error> {
    let model = server.model(name, version)?;
    let (parts, body) = request.into_parts();
    let header_length = header_length(&parts.headers)?;
    let timeout = timeout_header(&parts.headers)?;
    let (body, held) = body::read(&parts.headers, body, server.limits().max_bytes, server.bodies()).await?;
    arrival.body_received();
    let parsed = match header_length {
        Some(0) => raw(model, body.clone())?,
        Some(length) => parse(model, &body, length)?,
        None => parse(model, &body, body.len())?,
    };
    arrival.note(|watch| watch.named(parsed.id.as_deref().unwrap_or_default()));
    // What is kept of the body are tensors; from here on the queue counts them.
    drop((body, held));
    let deadline = wire::deadline(arrival.since(), [timeout, parsed.timeout]);
    let request = parsed.builder.build(deadline)?;
    let outputs = request.outputs.clone();
    let tensors = classify::tops(server.infer(model, request, arrival).await?, &outputs, &parsed.classes, model)?;
    let named = outputs.iter().map(|index| model.signature.outputs[*index].name.as_str()).zip(tensors);
    answer::write(&answer::Head { name, version: server.version(), id: parsed.id.as_deref() }, named, &parsed.form)
}

/// What a body says.
struct Parsed<'m> {
    builder: Builder<'m>,
    id: Option<String>,
    timeout: Option<Duration>,
    form: Form,
    /// How many classes are wanted of each requested output; 0: the output itself.
    classes: Vec<usize>,
}

/// JSON of `length` bytes, and whatever binary tensors follow it.
fn parse<'m>(model: &'m Model, body: &Bytes, length: usize) -> Result<Parsed<'m>, Error> {
    let json = body.get(..length).ok_or_else(|| {
        Error::invalid(format!("{} is {length}, but the body has only {} bytes", oip::HEADER_LENGTH, body.len()))
    })?;
    match json.trim_ascii_start().first() {
        Some(b'{') => {}
        Some(_) => return Err(Error::invalid("the body is not a JSON object; expected one with inputs")),
        None => return Err(Error::invalid("the body is empty; expected a JSON object with inputs")),
    }
    let request: InferRequest<'_> = serde_json::from_slice(json)
        .map_err(|error| Error::invalid(format!("the body is not a valid inference request: {error}")))?;
    let mut builder = Builder::new(model.rules());
    let mut tail = body.slice(length..);
    for input in &request.inputs {
        let slot = builder.input(&input.name, &input.datatype, &input.shape)?;
        let data = data(&slot, input, &mut tail)?;
        builder.fill(slot, data)?;
    }
    if !tail.is_empty() {
        return Err(Error::invalid(format!("{} bytes follow the last binary input", tail.len())));
    }
    let all_binary = flag(&request.parameters, "binary_data_output")?;
    let mut form = Form { default_binary: all_binary.unwrap_or(false), binary: Vec::new() };
    let mut classes = Vec::new();
    for output in &request.outputs {
        builder.output(&output.name)?;
        classes.push(wanted_classes(&output.parameters)?);
        form.binary.push(flag(&output.parameters, "binary_data")?.or(all_binary).unwrap_or(false));
    }
    let timeout = timeout_parameter(&request.parameters)?;
    Ok(Parsed { builder, id: request.id.map(std::borrow::Cow::into_owned), timeout, form, classes })
}

/// The elements of an input, out of the JSON or out of what follows it.
fn data(slot: &Slot<'_>, input: &InferInput<'_>, tail: &mut Bytes) -> Result<Data, Error> {
    let name = slot.name;
    match (input.data, input.parameters.get("binary_data_size")) {
        (Some(_), Some(_)) => Err(Error::invalid(format!("input '{name}' has both data and binary_data_size"))),
        (Some(json), None) => elements::from_json(slot, json.get()),
        (None, None) if slot.elements == 0 => wire::from_binary(slot, Bytes::new()),
        (None, None) => Err(Error::invalid(format!("input '{name}' has neither data nor binary_data_size"))),
        (None, Some(size)) => {
            let size = match size {
                Parameter::Integer(size) => usize::try_from(*size).ok(),
                _ => None,
            };
            let size = size.ok_or_else(|| {
                Error::invalid(format!("binary_data_size of input '{name}' must be a number of bytes"))
            })?;
            if size > tail.len() {
                return Err(Error::invalid(format!(
                    "input '{name}' has a binary_data_size of {size}, but only {} bytes are left of the body",
                    tail.len()
                )));
            }
            wire::from_binary(slot, tail.split_to(size))
        }
    }
}

/// A body without JSON: the elements of a model's only input, whose rows are counted by its size.
fn raw(model: &Model, body: Bytes) -> Result<Parsed<'_>, Error> {
    let mut builder = Builder::new(model.rules());
    let [spec] = model.signature.inputs.as_slice() else {
        return Err(Error::invalid(format!(
            "a body without JSON is for models with one input; this one has {}",
            model.signature.inputs.len()
        )));
    };
    let mut shape = spec.protocol_shape();
    let unknown = shape.iter().filter(|size| **size < 0).count();
    let row: usize = shape.iter().filter_map(|size| usize::try_from(*size).ok()).product();
    let size = spec.datatype.element_size().map(|size| size * row).filter(|size| *size > 0);
    match (size, unknown) {
        (Some(_), 0) => {}
        (Some(size), 1) => {
            let rows = i64::try_from(body.len() / size).unwrap_or(i64::MAX);
            shape.iter_mut().filter(|size| **size < 0).for_each(|size| *size = rows);
        }
        _ => {
            return Err(Error::invalid(
                "a body without JSON is for inputs whose shape follows from the size of the body",
            ));
        }
    }
    let slot = builder.input(&spec.name, spec.datatype.as_str(), &shape)?;
    let data = wire::from_binary(&slot, body)?;
    builder.fill(slot, data)?;
    let form = Form { default_binary: true, binary: Vec::new() };
    Ok(Parsed { builder, id: None, timeout: None, form, classes: Vec::new() })
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, Error> {
    let Some(value) = headers.get(oip::HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|value| value.trim().parse().ok());
    length.map(Some).ok_or_else(|| {
        Error::invalid(format!("{} must be the number of bytes of JSON in the body", oip::HEADER_LENGTH))
    })
}

pub(super) fn timeout_header(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(oip::TIMEOUT_HEADER) else { return Ok(None) };
    let milliseconds = value.to_str().ok().and_then(|value| value.trim().parse().ok());
    milliseconds
        .map(|milliseconds| Some(Duration::from_millis(milliseconds)))
        .ok_or_else(|| Error::invalid(format!("{} must be a number of milliseconds", oip::TIMEOUT_HEADER)))
}

/// Triton's `timeout`, in microseconds; zero: none.
fn timeout_parameter(parameters: &Parameters) -> Result<Option<Duration>, Error> {
    match parameters.get("timeout") {
        None => Ok(None),
        Some(Parameter::Integer(microseconds)) if *microseconds >= 0 => {
            Ok(Some(microseconds.unsigned_abs()).filter(|time| *time > 0).map(Duration::from_micros))
        }
        Some(_) => Err(Error::invalid("the parameter timeout must be a number of microseconds")),
    }
}

fn wanted_classes(parameters: &Parameters) -> Result<usize, Error> {
    match parameters.get(classify::PARAMETER) {
        None => Ok(0),
        Some(Parameter::Integer(count)) => classify::count(i128::from(*count)),
        Some(_) => Err(classify::not_a_count()),
    }
}

fn flag(parameters: &Parameters, name: &str) -> Result<Option<bool>, Error> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(Error::invalid(format!("the parameter {name} must be true or false"))),
    }
}
