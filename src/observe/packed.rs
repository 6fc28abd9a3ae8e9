//! Objects as the watch caches keep them: JSON, compressed against the first object of the same kind.
//!
//! Ten thousand models have fifty thousand children, and a Deployment takes several KB as a Rust value: nearly all of it
//! empty options and text that is the same in every other Deployment. Packed it takes a few hundred bytes, whatever its
//! kind, and nothing of it is lost: what was rendered is still compared with all that is there. It is unpacked when its
//! model is reconciled; what is needed every second is kept beside it (see [`super::index::Child::Facts`]).

use std::sync::OnceLock;

use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde::{Serialize, de::DeserializeOwned};

/// The farthest that LZ4 looks back.
const LONGEST_DICTIONARY: usize = 60 * 1024;

/// Packs objects of one kind.
#[derive(Debug, Default)]
pub struct Packer {
    /// What the others are like.
    first: OnceLock<Box<[u8]>>,
}

/// A packed object. Equal objects of one packer are equal packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

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
        Self { first: OnceLock::new() }
    }

    /// Packs an object.
    pub fn pack<T: Serialize>(&self, object: &T) -> Result<Packed, PackError> {
        let json = serde_json::to_vec(object)?;
        let like = self.first.get_or_init(|| json[..json.len().min(LONGEST_DICTIONARY)].into());
        Ok(Packed(compress_prepend_size_with_dict(&json, like).into()))
    }

    /// Unpacks an object that was packed here.
    pub fn unpack<T: DeserializeOwned>(&self, packed: &Packed) -> Result<T, PackError> {
        let like = self.first.get().map_or(&[][..], |first| first);
        Ok(serde_json::from_slice(&decompress_size_prepended_with_dict(&packed.0, like)?)?)
    }
}

impl Packed {
    /// The bytes that it takes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never so: even an empty object has its length.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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
                proptest::prop_assert_eq!(&packer.pack(text).unwrap(), packed, "equal objects are equal packed");
            }
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
    fn foreign_bytes_are_an_error() {
        let packer = Packer::new();
        assert!(packer.unpack::<Value>(&Packed(vec![1, 2, 3].into())).is_err());
        assert!(packer.unpack::<u64>(&packer.pack(&"text").unwrap()).is_err());
    }
}
