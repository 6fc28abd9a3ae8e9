//! The body of `:predict`: tensors by row (`instances`) or by column (`inputs`).
//!
//! Shapes are not written down there; they follow from the nesting. What is found so is checked like the shape that another
//! protocol's client states.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use ortolan_protocol::oip::Datatype;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Form, check_signature, parsed};
use crate::engine::TensorSpec;
use crate::error::Error;
use crate::http::elements;
use crate::request::{Builder, Slot};
use crate::serving::Model;
use crate::tensor::Data;

#[derive(Deserialize)]
struct Body<'b> {
    #[serde(default)]
    signature_name: Option<String>,
    #[serde(borrow, default)]
    instances: Option<Vec<&'b RawValue>>,
    #[serde(borrow, default)]
    inputs: Option<&'b RawValue>,
}

/// Reads the tensors of a body into a request.
pub(super) fn read<'m>(body: &[u8], model: &'m Model, builder: &mut Builder<'m>) -> Result<Form, Error> {
    let body: Body<'_> = parsed(body, "a JSON object with instances or inputs")?;
    check_signature(body.signature_name.as_deref())?;
    match (body.instances, body.inputs) {
        (Some(instances), None) => {
            rows(&instances, model, builder)?;
            Ok(Form { is_columns: false, rows: instances.len() })
        }
        (None, Some(inputs)) => {
            columns(inputs, model, builder)?;
            Ok(Form { is_columns: true, rows: 0 })
        }
        (Some(_), Some(_)) => Err(Error::invalid("the body has both instances and inputs; expected one of them")),
        (None, None) => Err(Error::invalid("the body has neither instances nor inputs")),
    }
}

fn rows<'m>(instances: &[&RawValue], model: &'m Model, builder: &mut Builder<'m>) -> Result<(), Error> {
    if instances.is_empty() {
        return Err(Error::invalid("there are no instances"));
    }
    let is_named = |instance: &RawValue| is_object(instance) && !is_base64(instance);
    if !instances.iter().any(|instance| is_named(instance)) {
        return fill(builder, only_input(model)?, &list(instances.iter().map(|instance| instance.get())));
    }
    let mut named: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let objects = instances
        .iter()
        .enumerate()
        .map(|(index, instance)| object(instance, &format!("instance {index}")))
        .collect::<Result<Vec<_>, _>>()?;
    for object in &objects {
        for (name, value) in object {
            named.entry(name).or_default().push(value.get());
        }
    }
    for (name, values) in named {
        if values.len() != instances.len() {
            return Err(Error::invalid(format!(
                "{} of {} instances have '{}'; all must have the same inputs",
                values.len(),
                instances.len(),
                name.escape_debug()
            )));
        }
        fill(builder, input(model, name)?, &list(values))?;
    }
    Ok(())
}

fn columns<'m>(inputs: &RawValue, model: &'m Model, builder: &mut Builder<'m>) -> Result<(), Error> {
    if !is_object(inputs) || is_base64(inputs) {
        return fill(builder, only_input(model)?, inputs.get());
    }
    for (name, value) in object(inputs, "inputs")? {
        fill(builder, input(model, &name)?, value.get())?;
    }
    Ok(())
}

fn object<'v>(value: &'v RawValue, what: &str) -> Result<BTreeMap<String, &'v RawValue>, Error> {
    serde_json::from_str(value.get()).map_err(|_| {
        Error::invalid(format!("{what} must be an object with the inputs by name, as others of the request are"))
    })
}

fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

/// `{"b64": "…"}`, which stands for a string.
fn is_base64(value: &RawValue) -> bool {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Base64<'b> {
        #[serde(borrow, rename = "b64")]
        _text: &'b RawValue,
    }
    serde_json::from_str::<Base64<'_>>(value.get()).is_ok()
}

/// The input that is meant where none is named.
pub(super) fn only_input(model: &Model) -> Result<&TensorSpec, Error> {
    match model.signature.inputs.as_slice() {
        [spec] => Ok(spec),
        specs => Err(Error::invalid(format!(
            "the model has {} inputs, so that each must be named: {{\"{}\": …}}",
            specs.len(),
            specs.first().map_or("", |spec| &spec.name)
        ))),
    }
}

/// The input of that name.
pub(super) fn input<'m>(model: &'m Model, name: &str) -> Result<&'m TensorSpec, Error> {
    let specs = &model.signature.inputs;
    specs.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<String> = specs.iter().map(|spec| format!("'{}'", spec.name)).collect();
        Error::invalid(format!("the model has no input '{}'; it has {}", name.escape_debug(), names.join(", ")))
    })
}

/// Values as one JSON array.
pub(super) fn list<'v>(values: impl IntoIterator<Item = &'v str>) -> String {
    let mut list = String::from("[");
    for (index, value) in values.into_iter().enumerate() {
        if index > 0 {
            list.push(',');
        }
        list.push_str(value);
    }
    list.push(']');
    list
}

/// Reads a nested array into an input.
pub(super) fn fill<'m>(builder: &mut Builder<'m>, spec: &'m TensorSpec, json: &str) -> Result<(), Error> {
    let unpacked;
    let json = if spec.datatype == Datatype::Bytes && json.contains("\"b64\"") {
        unpacked = without_base64(spec, json)?;
        &unpacked
    } else {
        json
    };
    let mut shape = shape::of(json).map_err(|error| Error::invalid(format!("input '{}': {error}", spec.name)))?;
    // An empty list says nothing of the dimensions inside.
    if shape.contains(&0) {
        shape.extend(spec.protocol_shape().into_iter().skip(shape.len()).map(|size| size.max(0)));
    }
    let slot = builder.input(&spec.name, spec.datatype.as_str(), &shape)?;
    let data = read_elements(&slot, json)?;
    builder.fill(slot, data)
}

