//! Takes `ZipMap` out of a model.
//!
//! Classifiers that are converted from scikit-learn end in that operator by default: it turns the matrix of
//! probabilities into a list of maps from class to probability, which no client of the protocol can be given, and takes
//! longer than the classifier. Here it is replaced by one that hands the matrix on under the same name; the names of the
//! classes are kept.
//!
//! Works on the protobuf's bytes, and copies all that it does not know as it is.

use std::ops::Range;

use super::Labels;
use super::protobuf::{put, put_number, varint};

/// The message types of the ONNX format are given by what their fields hold; the numbers are those of onnx.proto.
const MODEL_GRAPH: u64 = 7;
const GRAPH_NODE: u64 = 1;
const GRAPH_OUTPUT: u64 = 12;
const GRAPH_VALUE_INFO: u64 = 13;
const NODE_INPUT: u64 = 1;
const NODE_OUTPUT: u64 = 2;
const NODE_OP_TYPE: u64 = 4;
const NODE_ATTRIBUTE: u64 = 5;
const NODE_DOMAIN: u64 = 7;
const ATTRIBUTE_NAME: u64 = 1;
const ATTRIBUTE_INTS: u64 = 8;
const ATTRIBUTE_STRINGS: u64 = 9;
const VALUE_NAME: u64 = 1;

/// The operator, and where it comes from.
pub(super) const OPERATOR: &[u8] = b"ZipMap";
const DOMAIN: &[u8] = b"ai.onnx.ml";

/// A model without the operator, and the names of the classes by output. `None`: there is nothing to replace, or the bytes
/// are not those of a model.
pub(super) fn replaced(model: &[u8]) -> Option<(Vec<u8>, Labels)> {
    let graph = fields(model)?.into_iter().find(|field| field.number == MODEL_GRAPH)?;
    let parts = fields(graph.bytes(model))?;
    let graph_bytes = graph.bytes(model);
    let maps: Vec<ZipMap<'_>> = parts
        .iter()
        .filter(|part| part.number == GRAPH_NODE)
        .filter_map(|part| ZipMap::read(part.bytes(graph_bytes)))
        .filter(|map| is_only_output(&parts, graph_bytes, map.output))
        .collect();
    if maps.is_empty() {
        return None;
    }
    let mut rewritten = Vec::with_capacity(graph_bytes.len());
    for part in &parts {
        let bytes = part.bytes(graph_bytes);
        match part.number {
            GRAPH_NODE => match ZipMap::read(bytes).filter(|map| maps.iter().any(|known| known.output == map.output)) {
                Some(map) => put(&mut rewritten, GRAPH_NODE, &map.identity()),
                None => rewritten.extend_from_slice(&graph_bytes[part.whole.clone()]),
            },
            GRAPH_OUTPUT | GRAPH_VALUE_INFO => {
                match maps.iter().find(|map| text(bytes, VALUE_NAME) == Some(map.output)) {
                    Some(map) if part.number == GRAPH_OUTPUT => put(&mut rewritten, GRAPH_OUTPUT, &map.value_info()),
                    Some(_) => {}
                    None => rewritten.extend_from_slice(&graph_bytes[part.whole.clone()]),
                }
            }
            _ => rewritten.extend_from_slice(&graph_bytes[part.whole.clone()]),
        }
    }
    let mut whole = Vec::with_capacity(model.len());
    whole.extend_from_slice(&model[..graph.whole.start]);
    put(&mut whole, MODEL_GRAPH, &rewritten);
    whole.extend_from_slice(&model[graph.whole.end..]);
    let labels = maps.into_iter().map(|map| (String::from_utf8_lossy(map.output).into_owned(), map.labels)).collect();
    Some((whole, labels))
}

/// Whether a value is an output of the graph, and no operator takes it.
fn is_only_output(parts: &[Field], graph: &[u8], name: &[u8]) -> bool {
    let is_output =
        parts.iter().any(|part| part.number == GRAPH_OUTPUT && text(part.bytes(graph), VALUE_NAME) == Some(name));
    let takes = |node: &[u8]| {
        fields(node)
            .is_none_or(|fields| fields.iter().any(|field| field.number == NODE_INPUT && field.bytes(node) == name))
    };
    is_output && !parts.iter().any(|part| part.number == GRAPH_NODE && takes(part.bytes(graph)))
}

/// The operator with what it is given.
struct ZipMap<'m> {
    input: &'m [u8],
    output: &'m [u8],
    labels: Vec<String>,
}

