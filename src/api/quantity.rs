//! Kubernetes' quantity (`500m`, `2`, `512Mi`) as a field of our own schema.
//!
//! The text is kept as the user wrote it; what it means is compared by [`Quantity::same_amount`], since the API server
//! writes quantities in another form than they came in.

use std::borrow::Cow;

use kube_quantity::ParsedQuantity;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// An amount as Kubernetes writes it. A whole number without quotes is accepted as well.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl Quantity {
    /// Whether two texts mean the same amount: `1000m` and `1`.
    pub fn same_amount(left: &str, right: &str) -> bool {
        match (ParsedQuantity::try_from(left), ParsedQuantity::try_from(right)) {
            (Ok(left), Ok(right)) => left == right,
            _ => false,
        }
    }

    /// The amount as a number of bytes, at most 1 PiB; `None` where the text is no such amount.
    pub fn bytes(&self) -> Option<u64> {
        let bytes = ParsedQuantity::try_from(self.0.as_str()).ok()?.to_bytes_f64()?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 1 and 2^50
        (1.0..=1_125_899_906_842_624.0).contains(&bytes).then_some(bytes as u64)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(i64),
            String(String),
        }
        Ok(Self(match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(text) => text,
        }))
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_what_is_an_amount_of_memory() {
        let bytes = |text: &str| Quantity(text.to_owned()).bytes();
        for (text, expected) in [("64Mi", 64 << 20), ("1.5Gi", 3 << 29), ("1M", 1_000_000), ("12", 12), ("1e3", 1000)] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "much", "-1", "0", "1m", "2Pi", "64 Mi"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn the_same_amount_has_several_spellings() {
        for (left, right) in [("1000m", "1"), ("1Gi", "1024Mi"), ("0.5", "500m"), ("2", "2"), ("1e3", "1k")] {
            assert!(Quantity::same_amount(left, right), "{left} and {right}");
        }
        for (left, right) in [("1", "2"), ("1Gi", "1G"), ("1", "one"), ("", "")] {
            assert!(!Quantity::same_amount(left, right), "{left} and {right}");
        }
    }

    #[test]
    fn a_number_without_quotes_is_a_quantity() {
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap(), Quantity("2".into()));
        assert_eq!(serde_json::from_str::<Quantity>("\"512Mi\"").unwrap(), Quantity("512Mi".into()));
    }
}