/// Elements of any type: there is no binary form here, so those that JSON cannot hold come as numbers, too.
fn read_elements(slot: &Slot<'_>, json: &str) -> Result<Data, Error> {
    // A scalar stands alone, not in a list.
    let json = if slot.shape.is_empty() { format!("[{json}]") } else { json.to_owned() };
    let (half, largest): (fn(f32) -> [u8; 2], f32) = match slot.datatype {
        Datatype::Fp16 => (|number| f16::from_f32(number).to_le_bytes(), f16::MAX.to_f32()),
        Datatype::Bf16 => (|number| bf16::from_f32(number).to_le_bytes(), bf16::MAX.to_f32()),
        _ => return elements::from_json(slot, &json),
    };
    let mut wide = slot.clone();
    wide.datatype = Datatype::Fp32;
    let Data::Fixed(bytes) = elements::from_json(&wide, &json)? else { return Ok(Data::Fixed(Bytes::new())) };
    let mut narrow = BytesMut::with_capacity(bytes.len() / 2);
    for number in bytes.as_chunks::<4>().0 {
        let number = f32::from_le_bytes(*number);
        if number.abs() > largest {
            return Err(Error::invalid(format!(
                "input '{}': {number} is not a number that {} can hold",
                slot.name, slot.datatype
            )));
        }
        narrow.put_slice(&half(number));
    }
    Ok(Data::Fixed(narrow.freeze()))
}

/// Puts strings in the place of base64.
fn without_base64(spec: &TensorSpec, json: &str) -> Result<String, Error> {
    fn replace(value: &mut Value) -> Result<(), &'static str> {
        match value {
            Value::Array(values) => values.iter_mut().try_for_each(replace),
            Value::Object(object) if object.len() == 1 => {
                let Some(Value::String(text)) = object.get("b64") else { return Ok(()) };
                let bytes = STANDARD.decode(text).map_err(|_| "has a b64 that is not base64")?;
                let text = String::from_utf8(bytes)
                    .map_err(|_| "has a b64 element that is not UTF-8, which the model cannot take")?;
                *value = Value::String(text);
                Ok(())
            }
            _ => Ok(()),
        }
    }
    let invalid = |what: &str| Error::invalid(format!("input '{}' {what}", spec.name));
    let mut value: Value = serde_json::from_str(json).map_err(|error| invalid(&format!("is not JSON: {error}")))?;
    replace(&mut value).map_err(invalid)?;
    Ok(value.to_string())
}

/// The shape that the nesting of an array shows.
mod shape {
    use std::fmt;

    use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};

    /// The length of the outermost list, of the first list in it, and so on; a value that is no list has no dimension.
    /// Whether other lists have the same lengths is left to whoever reads the elements.
    pub(super) fn of(json: &str) -> Result<Vec<i64>, String> {
        let mut shape = Vec::new();
        let mut deserializer = serde_json::Deserializer::from_str(json);
        Level(&mut shape).deserialize(&mut deserializer).map_err(|error| {
            let message = error.to_string();
            // The position counts from the beginning of the list, which nobody can find.
            message.rsplit_once(" at line ").map_or(message.clone(), |(message, _)| message.to_owned())
        })?;
        Ok(shape)
    }

    struct Level<'s>(&'s mut Vec<i64>);

    impl<'de> DeserializeSeed<'de> for Level<'_> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_any(self)
        }
    }

    impl<'de> Visitor<'de> for Level<'_> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("numbers, strings or lists of them")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
            let dimension = self.0.len();
            self.0.push(0);
            let mut length = 0;
            if sequence.next_element_seed(Level(&mut *self.0))?.is_some() {
                length = 1;
                while sequence.next_element::<IgnoredAny>()?.is_some() {
                    length += 1;
                }
            }
            self.0[dimension] = length;
            Ok(())
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
            // What is wrong with it, the reader of the elements says better.
            IgnoredAny::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(drop)
        }

        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }

        fn visit_bool<E>(self, _: bool) -> Result<(), E> {
            Ok(())
        }

        fn visit_i64<E>(self, _: i64) -> Result<(), E> {
            Ok(())
        }

        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }

        fn visit_f64<E>(self, _: f64) -> Result<(), E> {
            Ok(())
        }

        fn visit_str<E>(self, _: &str) -> Result<(), E> {
            Ok(())
        }
    }

    #[cfg(test)]
    mod tests {
        use super::of;

        #[test]
        fn nesting_shows_the_shape() {
            for (json, shape) in [
                ("1", &[][..]),
                ("[]", &[0]),
                ("[1,2,3]", &[3]),
                ("[[1,2],[3]]", &[2, 2]),
                ("[[[true]],[[false]]]", &[2, 1, 1]),
                ("[[],[]]", &[2, 0]),
                (r#"["a"]"#, &[1]),
            ] {
                assert_eq!(of(json).unwrap(), shape, "{json}");
            }
            assert!(of(&"[".repeat(500)).is_err());
        }
    }
}
