//! gRPC messages into requests, and tensors into answers.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use ortolan_protocol::grpc::infer_parameter::ParameterChoice;
use ortolan_protocol::grpc::model_infer_request::InferRequestedOutputTensor;
use ortolan_protocol::grpc::model_infer_response::InferOutputTensor;
use ortolan_protocol::grpc::model_metadata_response::TensorMetadata;
use ortolan_protocol::grpc::{InferTensorContents, ModelInferRequest, ModelMetadataResponse};
use ortolan_protocol::oip::{self, Datatype};

use crate::batch::Request;
use crate::classify;
use crate::error::Error;
use crate::request::{Builder, Slot};
use crate::serving::Model;
use crate::tensor::{Data, Tensor};
use crate::wire::{self, check_count, from_binary, string};

/// The request that a message asks for.
pub(super) fn request(model: &Model, message: ModelInferRequest, deadline: Option<Instant>) -> Result<Request, Error> {
    let raw = message.raw_input_contents;
    if !raw.is_empty() && raw.len() != message.inputs.len() {
        return Err(Error::invalid(format!(
            "there are {} inputs but {} raw_input_contents; there must be one for each input, or none at all",
            message.inputs.len(),
            raw.len()
        )));
    }
    let mut builder = Builder::new(model.rules());
    let mut raw = raw.into_iter();
    for input in message.inputs {
        let slot = builder.input(&input.name, &input.datatype, &input.shape)?;
        let data = match (raw.next(), input.contents) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid(format!(
                    "input '{}' has contents, and there are raw_input_contents, too",
                    slot.name
                )));
            }
            (Some(bytes), None) => from_binary(&slot, bytes)?,
            (None, contents) => from_contents(&slot, contents.unwrap_or_default())?,
        };
        builder.fill(slot, data)?;
    }
    for output in &message.outputs {
        builder.output(&output.name)?;
    }
    builder.build(deadline)
}

/// How many classes are wanted of each requested output; 0: the output itself.
pub(super) fn classes(outputs: &[InferRequestedOutputTensor]) -> Result<Vec<usize>, Error> {
    let wanted = |output: &InferRequestedOutputTensor| {
        let Some(parameter) = output.parameters.get(classify::PARAMETER) else { return Ok(0) };
        match parameter.parameter_choice {
            Some(ParameterChoice::Int64Param(count)) => classify::count(i128::from(count)),
            Some(ParameterChoice::Uint64Param(count)) => classify::count(i128::from(count)),
            _ => Err(classify::not_a_count()),
        }
    };
    outputs.iter().map(wanted).collect()
}

/// Names and shapes of the outputs, and their elements.
pub(super) fn outputs(
    tensors: impl Iterator<Item = (String, Tensor)>,
) -> Result<(Vec<InferOutputTensor>, Vec<Bytes>), Error> {
    let (mut outputs, mut contents) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        outputs.push(InferOutputTensor {
            name,
            datatype: tensor.datatype.as_str().to_owned(),
            shape: tensor.shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect(),
            ..InferOutputTensor::default()
        });
        contents.push(wire::to_binary(tensor.data)?);
    }
    Ok((outputs, contents))
}

/// What the model takes and gives, as a message.
pub(super) fn metadata(metadata: oip::ModelMetadata) -> ModelMetadataResponse {
    let tensors = |tensors: Vec<oip::TensorMetadata>| {
        tensors
            .into_iter()
            .map(|tensor| TensorMetadata {
                name: tensor.name,
                datatype: tensor.datatype.as_str().to_owned(),
                shape: tensor.shape,
            })
            .collect()
    };
    ModelMetadataResponse {
        name: metadata.name,
        versions: metadata.versions,
        platform: metadata.platform,
        inputs: tensors(metadata.inputs),
        outputs: tensors(metadata.outputs),
    }
}

/// Elements out of the one field of the contents that fits the data type.
fn from_contents(slot: &Slot<'_>, contents: InferTensorContents) -> Result<Data, Error> {
    let counts = [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ];
    let Some(field) = field(slot.datatype) else {
        return Err(Error::invalid(format!(
            "input '{}' is {}, which goes into raw_input_contents",
            slot.name, slot.datatype
        )));
    };
    if let Some((other, _)) = counts.iter().find(|(name, count)| *name != field && *count > 0) {
        return Err(Error::invalid(format!(
            "input '{}' is {}, which goes into {field}, not {other}",
            slot.name, slot.datatype
        )));
    }
    check_count(slot, counts.iter().map(|(_, count)| count).sum())?;
    match slot.datatype {
        Datatype::Bool => Ok(Data::Fixed(contents.bool_contents.into_iter().map(u8::from).collect())),
        Datatype::Int8 => narrow(slot, &contents.int_contents, |value| i8::try_from(value).map(i8::to_le_bytes)),
        Datatype::Int16 => narrow(slot, &contents.int_contents, |value| i16::try_from(value).map(i16::to_le_bytes)),
        Datatype::Uint8 => narrow(slot, &contents.uint_contents, |value| u8::try_from(value).map(u8::to_le_bytes)),
        Datatype::Uint16 => narrow(slot, &contents.uint_contents, |value| u16::try_from(value).map(u16::to_le_bytes)),
        Datatype::Int32 => Ok(flat(&contents.int_contents)),
        Datatype::Int64 => Ok(flat(&contents.int64_contents)),
        Datatype::Uint32 => Ok(flat(&contents.uint_contents)),
        Datatype::Uint64 => Ok(flat(&contents.uint64_contents)),
        Datatype::Fp32 => Ok(flat(&contents.fp32_contents)),
        Datatype::Fp64 => Ok(flat(&contents.fp64_contents)),
        Datatype::Bytes | Datatype::Fp16 | Datatype::Bf16 => {
            contents.bytes_contents.iter().map(|bytes| string(slot, bytes)).collect::<Result<_, _>>().map(Data::Strings)
        }
    }
}

fn field(datatype: Datatype) -> Option<&'static str> {
    match datatype {
        Datatype::Bool => Some("bool_contents"),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => Some("int_contents"),
        Datatype::Int64 => Some("int64_contents"),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => Some("uint_contents"),
        Datatype::Uint64 => Some("uint64_contents"),
        Datatype::Fp32 => Some("fp32_contents"),
        Datatype::Fp64 => Some("fp64_contents"),
        Datatype::Bytes => Some("bytes_contents"),
        Datatype::Fp16 | Datatype::Bf16 => None,
    }
}

/// Elements that are as wide in the message as in the tensor.
fn flat<T: bytemuck::NoUninit>(elements: &[T]) -> Data {
    Data::Fixed(Bytes::copy_from_slice(bytemuck::cast_slice(elements)))
}

/// Elements that are wider in the message than in the tensor.
fn narrow<T, E, const N: usize>(
    slot: &Slot<'_>,
    elements: &[T],
    convert: impl Fn(T) -> Result<[u8; N], E>,
) -> Result<Data, Error>
where
    T: Copy + std::fmt::Display,
{
    let mut bytes = BytesMut::with_capacity(elements.len() * N);
    for element in elements {
        let converted = convert(*element).map_err(|_| {
            Error::invalid(format!("input '{}' is {}, and {element} does not fit", slot.name, slot.datatype))
        })?;
        bytes.extend_from_slice(&converted);
    }
    Ok(Data::Fixed(bytes.freeze()))
}
