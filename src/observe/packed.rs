//! Objects as the watch caches keep them: JSON, compressed against earlier objects of the same kind.
//!
//! Ten thousand models have fifty thousand children, and a Deployment takes several KB as a Rust value: nearly all of it
//! empty options and text that is the same in every other Deployment. Packed it takes a few hundred bytes, whatever its
//! kind, and nothing of it is lost: what was rendered is still compared with all that is there. It is unpacked when its
//! model is reconciled; what is needed every second is kept beside it (see [`super::index::Child::Facts`]).
//!
//! The first object of a kind is often one that has just been made, and says little: no status, no addresses. So a few
//! objects that said more than all before serve as samples, too.

use std::sync::{Arc, PoisonError, RwLock};

use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde::{Serialize, de::DeserializeOwned};

/// The farthest that LZ4 looks back.
const LONGEST_DICTIONARY: usize = 60 * 1024;
/// Samples of a kind.
const MOST_SAMPLES: usize = 6;
/// An object that takes more than this part of its text is like no sample.
const ALIKE: f64 = 0.2;
/// How many times as long as the longest sample an object must be to say more.
const LONGER: f64 = 1.1;

/// Packs objects of one kind.
#[derive(Debug, Default)]
pub struct Packer {
    /// What the others are like; each stays for ever.
    samples: RwLock<Vec<Arc<[u8]>>>,
}

/// A packed object. Equal objects of one packer are equal packed, unless a sample was added between the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    sample: u8,
    bytes: Box<[u8]>,
}

/// An object that could not be packed or unpacked: a fault of this program, as nothing else ever holds packed bytes.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// No JSON can be made of the object, or no object of the JSON.
    #[error("an object of the watch cache is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The bytes are not those of a packed object.
    #[error("an object of the watch cache cannot be unpacked: {0}")]
    Bytes(#[from] lz4_flex::block::DecompressError),
}

impl Packer {
    /// A packer that has seen nothing yet.
    pub const fn new() -> Self {
        Self { samples: RwLock::new(Vec::new()) }
    }

    /// Packs an object.
    pub fn pack<T: Serialize>(&self, object: &T) -> Result<Packed, PackError> {
        let json = serde_json::to_vec(object)?;
        let samples = self.samples();
        let best = smallest(&json, &samples);
        let longest = samples.iter().map(|sample| sample.len()).max().unwrap_or_default();
        let says_more = samples.len() < MOST_SAMPLES && json.len() as f64 > LONGER * longest as f64;
        let is_alike = |packed: &Packed| packed.len() as f64 <= ALIKE * json.len() as f64;
        Ok(match best {
            Some(packed) if is_alike(&packed) || !says_more => packed,
            _ => smallest(&json, &self.add(&json)).unwrap_or_else(|| compressed(&json, 0, &[])),
        })
    }

    /// Unpacks an object that was packed here.
    pub fn unpack<T: DeserializeOwned>(&self, packed: &Packed) -> Result<T, PackError> {
        let samples = self.samples();
        let like = samples.get(usize::from(packed.sample)).map_or(&[][..], |sample| sample);
        Ok(serde_json::from_slice(&decompress_size_prepended_with_dict(&packed.bytes, like)?)?)
    }

    fn samples(&self) -> Vec<Arc<[u8]>> {
        self.samples.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a sample of an object, if there is room; all samples then.
    fn add(&self, json: &[u8]) -> Vec<Arc<[u8]>> {
        let mut samples = self.samples.write().unwrap_or_else(PoisonError::into_inner);
        if samples.len() < MOST_SAMPLES {
            samples.push(json[..json.len().min(LONGEST_DICTIONARY)].into());
        }
        samples.clone()
    }
}

fn smallest(json: &[u8], samples: &[Arc<[u8]>]) -> Option<Packed> {
    let packed = (0u8..).zip(samples).map(|(number, sample)| compressed(json, number, sample));
    packed.min_by_key(Packed::len)
}

fn compressed(json: &[u8], sample: u8, like: &[u8]) -> Packed {
    Packed { sample, bytes: compress_prepend_size_with_dict(json, like).into() }
}

impl Packed {
    /// The bytes that it takes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never so: even an empty object has its length.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(name: &str) -> Value {
        let probe = json!({"httpGet": {"path": "/readyz", "port": 9090}, "periodSeconds": 1, "timeoutSeconds": 2});
        let labels = json!({"ortolan.dev/model": name, "app.kubernetes.io/managed-by": "ortolan"});
        json!({"metadata": {"name": name, "labels": labels}, "spec": {"selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"args": ["serve", name],
            "livenessProbe": probe, "readinessProbe": probe, "name": "server"}]}}}})
    }

    proptest::proptest! {
        #[test]
        fn what_was_packed_is_unpacked_the_same(texts in proptest::collection::vec(".{0,200}", 1..8)) {
            let packer = Packer::new();
            let packed: Vec<_> = texts.iter().map(|text| packer.pack(text).unwrap()).collect();
            for (text, packed) in texts.iter().zip(&packed) {
                proptest::prop_assert_eq!(&packer.unpack::<String>(packed).unwrap(), text);
            }
            let again: Vec<_> = texts.iter().map(|text| packer.pack(text).unwrap()).collect();
            let once_more: Vec<_> = texts.iter().map(|text| packer.pack(text).unwrap()).collect();
            proptest::prop_assert_eq!(again, once_more, "equal objects are equal packed when the samples are there");
        }
    }

    #[test]
    fn an_object_like_the_first_takes_a_fraction_of_its_text() {
        let packer = Packer::new();
        packer.pack(&deployment("digits")).unwrap();
        let other = deployment("sentiment-of-reviews");
        let (plain, small) = (other.to_string().len(), packer.pack(&other).unwrap().len());
        assert!(small * 4 < plain, "{small} of {plain} bytes");
    }

    #[test]
    fn an_object_that_says_more_than_the_first_is_a_sample_for_those_after_it() {
        let packer = Packer::new();
        let told = |name: &str| {
            let mut told = deployment(name);
            let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Serving", "message": "requests are answered"});
            told["status"] = json!({"conditions": [condition("Ready"), condition("Available")], "url": format!("http://{name}.ml.svc"),
                "scaling": {"desired": 1, "reason": "there is no latency target: the number is fixed"}});
            told
        };
        packer.pack(&deployment("digits")).unwrap();
        packer.pack(&told("digits")).unwrap();
        let other = told("sentiment-of-reviews");
        let small = packer.pack(&other).unwrap();
        assert_eq!(packer.unpack::<Value>(&small).unwrap(), other);
        assert!(small.sample == 1 && small.len() * 5 < other.to_string().len(), "{small:?}");
        assert!(packer.samples().len() <= MOST_SAMPLES);
    }

    #[test]
    fn foreign_bytes_are_an_error() {
        let packer = Packer::new();
        assert!(packer.unpack::<Value>(&Packed { sample: 3, bytes: vec![1, 2, 3].into() }).is_err());
        assert!(packer.unpack::<u64>(&packer.pack(&"text").unwrap()).is_err());
    }
}
