//! Tensors, as they travel between the protocols and the engine.
//!
//! Elements are kept as the bytes they have on the wire and in memory alike (little endian, row by row), so that a
//! tensor that came in binary is handed to the engine without being copied, and a batch is split without copying.
//! Strings are the exception: their engine representation is not flat.

use bytes::Bytes;
use ortolan_protocol::oip::Datatype;
use smallvec::SmallVec;

#[cfg(target_endian = "big")]
compile_error!("elements are passed between wire and memory as they are, which needs a little-endian machine");

/// Dimensions, outermost first.
pub type Shape = SmallVec<[usize; 4]>;

/// A tensor with its elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tensor {
    /// The type of the elements.
    pub datatype: Datatype,
    /// The dimensions.
    pub shape: Shape,
    /// The elements; as many as the shape says.
    pub data: Data,
}

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Data {
    /// Elements of fixed size, in little-endian byte order.
    Fixed(Bytes),
    /// The elements of a BYTES tensor.
    Strings(Vec<String>),
}

impl Tensor {
    /// The memory that the elements take, in bytes.
    pub fn byte_size(&self) -> usize {
        self.data.byte_size()
    }

    /// The first dimension; one for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// A tensor of zeros (empty strings for BYTES).
    pub fn zeros(datatype: Datatype, shape: Shape) -> Self {
        let count = element_count(&shape).unwrap_or_default();
        let data = match datatype.element_size() {
            Some(size) => Data::Fixed(Bytes::from(vec![0; count * size])),
            None => Data::Strings(vec![String::new(); count]),
        };
        Self { datatype, shape, data }
    }
}

impl Data {
    /// The memory that the elements take, in bytes.
    pub fn byte_size(&self) -> usize {
        match self {
            Self::Fixed(bytes) => bytes.len(),
            Self::Strings(strings) => strings.iter().map(|string| string.len() + size_of::<String>()).sum(),
        }
    }
}

/// The number of elements of a shape; `None` when it does not fit into memory.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |count, dimension| count.checked_mul(*dimension))
}

/// The shape for messages: `[1, 64]`.
pub fn display_shape<D: ToString>(shape: &[D]) -> String {
    format!("[{}]", shape.iter().map(D::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scalar_has_one_element_and_one_row() {
        let scalar = Tensor::zeros(Datatype::Fp32, Shape::new());
        assert_eq!((scalar.byte_size(), scalar.rows()), (4, 1));
    }

    #[test]
    fn an_overflowing_shape_has_no_element_count() {
        assert_eq!(element_count(&[usize::MAX, 2]), None);
        assert_eq!(element_count(&[usize::MAX, 0]), Some(0));
        assert_eq!(element_count(&[]), Some(1));
    }
}
