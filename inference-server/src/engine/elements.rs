//! Tensors into ONNX Runtime's values and back.
//!
//! Aligned elements are borrowed; elements that a client's framing left unaligned are copied once.

use bytemuck::{AnyBitPattern, NoUninit};
use bytes::Bytes;
use half::{bf16, f16};
use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor as OrtTensor, TensorElementType, TensorRef};
use ortolan_protocol::oip::Datatype;

use super::RunError;
use crate::tensor::{Data, Shape, Tensor};

/// The protocol's name for one of the runtime's element types, if it has one.
pub(super) fn datatype(element: TensorElementType) -> Option<Datatype> {
    Some(match element {
        TensorElementType::Bool => Datatype::Bool,
        TensorElementType::Uint8 => Datatype::Uint8,
        TensorElementType::Uint16 => Datatype::Uint16,
        TensorElementType::Uint32 => Datatype::Uint32,
        TensorElementType::Uint64 => Datatype::Uint64,
        TensorElementType::Int8 => Datatype::Int8,
        TensorElementType::Int16 => Datatype::Int16,
        TensorElementType::Int32 => Datatype::Int32,
        TensorElementType::Int64 => Datatype::Int64,
        TensorElementType::Float16 => Datatype::Fp16,
        TensorElementType::Bfloat16 => Datatype::Bf16,
        TensorElementType::Float32 => Datatype::Fp32,
        TensorElementType::Float64 => Datatype::Fp64,
        TensorElementType::String => Datatype::Bytes,
        _ => return None,
    })
}

/// A value that the runtime reads, borrowed from the tensor where alignment permits.
pub(super) fn to_value(tensor: &Tensor) -> Result<SessionInputValue<'_>, RunError> {
    let shape = tensor.shape.as_slice();
    let bytes = match &tensor.data {
        Data::Fixed(bytes) => bytes,
        Data::Strings(strings) => {
            return OrtTensor::from_string_array((shape, strings.as_slice()))
                .map(SessionInputValue::from)
                .map_err(|error| RunError::Refused(super::words::for_clients(error.message())));
        }
    };
    match tensor.datatype {
        Datatype::Bool => booleans(shape, bytes),
        Datatype::Uint8 => numbers::<u8>(shape, bytes),
        Datatype::Uint16 => numbers::<u16>(shape, bytes),
        Datatype::Uint32 => numbers::<u32>(shape, bytes),
        Datatype::Uint64 => numbers::<u64>(shape, bytes),
        Datatype::Int8 => numbers::<i8>(shape, bytes),
        Datatype::Int16 => numbers::<i16>(shape, bytes),
        Datatype::Int32 => numbers::<i32>(shape, bytes),
        Datatype::Int64 => numbers::<i64>(shape, bytes),
        Datatype::Fp16 => numbers::<f16>(shape, bytes),
        Datatype::Bf16 => numbers::<bf16>(shape, bytes),
        Datatype::Fp32 => numbers::<f32>(shape, bytes),
        Datatype::Fp64 => numbers::<f64>(shape, bytes),
        Datatype::Bytes => Err(RunError::Failed("a BYTES tensor without strings".to_owned())),
    }
}

/// A tensor out of what the runtime computed.
pub(super) fn from_value(value: &DynValue, datatype: Datatype) -> Result<Tensor, RunError> {
    match datatype {
        Datatype::Bool => copied::<bool>(value, datatype),
        Datatype::Uint8 => copied::<u8>(value, datatype),
        Datatype::Uint16 => copied::<u16>(value, datatype),
        Datatype::Uint32 => copied::<u32>(value, datatype),
        Datatype::Uint64 => copied::<u64>(value, datatype),
        Datatype::Int8 => copied::<i8>(value, datatype),
        Datatype::Int16 => copied::<i16>(value, datatype),
        Datatype::Int32 => copied::<i32>(value, datatype),
        Datatype::Int64 => copied::<i64>(value, datatype),
        Datatype::Fp16 => copied::<f16>(value, datatype),
        Datatype::Bf16 => copied::<bf16>(value, datatype),
        Datatype::Fp32 => copied::<f32>(value, datatype),
        Datatype::Fp64 => copied::<f64>(value, datatype),
        Datatype::Bytes => {
            let (dimensions, strings) = value.try_extract_strings().map_err(failed)?;
            Ok(Tensor { datatype, shape: shape(dimensions)?, data: Data::Strings(strings) })
        }
    }
}

fn numbers<'a, T>(shape: &'a [usize], bytes: &'a [u8]) -> Result<SessionInputValue<'a>, RunError>
where
    T: PrimitiveTensorElementType + AnyBitPattern + NoUninit + std::fmt::Debug,
{
    match bytemuck::try_cast_slice::<u8, T>(bytes) {
        Ok(elements) => TensorRef::from_array_view((shape, elements)).map(SessionInputValue::from),
        Err(_) => {
            OrtTensor::from_array((shape, bytemuck::pod_collect_to_vec::<u8, T>(bytes))).map(SessionInputValue::from)
        }
    }
    .map_err(failed)
}

fn booleans<'a>(shape: &'a [usize], bytes: &'a [u8]) -> Result<SessionInputValue<'a>, RunError> {
    let elements = bytemuck::checked::try_cast_slice::<u8, bool>(bytes)
        .map_err(|_| RunError::Refused("a BOOL element that is neither 0 nor 1".to_owned()))?;
    TensorRef::from_array_view((shape, elements)).map(SessionInputValue::from).map_err(failed)
}

fn copied<T: PrimitiveTensorElementType + NoUninit>(value: &DynValue, datatype: Datatype) -> Result<Tensor, RunError> {
    let (dimensions, elements) = value.try_extract_tensor::<T>().map_err(failed)?;
    let data = Data::Fixed(Bytes::copy_from_slice(bytemuck::cast_slice(elements)));
    Ok(Tensor { datatype, shape: shape(dimensions)?, data })
}

fn shape(dimensions: &[i64]) -> Result<Shape, RunError> {
    dimensions
        .iter()
        .map(|dimension| usize::try_from(*dimension))
        .collect::<Result<_, _>>()
        .map_err(|_| RunError::Failed("an output with a negative dimension".to_owned()))
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn failed(error: ort::Error) -> RunError {
    RunError::Failed(super::words::for_clients(error.message()))
}
