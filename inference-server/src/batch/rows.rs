//! Joining the tensors of several requests along the first dimension, and taking the answers apart again.

use bytes::Bytes;

use crate::tensor::{Data, Shape, Tensor};

/// Joins tensors of equal type and trailing shape, row after row. `None` when there are none or they do not fit.
pub(super) fn join(parts: &[&Tensor]) -> Option<Tensor> {
    let first = parts.first()?;
    let trailing = first.shape.get(1..)?;
    if parts.iter().any(|part| part.datatype != first.datatype || part.shape.get(1..) != Some(trailing)) {
        return None;
    }
    let mut shape = Shape::from_slice(&first.shape);
    shape[0] = parts.iter().map(|part| part.rows()).sum();
    let data = match &first.data {
        Data::Fixed(_) => {
            let mut joined = Vec::with_capacity(parts.iter().map(|part| part.byte_size()).sum());
            for part in parts {
                let Data::Fixed(bytes) = &part.data else { return None };
                joined.extend_from_slice(bytes);
            }
            Data::Fixed(Bytes::from(joined))
        }
        Data::Strings(_) => {
            let mut joined = Vec::new();
            for part in parts {
                let Data::Strings(strings) = &part.data else { return None };
                joined.extend_from_slice(strings);
            }
            Data::Strings(joined)
        }
    };
    Some(Tensor { datatype: first.datatype, shape, data })
}

/// Takes a tensor apart into pieces of so many rows each. `None` when the rows do not add up to the tensor's.
pub(super) fn split(tensor: Tensor, rows: &[usize]) -> Option<Vec<Tensor>> {
    let total = *tensor.shape.first()?;
    if rows.iter().sum::<usize>() != total {
        return None;
    }
    let piece_shape = |rows: usize| {
        let mut shape = tensor.shape.clone();
        shape[0] = rows;
        shape
    };
    let datatype = tensor.datatype;
    match tensor.data {
        Data::Fixed(bytes) => {
            let row_size = bytes.len().checked_div(total).unwrap_or(0);
            let mut start = 0;
            Some(
                rows.iter()
                    .map(|rows| {
                        let end = start + rows * row_size;
                        let data = Data::Fixed(bytes.slice(start..end));
                        start = end;
                        Tensor { datatype, shape: piece_shape(*rows), data }
                    })
                    .collect(),
            )
        }
        Data::Strings(strings) => {
            let row_size = strings.len().checked_div(total).unwrap_or(0);
            let mut strings = strings.into_iter();
            Some(
                rows.iter()
                    .map(|rows| {
                        let data = Data::Strings(strings.by_ref().take(rows * row_size).collect());
                        Tensor { datatype, shape: piece_shape(*rows), data }
                    })
                    .collect(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use ortolan_protocol::oip::Datatype;
    use proptest::prelude::*;

    use super::*;

    /// Requests of some rows each, which share trailing dimensions and type, with elements that are all different.
    fn requests() -> impl Strategy<Value = Vec<Tensor>> {
        let datatype = prop::sample::select(Datatype::ALL.to_vec());
        let rows = prop::collection::vec(0_usize..5, 1..6);
        let trailing = prop::collection::vec(0_usize..4, 0..3);
        (datatype, rows, trailing).prop_map(|(datatype, rows, trailing)| {
            let mut counter = 0_u64;
            rows.into_iter()
                .map(|rows| {
                    let shape: Shape = std::iter::once(rows).chain(trailing.iter().copied()).collect();
                    let count: usize = shape.iter().product();
                    let mut next = || {
                        counter += 1;
                        counter
                    };
                    let data = match datatype.element_size() {
                        Some(size) => {
                            Data::Fixed((0..count).flat_map(|_| next().to_le_bytes()[..size].to_vec()).collect())
                        }
                        None => Data::Strings((0..count).map(|_| next().to_string()).collect()),
                    };
                    Tensor { datatype, shape, data }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_joined_and_split_again_is_what_it_was(requests in requests()) {
            let rows: Vec<usize> = requests.iter().map(Tensor::rows).collect();
            let joined = join(&requests.iter().collect::<Vec<_>>()).unwrap();
            prop_assert_eq!(joined.rows(), rows.iter().sum::<usize>());
            prop_assert_eq!(joined.byte_size(), requests.iter().map(Tensor::byte_size).sum::<usize>());
            prop_assert_eq!(split(joined, &rows).unwrap(), requests);
        }

        #[test]
        fn rows_that_do_not_add_up_are_not_split(requests in requests(), surplus in 1_usize..3) {
            let mut rows: Vec<usize> = requests.iter().map(Tensor::rows).collect();
            let joined = join(&requests.iter().collect::<Vec<_>>()).unwrap();
            rows[0] += surplus;
            prop_assert!(split(joined, &rows).is_none());
        }
    }

    #[test]
    fn tensors_that_differ_in_trailing_shape_or_type_are_not_joined() {
        let shape = |dimensions: &[usize]| Shape::from_slice(dimensions);
        let one = Tensor::zeros(Datatype::Fp32, shape(&[1, 2]));
        for other in [
            Tensor::zeros(Datatype::Fp32, shape(&[1, 3])),
            Tensor::zeros(Datatype::Fp32, shape(&[1])),
            Tensor::zeros(Datatype::Fp32, shape(&[])),
            Tensor::zeros(Datatype::Int32, shape(&[1, 2])),
        ] {
            assert_eq!(join(&[&one, &other]), None, "{:?}", other.shape);
        }
        assert_eq!(join(&[]), None);
    }

    #[test]
    fn a_scalar_is_not_split() {
        assert_eq!(split(Tensor::zeros(Datatype::Fp32, Shape::new()), &[1]), None);
    }
}
