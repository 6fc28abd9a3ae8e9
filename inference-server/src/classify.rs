//! The classification extension: of an output, the classes with the highest values, as `value:index` or
//! `value:index:label`.

use std::cmp::Ordering;

use half::{bf16, f16};
use ortolan_protocol::oip::Datatype;

use crate::engine::Outputs;
use crate::error::Error;
use crate::serving::Model;
use crate::tensor::{Data, Shape, Tensor};

/// The parameter of a requested output that asks for it.
pub const PARAMETER: &str = "classification";

/// How many classes a parameter asks for.
pub fn count(parameter: i128) -> Result<usize, Error> {
    usize::try_from(parameter).ok().filter(|count| *count > 0).ok_or_else(not_a_count)
}

/// The error for a parameter that is no count.
pub fn not_a_count() -> Error {
    Error::invalid(format!("the parameter {PARAMETER} must be the number of classes, at least 1"))
}

/// Puts classes in the place of a model's outputs for which a count is given; a count of 0, or none, leaves them.
/// `which`: the indices of the outputs.
pub fn tops(mut outputs: Vec<Tensor>, which: &Outputs, counts: &[usize], model: &Model) -> Result<Vec<Tensor>, Error> {
    for ((output, index), count) in outputs.iter_mut().zip(which).zip(counts).filter(|(_, count)| **count > 0) {
        *output = top(output, *count, model.has_rows, &model.signature.outputs[*index].labels)?;
    }
    Ok(outputs)
}

/// The `count` highest values of each row of a tensor (of all of it, where nothing counts rows), highest first; fewer
/// where there are no more. Equal values keep their order, and what is not a number comes last. The answer is a BYTES
/// tensor of shape `[rows, classes]`, or `[classes]`.
fn top(tensor: &Tensor, count: usize, has_rows: bool, labels: &[String]) -> Result<Tensor, Error> {
    let values = values(tensor)?;
    let (rows, width) = match tensor.shape.split_first() {
        Some((rows, row)) if has_rows => (*rows, row.iter().product()),
        _ => (1, values.len()),
    };
    let classes = count.min(width);
    let mut strings = Vec::with_capacity(rows * classes);
    let mut order: Vec<usize> = Vec::with_capacity(width);
    for row in 0..rows {
        let row = &values[row * width..(row + 1) * width];
        order.clear();
        order.extend(0..width);
        order.sort_by(|one, two| descending(row[*one], row[*two]));
        strings.extend(order.iter().take(classes).map(|index| match labels.get(*index) {
            Some(label) => format!("{}:{index}:{label}", row[*index]),
            None => format!("{}:{index}", row[*index]),
        }));
    }
    let shape = if has_rows { Shape::from_slice(&[rows, classes]) } else { Shape::from_slice(&[classes]) };
    Ok(Tensor { datatype: Datatype::Bytes, shape, data: Data::Strings(strings) })
}

fn descending(one: Value, two: Value) -> Ordering {
    match (one, two) {
        (Value::Integer(one), Value::Integer(two)) => two.cmp(&one),
        (Value::Number(one), Value::Number(two)) => {
            one.is_nan().cmp(&two.is_nan()).then(two.partial_cmp(&one).unwrap_or(Ordering::Equal))
        }
        // A tensor's values are all of one kind.
        _ => Ordering::Equal,
    }
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Integer(i128),
    Number(f64),
}

impl std::fmt::Display for Value {
    /// Numbers have six digits behind the point, as Triton writes them.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(integer) => write!(formatter, "{integer}"),
            Self::Number(number) => write!(formatter, "{number:.6}"),
        }
    }
}

fn read<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> Value) -> Vec<Value> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect()
}