impl<'m> ZipMap<'m> {
    fn read(node: &'m [u8]) -> Option<Self> {
        let is_it = text(node, NODE_OP_TYPE) == Some(OPERATOR) && text(node, NODE_DOMAIN) == Some(DOMAIN);
        if !is_it {
            return None;
        }
        let mut attributes = fields(node)?.into_iter().filter(|field| field.number == NODE_ATTRIBUTE);
        let labels = attributes.find_map(|attribute| labels(attribute.bytes(node)))?;
        Some(Self { input: text(node, NODE_INPUT)?, output: text(node, NODE_OUTPUT)?, labels })
    }

    /// `Identity` with the same input and output.
    fn identity(&self) -> Vec<u8> {
        let mut node = Vec::new();
        put(&mut node, NODE_INPUT, self.input);
        put(&mut node, NODE_OUTPUT, self.output);
        put(&mut node, NODE_OP_TYPE, b"Identity");
        node
    }

    /// The output as a FP32 tensor of shape `[rows, classes]`.
    fn value_info(&self) -> Vec<u8> {
        let mut classes = Vec::new();
        put_number(&mut classes, 1, self.labels.len() as u64);
        let mut shape = Vec::new();
        put(&mut shape, 1, &[]);
        put(&mut shape, 1, &classes);
        let mut tensor = Vec::new();
        put_number(&mut tensor, 1, 1);
        put(&mut tensor, 2, &shape);
        let mut kind = Vec::new();
        put(&mut kind, 1, &tensor);
        let mut value = Vec::new();
        put(&mut value, VALUE_NAME, self.output);
        put(&mut value, 2, &kind);
        value
    }
}

/// The names of classes in an attribute, if it holds them.
fn labels(attribute: &[u8]) -> Option<Vec<String>> {
    let name = text(attribute, ATTRIBUTE_NAME)?;
    let values = fields(attribute)?;
    let mut labels = Vec::new();
    match name {
        b"classlabels_strings" => {
            for value in values.iter().filter(|value| value.number == ATTRIBUTE_STRINGS) {
                labels.push(String::from_utf8_lossy(value.bytes(attribute)).into_owned());
            }
        }
        b"classlabels_int64s" => {
            for value in values.iter().filter(|value| value.number == ATTRIBUTE_INTS) {
                // One number, or several packed.
                let mut bytes = value.bytes(attribute);
                while !bytes.is_empty() {
                    labels.push(varint(&mut bytes).ok()?.0.cast_signed().to_string());
                }
            }
        }
        _ => return None,
    }
    (!labels.is_empty()).then_some(labels)
}

/// One field of a message.
struct Field {
    number: u64,
    /// With its tag.
    whole: Range<usize>,
    /// The number itself for a varint, what is inside for the others.
    value: Range<usize>,
}

impl Field {
    fn bytes<'m>(&self, message: &'m [u8]) -> &'m [u8] {
        &message[self.value.clone()]
    }
}

/// The fields of a message in their order; `None` when it is none.
fn fields(message: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = message.len() - rest.len();
        let tag = varint(&mut rest).ok()?.0;
        let mut from = message.len() - rest.len();
        let length = match tag & 7 {
            0 => {
                varint(&mut rest).ok()?;
                message.len() - rest.len() - from
            }
            1 => 8,
            2 => {
                let length = usize::try_from(varint(&mut rest).ok()?.0).ok()?;
                from = message.len() - rest.len();
                length
            }
            5 => 4,
            _ => return None,
        };
        let end = from.checked_add(length)?;
        rest = message.get(end..)?;
        fields.push(Field { number: tag >> 3, whole: start..end, value: from..end });
    }
    Some(fields)
}

/// The first field of that number.
fn text(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message)?.into_iter().find(|field| field.number == number).map(|field| &message[field.value])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn model(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)).unwrap()
    }

    #[test]
    fn the_operator_is_gone_and_its_classes_are_kept() {
        for (name, classes) in [("zipmap.onnx", ["3", "-7", "11"]), ("zipmap-names.onnx", ["red", "green", "blue"])] {
            let (rewritten, labels) = replaced(&model(name)).unwrap();
            assert!(!rewritten.windows(OPERATOR.len()).any(|window| window == OPERATOR), "{name}");
            assert_eq!(labels["probabilities"], classes);
            assert!(replaced(&rewritten).is_none(), "nothing is left to replace");
        }
    }

    #[test]
    fn a_model_without_it_is_left_alone() {
        assert!(replaced(&model("classifier.onnx")).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
            replaced(&bytes);
            let mut whole = model("zipmap.onnx");
            let position = at.index(whole.len());
            bytes.truncate(3);
            whole.splice(position..position, bytes);
            replaced(&whole);
            replaced(&whole[..position]);
        }
    }
}
