//! From what a client names to what the engine runs: every check that does not depend on the protocol.
//!
//! A protocol opens a [`Builder`], announces each input (which is checked against the signature before its elements are
//! read), fills in the elements, and names the outputs.

use std::time::Instant;

use ortolan_protocol::oip::Datatype;

use crate::batch::Request;
use crate::engine::{Dimension, Outputs, Signature, TensorSpec};
use crate::error::Error;
use crate::tensor::{Data, Shape, Tensor, display_shape, element_count};

/// How the model wants its requests.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'m> {
    /// What the model takes and gives.
    pub signature: &'m Signature,
    /// Whether the first dimension counts rows.
    pub has_rows: bool,
    /// The most rows of one request.
    pub max_rows: usize,
}

/// Collects the tensors of one request.
pub struct Builder<'m> {
    rules: Rules<'m>,
    inputs: Vec<Option<Tensor>>,
    outputs: Outputs,
}

/// An input that was announced and fits the signature; its elements are still to come.
#[derive(Clone, Debug)]
pub struct Slot<'m> {
    index: usize,
    /// The tensor's name.
    pub name: &'m str,
    /// The type of its elements.
    pub datatype: Datatype,
    /// Its dimensions.
    pub shape: Shape,
    /// How many elements it has.
    pub elements: usize,
}

impl<'m> Builder<'m> {
    /// An empty request.
    pub fn new(rules: Rules<'m>) -> Self {
        Self { rules, inputs: vec![None; rules.signature.inputs.len()], outputs: Outputs::new() }
    }

    /// Announces an input.
    pub fn input(&self, name: &str, datatype: &str, shape: &[i64]) -> Result<Slot<'m>, Error> {
        let specs = &self.rules.signature.inputs;
        let Some((index, spec)) = specs.iter().enumerate().find(|(_, spec)| spec.name == name) else {
            return Err(Error::invalid(format!("the model has no input '{name}'; it has {}", names(specs))));
        };
        if self.inputs[index].is_some() {
            return Err(Error::invalid(format!("input '{name}' comes more than once")));
        }
        if datatype != spec.datatype.as_str() {
            return Err(Error::invalid(format!("input '{name}' must be {}, not {datatype}", spec.datatype)));
        }
        let shape = checked_shape(spec, shape)?;
        let elements = element_count(&shape)
            .filter(|count| count.checked_mul(spec.datatype.element_size().unwrap_or(1)).is_some())
            .ok_or_else(|| {
                Error::invalid(format!("input '{name}' has too many elements: shape {}", display_shape(&shape)))
            })?;
        Ok(Slot { index, name: &spec.name, datatype: spec.datatype, shape, elements })
    }

    /// Fills an announced input with its elements; there are as many as the slot says.
    pub fn fill(&mut self, slot: Slot<'m>, data: Data) -> Result<(), Error> {
        if let Data::Strings(strings) = &data
            && strings.iter().any(|string| string.contains('\0'))
        {
            return Err(Error::invalid(format!(
                "input '{}' has a string with a NUL character, which the model cannot take",
                slot.name
            )));
        }
        self.inputs[slot.index] = Some(Tensor { datatype: slot.datatype, shape: slot.shape, data });
        Ok(())
    }

    /// Asks for an output. Without any, all are given.
    pub fn output(&mut self, name: &str) -> Result<&'m TensorSpec, Error> {
        let specs = &self.rules.signature.outputs;
        let Some((index, spec)) = specs.iter().enumerate().find(|(_, spec)| spec.name == name) else {
            return Err(Error::invalid(format!("the model has no output '{name}'; it has {}", names(specs))));
        };
        if self.outputs.contains(&index) {
            return Err(Error::invalid(format!("output '{name}' is asked for more than once")));
        }
        self.outputs.push(index);
        Ok(spec)
    }

    /// The complete request.
    pub fn build(self, deadline: Option<Instant>) -> Result<Request, Error> {
        let signature = self.rules.signature;
        let missing: Vec<&TensorSpec> = signature
            .inputs
            .iter()
            .zip(&self.inputs)
            .filter(|(_, input)| input.is_none())
            .map(|(spec, _)| spec)
            .collect();
        if !missing.is_empty() {
            return Err(Error::invalid(format!("the request lacks {}", names(missing))));
        }
        let inputs: Vec<Tensor> = self.inputs.into_iter().flatten().collect();
        let rows = if self.rules.has_rows { rows(signature, &inputs, self.rules.max_rows)? } else { 1 };
        let outputs = if self.outputs.is_empty() { (0..signature.outputs.len()).collect() } else { self.outputs };
        Ok(Request { inputs, outputs, rows, deadline })
    }
}

fn checked_shape(spec: &TensorSpec, shape: &[i64]) -> Result<Shape, Error> {
    let expected = || display_shape(&spec.protocol_shape());
    if shape.len() != spec.shape.len() {
        return Err(Error::invalid(format!(
            "input '{}' must have {} dimensions ({}), not {} ({})",
            spec.name,
            spec.shape.len(),
            expected(),
            shape.len(),
            display_shape(shape),
        )));
    }
    shape
        .iter()
        .zip(&spec.shape)
        .map(|(size, dimension)| match (usize::try_from(*size), dimension) {
            (Err(_), _) => {
                Err(Error::invalid(format!("input '{}' has a negative dimension: {}", spec.name, display_shape(shape))))
            }
            (Ok(size), Dimension::Fixed(fixed)) if size != *fixed => Err(Error::invalid(format!(
                "input '{}' must have shape {}, not {}",
                spec.name,
                expected(),
                display_shape(shape)
            ))),
            (Ok(size), _) => Ok(size),
        })
        .collect()
}

fn rows(signature: &Signature, inputs: &[Tensor], max_rows: usize) -> Result<usize, Error> {
    let rows = inputs.first().map_or(1, Tensor::rows);
    if let Some((spec, other)) = signature.inputs.iter().zip(inputs).find(|(_, input)| input.rows() != rows) {
        return Err(Error::invalid(format!(
            "the inputs disagree about the number of rows: '{}' has {rows}, '{}' has {}",
            signature.inputs[0].name,
            spec.name,
            other.rows()
        )));
    }
    if rows > max_rows {
        return Err(Error::invalid(format!("the request has {rows} rows, and at most {max_rows} are taken at once")));
    }
    Ok(rows)
}

fn names<'s>(specs: impl IntoIterator<Item = &'s TensorSpec>) -> String {
    let names: Vec<String> = specs.into_iter().map(|spec| format!("'{}'", spec.name)).collect();
    match names.as_slice() {
        [one] => one.clone(),
        [others @ .., last] => format!("{} and {last}", others.join(", ")),
        [] => "none".to_owned(),
    }
}
