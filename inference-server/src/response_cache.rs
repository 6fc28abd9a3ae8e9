//! Answers to requests that came before with exactly the same inputs and wanted outputs.
//!
//! Off by default: it pays for models that are asked the same again and again, and is wrong for models that answer
//! differently each time.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::batch::Request;
use crate::engine::Outputs;
use crate::tensor::{Data, Tensor};

/// What an entry takes besides its elements, in bytes.
const ENTRY: usize = 256;

/// Answers by request, as many as fit into a number of bytes; those that are not asked for make room for new ones.
pub struct ResponseCache {
    entries: Cache<Key, Arc<Vec<Tensor>>, ByBytes>,
}

/// A request as far as its answer depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    inputs: Vec<Tensor>,
    outputs: Outputs,
}

impl ResponseCache {
    /// An empty cache for so many bytes of inputs and outputs.
    pub fn new(bytes: usize) -> Self {
        let expected = (bytes / 1024).clamp(16, 65_536);
        Self { entries: Cache::with_weighter(expected, bytes as u64, ByBytes) }
    }

    /// The answer to a request, or the key to keep it under once it is known.
    pub fn get(&self, request: &Request) -> Result<Vec<Tensor>, Key> {
        let key = Key { inputs: request.inputs.clone(), outputs: request.outputs.clone() };
        match self.entries.get(&key) {
            Some(answer) => Ok(answer.as_ref().clone()),
            None => Err(key),
        }
    }

    /// Keeps an answer.
    pub fn put(&self, key: Key, answer: &[Tensor]) {
        // What came with a body and what was split off a batch would keep all of them in memory.
        let alone = |tensors: &[Tensor]| tensors.iter().map(copied).collect();
        let key = Key { inputs: alone(&key.inputs), outputs: key.outputs };
        self.entries.insert(key, Arc::new(alone(answer)));
    }

    /// The bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.entries.weight()
    }
}

fn copied(tensor: &Tensor) -> Tensor {
    let data = match &tensor.data {
        Data::Fixed(bytes) => Data::Fixed(Bytes::copy_from_slice(bytes)),
        Data::Strings(strings) => Data::Strings(strings.clone()),
    };
    Tensor { datatype: tensor.datatype, shape: tensor.shape.clone(), data }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<Vec<Tensor>>> for ByBytes {
    fn weight(&self, key: &Key, answer: &Arc<Vec<Tensor>>) -> u64 {
        let elements = key.inputs.iter().chain(answer.iter()).map(Tensor::byte_size).sum::<usize>();
        (ENTRY + elements) as u64
    }
}

#[cfg(test)]
mod tests {
    use ortolan_protocol::oip::Datatype;
    use smallvec::smallvec;

    use super::*;
    use crate::tensor::Shape;

    fn tensor(shape: &[usize], bytes: &[u8]) -> Tensor {
        let data = Data::Fixed(Bytes::copy_from_slice(bytes));
        Tensor { datatype: Datatype::Uint8, shape: Shape::from_slice(shape), data }
    }

    fn request(shape: &[usize], bytes: &[u8], output: usize) -> Request {
        Request { inputs: vec![tensor(shape, bytes)], outputs: smallvec![output], rows: shape[0], deadline: None }
    }

    #[test]
    fn only_the_very_same_request_has_the_answer() {
        let cache = ResponseCache::new(1 << 20);
        let asked = request(&[1, 4], &[1, 2, 3, 4], 0);
        let key = cache.get(&asked).unwrap_err();
        cache.put(key, &[tensor(&[1], &[7])]);
        assert_eq!(cache.get(&asked).unwrap(), [tensor(&[1], &[7])]);
        for other in
            [request(&[1, 4], &[1, 2, 3, 5], 0), request(&[2, 2], &[1, 2, 3, 4], 0), request(&[1, 4], &[1, 2, 3, 4], 1)]
        {
            assert!(cache.get(&other).is_err());
        }
    }

    #[test]
    fn it_never_holds_more_than_it_may() {
        const BYTES: usize = 64 << 10;
        let cache = ResponseCache::new(BYTES);
        for number in 0..10_000_u32 {
            let key = cache.get(&request(&[1, 4], &number.to_le_bytes(), 0)).unwrap_err();
            cache.put(key, &[tensor(&[1, 100], &[0; 100])]);
            assert!(cache.bytes() <= BYTES as u64);
        }
        assert!(cache.bytes() > BYTES as u64 / 2);
        let huge = request(&[1, 1 << 20], &vec![0; 1 << 20], 0);
        let key = cache.get(&huge).unwrap_err();
        cache.put(key, &[]);
        assert!(cache.get(&huge).is_err() && cache.bytes() <= BYTES as u64);
    }

    #[test]
    fn what_is_kept_does_not_hold_what_it_was_cut_from() {
        let whole = Bytes::from(vec![1; 1000]);
        let part = Tensor { data: Data::Fixed(whole.slice(10..14)), ..tensor(&[1, 4], &[]) };
        let Data::Fixed(copy) = copied(&part).data else { panic!("no bytes") };
        assert!(copy.is_unique() && copy == [1; 4][..]);
    }
}
