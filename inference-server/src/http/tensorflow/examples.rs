//! The body of `:classify` and `:regress`: examples, each an object of features, and a context that they share.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Form, check_signature, parsed, tensors};
use crate::error::Error;
use crate::request::Builder;
use crate::serving::Model;

type Features<'b> = BTreeMap<String, &'b RawValue>;

#[derive(Deserialize)]
struct Body<'b> {
    #[serde(default)]
    signature_name: Option<String>,
    #[serde(borrow, default)]
    context: Features<'b>,
    #[serde(borrow)]
    examples: Vec<Features<'b>>,
}

/// Reads the examples of a body into a request. A feature is an input of the model: one value, or a list of them.
pub(super) fn read<'m>(body: &[u8], model: &'m Model, builder: &mut Builder<'m>) -> Result<Form, Error> {
    let body: Body<'_> = parsed(body, "a JSON object with examples, each an object of features")?;
    check_signature(body.signature_name.as_deref())?;
    if body.examples.is_empty() {
        return Err(Error::invalid("there are no examples"));
    }
    let names: BTreeSet<&str> =
        body.examples.iter().flat_map(BTreeMap::keys).chain(body.context.keys()).map(String::as_str).collect();
    for name in names {
        let spec = tensors::input(model, name)?;
        let values = body
            .examples
            .iter()
            .enumerate()
            .map(|(index, example)| {
                let value = example.get(name).or_else(|| body.context.get(name)).ok_or_else(|| {
                    Error::invalid(format!("example {index} lacks '{}', which others have", name.escape_debug()))
                })?;
                Ok(as_row(value.get(), spec.shape.len()))
            })
            .collect::<Result<Vec<String>, Error>>()?;
        tensors::fill(builder, spec, &tensors::list(values.iter().map(String::as_str)))?;
    }
    Ok(Form { is_columns: false, rows: body.examples.len() })
}

/// A feature as a row of an input with `rank` dimensions: one value may stand with or without its list.
fn as_row(value: &str, rank: usize) -> String {
    let is_list = value.starts_with('[');
    let inner = || value.trim_start_matches('[').trim_end_matches(']').trim();
    match rank {
        0 | 1 if is_list && !inner().contains(',') => inner().to_owned(),
        2.. if !is_list => format!("[{value}]"),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_a_row_with_or_without_its_list() {
        for (value, rank, row) in [
            ("1.5", 1, "1.5"),
            ("[1.5]", 1, "1.5"),
            ("1.5", 2, "[1.5]"),
            ("[1.5]", 2, "[1.5]"),
            ("[1,2]", 2, "[1,2]"),
            ("[1,2]", 1, "[1,2]"),
        ] {
            assert_eq!(as_row(value, rank), row, "{value} {rank}");
        }
    }
}
