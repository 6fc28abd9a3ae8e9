//! Writes answers as TensorFlow Serving does: nested lists, by row or by column.

use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use ortolan_protocol::oip::Datatype;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use crate::engine::TensorSpec;
use crate::error::{Error, ErrorKind};
use crate::http::answer::Elements;
use crate::http::content;
use crate::tensor::{Data, Shape, Tensor, display_shape};

/// `{"outputs": …}`: the only output, or all by name.
pub(super) fn columns<'t>(outputs: impl Iterator<Item = (&'t TensorSpec, &'t Tensor)>) -> Result<Response, Error> {
    let outputs: Vec<(&str, Tensor)> = outputs.map(|(spec, tensor)| (spec.name.as_str(), widened(tensor))).collect();
    match outputs.as_slice() {
        [(_, tensor)] => written("outputs", &Nested(tensor)),
        outputs => written("outputs", &Named(outputs.iter().map(|(name, tensor)| (*name, Nested(tensor))).collect())),
    }
}

/// `{"predictions": […]}`: a value for each instance, or an object of them.
pub(super) fn rows<'t>(
    outputs: impl Iterator<Item = (&'t TensorSpec, &'t Tensor)>,
    rows: usize,
) -> Result<Response, Error> {
    let mut named: Vec<(&str, Vec<Tensor>)> = Vec::new();
    for (spec, tensor) in outputs {
        named.push((&spec.name, split(spec, tensor, rows)?));
    }
    if let [(_, only)] = named.as_slice() {
        return written("predictions", &only.iter().map(Nested).collect::<Vec<_>>());
    }
    let row = |row: usize| Named(named.iter().map(|(name, rows)| (*name, Nested(&rows[row]))).collect());
    written("predictions", &(0..rows).map(row).collect::<Vec<_>>())
}

/// `{"results": [[["label", score], …], …]}`: the classes of each example with their scores. Scores are the first output
/// that has several numbers with a fraction for each row; classes are named by the model's names for them, or by their index.
pub(super) fn classes<'t>(
    outputs: impl Iterator<Item = (&'t TensorSpec, &'t Tensor)>,
    rows: usize,
) -> Result<Response, Error> {
    let (spec, tensor) = fractional(outputs, |tensor| tensor.shape.len() == 2)
        .ok_or_else(|| Error::invalid("the model has no output of scores by class, so that it cannot classify"))?;
    let rows = split(spec, &tensor, rows)?;
    let classes = |row: &Tensor| -> Vec<(String, Nested<Tensor>)> {
        let scores = row.shape.first().copied().unwrap_or(1);
        let label = |class: usize| spec.labels.get(class).cloned().unwrap_or_else(|| class.to_string());
        (0..scores).map(|class| (label(class), Nested(piece(row, class, Shape::new())))).collect()
    };
    written("results", &rows.iter().map(classes).collect::<Vec<_>>())
}

/// `{"results": […]}`: one number for each example, out of the first output that has so many.
pub(super) fn values<'t>(
    outputs: impl Iterator<Item = (&'t TensorSpec, &'t Tensor)>,
    rows: usize,
) -> Result<Response, Error> {
    let is_one_each = |tensor: &Tensor| tensor.shape.iter().product::<usize>() == rows && tensor.rows() == rows;
    let (_, tensor) = fractional(outputs, is_one_each).ok_or_else(|| {
        Error::invalid("the model has no output with one number for each example, so that it cannot regress")
    })?;
    written("results", &Elements(&tensor))
}

/// The first output of numbers with a fraction that is as wanted, with numbers that JSON can hold.
fn fractional<'t>(
    mut outputs: impl Iterator<Item = (&'t TensorSpec, &'t Tensor)>,
    is_wanted: impl Fn(&Tensor) -> bool,
) -> Option<(&'t TensorSpec, Tensor)> {
    let is_fractional =
        |datatype| matches!(datatype, Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64);
    outputs
        .find(|(_, tensor)| is_fractional(tensor.datatype) && is_wanted(tensor))
        .map(|(spec, tensor)| (spec, widened(tensor)))
}

/// A tensor's rows, which must be as many as came in.
fn split(spec: &TensorSpec, tensor: &Tensor, rows: usize) -> Result<Vec<Tensor>, Error> {
    match tensor.shape.split_first() {
        Some((first, row)) if *first == rows => {
            let tensor = widened(tensor);
            Ok((0..rows).map(|index| piece(&tensor, index, Shape::from_slice(row))).collect())
        }
        _ => Err(Error::invalid(format!(
            "output '{}' has shape {}, which does not split into {rows} rows; ask by column (inputs)",
            spec.name,
            display_shape(&tensor.shape)
        ))),
    }
}

/// The part of a tensor with that shape, of which `index` others stand before.
fn piece(tensor: &Tensor, index: usize, shape: Shape) -> Tensor {
    let count: usize = shape.iter().product();
    let range = index * count..(index + 1) * count;
    let data = match &tensor.data {
        Data::Fixed(bytes) => {
            let size = tensor.datatype.element_size().unwrap_or(1);
            Data::Fixed(bytes.slice(range.start * size..range.end * size))
        }
        Data::Strings(strings) => Data::Strings(strings[range].to_vec()),
    };
    Tensor { datatype: tensor.datatype, shape, data }
}

/// The same numbers in a type that JSON can hold.
fn widened(tensor: &Tensor) -> Tensor {
    let wide: fn([u8; 2]) -> f32 = match tensor.datatype {
        Datatype::Fp16 => |bytes| f16::from_le_bytes(bytes).to_f32(),
        Datatype::Bf16 => |bytes| bf16::from_le_bytes(bytes).to_f32(),
        _ => return tensor.clone(),
    };
    let narrow = match &tensor.data {
        Data::Fixed(bytes) => bytes.clone(),
        Data::Strings(_) => Bytes::new(),
    };
    let mut bytes = BytesMut::with_capacity(2 * narrow.len());
    narrow.as_chunks::<2>().0.iter().for_each(|number| bytes.put_f32_le(wide(*number)));
    Tensor { datatype: Datatype::Fp32, shape: tensor.shape.clone(), data: Data::Fixed(bytes.freeze()) }
}

fn written(key: &str, value: &impl Serialize) -> Result<Response, Error> {
    let mut body = Vec::with_capacity(256);
    serde_json::to_writer(&mut body, &Named(vec![(key, value)]))
        .map_err(|error| Error::new(ErrorKind::Internal, format!("the answer cannot be written: {error}")))?;
    Ok((content("application/json"), body).into_response())
}

/// An object with its keys in that order.
struct Named<'n, V>(Vec<(&'n str, V)>);

impl<V: Serialize> Serialize for Named<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A tensor as lists in lists; a scalar as its only element.
struct Nested<T: std::borrow::Borrow<Tensor>>(T);

impl<T: std::borrow::Borrow<Tensor>> Serialize for Nested<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tensor = self.0.borrow();
        match tensor.shape.as_slice() {
            [] => Elements(tensor).serialize_only(serializer),
            [_] => Elements(tensor).serialize(serializer),
            [length, inner @ ..] => {
                let mut sequence = serializer.serialize_seq(Some(*length))?;
                for index in 0..*length {
                    sequence.serialize_element(&Nested(piece(tensor, index, Shape::from_slice(inner))))?;
                }
                sequence.end()
            }
        }
    }
}