fn values(tensor: &Tensor) -> Result<Vec<Value>, Error> {
    let Data::Fixed(bytes) = &tensor.data else {
        return Err(Error::invalid("classes can be told of outputs with numbers only, not of one with strings"));
    };
    Ok(match tensor.datatype {
        Datatype::Bool | Datatype::Uint8 => read(bytes, |bytes| Value::Integer(u8::from_le_bytes(bytes).into())),
        Datatype::Uint16 => read(bytes, |bytes| Value::Integer(u16::from_le_bytes(bytes).into())),
        Datatype::Uint32 => read(bytes, |bytes| Value::Integer(u32::from_le_bytes(bytes).into())),
        Datatype::Uint64 => read(bytes, |bytes| Value::Integer(u64::from_le_bytes(bytes).into())),
        Datatype::Int8 => read(bytes, |bytes| Value::Integer(i8::from_le_bytes(bytes).into())),
        Datatype::Int16 => read(bytes, |bytes| Value::Integer(i16::from_le_bytes(bytes).into())),
        Datatype::Int32 => read(bytes, |bytes| Value::Integer(i32::from_le_bytes(bytes).into())),
        Datatype::Int64 => read(bytes, |bytes| Value::Integer(i64::from_le_bytes(bytes).into())),
        Datatype::Fp16 => read(bytes, |bytes| Value::Number(f16::from_le_bytes(bytes).into())),
        Datatype::Bf16 => read(bytes, |bytes| Value::Number(bf16::from_le_bytes(bytes).into())),
        Datatype::Fp32 => read(bytes, |bytes| Value::Number(f32::from_le_bytes(bytes).into())),
        Datatype::Fp64 => read(bytes, |bytes| Value::Number(f64::from_le_bytes(bytes))),
        // Strings are not of fixed size.
        Datatype::Bytes => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn floats(shape: &[usize], numbers: &[f32]) -> Tensor {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Tensor { datatype: Datatype::Fp32, shape: Shape::from_slice(shape), data: Data::Fixed(Bytes::from(bytes)) }
    }

    fn strings(tensor: &Tensor) -> Vec<&str> {
        let Data::Strings(strings) = &tensor.data else { panic!("no strings") };
        strings.iter().map(String::as_str).collect()
    }

    #[test]
    fn each_row_has_its_highest_values_first() {
        let tensor = floats(&[2, 3], &[0.25, 0.5, 0.25, 1.0, -2.0, f32::NAN]);
        let classes = top(&tensor, 2, true, &[]).unwrap();
        assert_eq!((classes.shape.as_slice(), classes.datatype), (&[2, 2][..], Datatype::Bytes));
        assert_eq!(strings(&classes), ["0.500000:1", "0.250000:0", "1.000000:0", "-2.000000:1"]);
        let all = top(&tensor, 9, true, &[]).unwrap();
        assert_eq!(strings(&all)[3..], ["1.000000:0", "-2.000000:1", "NaN:2"]);
    }

    #[test]
    fn a_tensor_without_rows_is_one_list_and_one_of_integers_keeps_them_exact() {
        let numbers = [i64::MAX - 1, i64::MAX, -3];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let tensor =
            Tensor { datatype: Datatype::Int64, shape: Shape::from_slice(&[3]), data: Data::Fixed(Bytes::from(bytes)) };
        let classes = top(&tensor, 2, false, &["low".to_owned(), "high".to_owned()]).unwrap();
        assert_eq!(classes.shape.as_slice(), [2]);
        assert_eq!(strings(&classes), ["9223372036854775807:1:high", "9223372036854775806:0:low"]);
    }

    #[test]
    fn no_rows_have_no_classes_and_strings_none_at_all() {
        let none = top(&floats(&[0, 3], &[]), 2, true, &[]).unwrap();
        assert_eq!((none.shape.as_slice(), strings(&none).len()), (&[0, 2][..], 0));
        let words = Tensor::zeros(Datatype::Bytes, Shape::from_slice(&[1, 2]));
        assert!(top(&words, 1, true, &[]).unwrap_err().message().contains("numbers only"));
    }

    #[test]
    fn a_count_is_a_number_of_classes() {
        assert_eq!(count(3), Ok(3));
        assert!(count(0).is_err() && count(-1).is_err() && count(i128::from(u64::MAX) + 1).is_err());
    }
}
