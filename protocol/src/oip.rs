//! The Open Inference Protocol, version 2, over REST: the JSON that clients send and get.
//!
//! Requests borrow from the body, and a tensor's `data` stays unparsed text until its data type is known (the type may
//! stand behind the data). Answers with tensors are written by the server, which can stream numbers without building
//! a tree; their head is here.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The header that says how many bytes of the body are JSON when binary tensors follow it.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// Our header for a request's time budget in milliseconds, counted from its arrival.
pub const TIMEOUT_HEADER: &str = "ortolan-timeout-ms";

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)] // the names say it
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// Byte strings of any length.
    Bytes,
}

impl Datatype {
    /// All data types of the protocol.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The name as it stands in requests and metadata.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The data type of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.as_str() == name)
    }

    /// The bytes of one element; `None` for [`Datatype::Bytes`], whose elements differ in length.
    pub const fn element_size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// `GET /v2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    /// The server's name.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// The extensions of the protocol that it speaks.
    pub extensions: Vec<String>,
}

/// `GET /v2/health/live`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Whether the server runs.
    pub live: bool,
}

/// `GET /v2/health/ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Whether the server answers inference requests.
    pub ready: bool,
}

/// `GET /v2/models/M/ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelReady {
    /// The model's name.
    pub name: String,
    /// Whether the model answers inference requests.
    pub ready: bool,
}

/// `GET /v2/models`. The specification leaves it open; this form is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// The models, each by its name.
    pub models: Vec<ModelName>,
}

/// One entry of a [`ModelList`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelName {
    /// The model's name.
    pub name: String,
}

/// `POST /v2/repository/index`, as Triton's clients send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct IndexRequest {
    /// Only models that are ready.
    #[serde(default, deserialize_with = "or_default")]
    pub ready: bool,
}

/// `GET /v2/models/M`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// The model's name.
    pub name: String,
    /// The versions that can be asked for.
    pub versions: Vec<String>,
    /// Framework and format, for people.
    pub platform: String,
    /// What the model takes.
    pub inputs: Vec<TensorMetadata>,
    /// What the model gives.
    pub outputs: Vec<TensorMetadata>,
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    /// The tensor's name.
    pub name: String,
    /// The type of its elements.
    pub datatype: Datatype,
    /// Its dimensions; -1 for one of any size.
    pub shape: Vec<i64>,
}

/// The body of every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody<'a> {
    /// What was expected and what came.
    #[serde(borrow)]
    pub error: Cow<'a, str>,
}

/// Named settings of a request, an input or an output.
pub type Parameters = BTreeMap<String, Parameter>;

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)] // the names say it
pub enum Parameter {
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    Number(f64),
    Text(String),
    /// Some clients put whole objects here; they are carried, not understood.
    Other(serde_json::Value),
}

/// `POST /v2/models/M/infer`.
#[derive(Debug, Deserialize)]
pub struct InferRequest<'a> {
    /// The client's name for the request, given back in the answer.
    #[serde(borrow, default)]
    pub id: Option<Cow<'a, str>>,
    /// Settings; those we do not know are ignored.
    #[serde(default, deserialize_with = "or_default")]
    pub parameters: Parameters,
    /// The input tensors.
    #[serde(borrow)]
    pub inputs: Vec<InferInput<'a>>,
    /// The outputs that are wanted; absent or empty: all.
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub outputs: Vec<RequestedOutput<'a>>,
}

/// One input tensor of a request.
#[derive(Debug, Deserialize)]
pub struct InferInput<'a> {
    /// The tensor's name.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// Its dimensions.
    pub shape: Vec<i64>,
    /// The name of its data type, unchecked.
    #[serde(borrow)]
    pub datatype: Cow<'a, str>,
    /// `binary_data_size` when the elements come behind the JSON.
    #[serde(default, deserialize_with = "or_default")]
    pub parameters: Parameters,
    /// The elements, row by row, nested or flat.
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
}

/// One output that a request asks for.
#[derive(Debug, Deserialize)]
pub struct RequestedOutput<'a> {
    /// The tensor's name.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// `binary_data` when the elements shall come behind the JSON.
    #[serde(default, deserialize_with = "or_default")]
    pub parameters: Parameters,
}

/// Reads `null` as absent: several clients write out every field.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_data_type_is_found_by_its_name_and_travels_by_it() {
        for datatype in Datatype::ALL {
            assert_eq!(Datatype::from_name(datatype.as_str()), Some(datatype));
            assert_eq!(serde_json::to_string(&datatype).unwrap(), format!("\"{datatype}\""));
        }
        assert_eq!(Datatype::from_name("fp32"), None);
    }

    #[test]
    fn a_request_keeps_its_data_as_text_until_the_type_is_known() {
        let request: InferRequest<'_> = serde_json::from_str(
            r#"{"id":"7","inputs":[{"data":[[1,2.5]],"name":"x","shape":[1,2],"datatype":"FP32"}],"unknown":{}}"#,
        )
        .unwrap();
        assert_eq!(request.inputs[0].data.unwrap().get(), "[[1,2.5]]");
        assert!(request.outputs.is_empty());
    }

    #[test]
    fn null_is_absent_wherever_a_field_may_be_absent() {
        let request: InferRequest<'_> = serde_json::from_str(
            r#"{"id":null,"parameters":null,"outputs":null,
                "inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"a":null,"b":{"c":[]}},"data":[1]}]}"#,
        )
        .unwrap();
        assert_eq!((request.id, request.outputs.len(), request.inputs[0].parameters.len()), (None, 0, 2));
    }

    #[test]
    fn parameters_keep_their_kind() {
        let parameters: Parameters =
            serde_json::from_str(r#"{"a":true,"b":-3,"c":18446744073709551615,"d":0.5,"e":"x"}"#).unwrap();
        assert_eq!(
            parameters.into_values().collect::<Vec<_>>(),
            [
                Parameter::Bool(true),
                Parameter::Integer(-3),
                Parameter::Unsigned(u64::MAX),
                Parameter::Number(0.5),
                Parameter::Text("x".to_owned())
            ]
        );
    }
}
