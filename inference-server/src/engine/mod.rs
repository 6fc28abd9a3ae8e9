//! What runs a model: the one trait between the server and a runtime.
//!
//! An engine runs a batch for whoever asks, for several at once. It knows nothing of requests, queues or protocols; it is
//! given complete input tensors in the order of its signature.

mod elements;
mod inspect;
mod mapped;
mod onnx;
mod protobuf;
mod skeleton;
mod words;
mod zipmap;

use std::collections::HashMap;
use std::path::Path;

use ortolan_protocol::failure::{Failure, FailureReason};
use ortolan_protocol::oip::{Datatype, TensorMetadata};
use smallvec::SmallVec;
use tracing::{debug, warn};

use crate::inside::Inside;
use crate::tensor::{Shape, Tensor};

use skeleton::Skeleton;

pub use onnx::{OnnxEngine, initialize};

/// Indices into a signature's outputs, in the order in which they are wanted.
pub type Outputs = SmallVec<[usize; 4]>;

/// Runs a model.
pub trait Engine: Send + Sync {
    /// What the model takes and gives.
    fn signature(&self) -> &Signature;

    /// Runs the model once. `inputs`: one tensor per input of the signature, in its order. The answer has one tensor
    /// per entry of `outputs`, in that order.
    fn run(&self, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, RunError>;
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The model does not accept these inputs, though their types and shapes are right.
    #[error("the model cannot run on this input: {0}")]
    Refused(String),
    /// Anything else.
    #[error("the model failed to run: {0}")]
    Failed(String),
}

/// What a model takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The inputs, all required.
    pub inputs: Vec<TensorSpec>,
    /// The outputs.
    pub outputs: Vec<TensorSpec>,
}

/// Name, type and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in requests.
    pub name: String,
    /// The type of the elements.
    pub datatype: Datatype,
    /// The dimensions.
    pub shape: Vec<Dimension>,
    /// The names of the classes that the last dimension counts, where the model tells them.
    pub labels: Vec<String>,
}

/// The names of classes by output.
pub type Labels = HashMap<String, Vec<String>>;

/// One dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Always of this size.
    Fixed(usize),
    /// Of any size; dimensions with the same name are of the same size.
    Dynamic(Option<String>),
}

impl Dimension {
    /// The size, if there is only one.
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Self::Fixed(size) => Some(*size),
            Self::Dynamic(_) => None,
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Fixed(_) | Self::Dynamic(None) => None,
            Self::Dynamic(Some(name)) => Some(name),
        }
    }
}

impl TensorSpec {
    /// The shape as the protocol tells it: -1 for a dimension of any size.
    pub fn protocol_shape(&self) -> Vec<i64> {
        self.shape
            .iter()
            .map(|dimension| dimension.fixed().map_or(-1, |size| i64::try_from(size).unwrap_or(i64::MAX)))
            .collect()
    }
}

impl TensorSpec {
    /// A tensor of zeros that fits, with so many rows where it has rows, and of size one where any will do.
    pub fn zeros(&self, rows: usize, has_rows: bool) -> Tensor {
        let sizes = self.shape.iter().enumerate().map(|(position, dimension)| match dimension {
            _ if position == 0 && has_rows => rows,
            dimension => dimension.fixed().unwrap_or(1),
        });
        Tensor::zeros(self.datatype, sizes.collect::<Shape>())
    }
}

impl From<&TensorSpec> for TensorMetadata {
    fn from(spec: &TensorSpec) -> Self {
        Self { name: spec.name.clone(), datatype: spec.datatype, shape: spec.protocol_shape() }
    }
}

impl Signature {
    /// Whether rows of different requests can be run together, as far as the declared shapes tell: every tensor begins
    /// with a dimension of any size, and those of the inputs do not have different names. Names of outputs are not
    /// compared: converters number them anew.
    pub fn has_batch_dimension(&self) -> bool {
        let leads = |spec: &TensorSpec| matches!(spec.shape.first(), Some(Dimension::Dynamic(_)));
        let mut names = self.inputs.iter().filter_map(|spec| spec.shape.first()?.name());
        let first = names.next();
        !self.inputs.is_empty()
            && self.inputs.iter().all(leads)
            && self.outputs.iter().all(leads)
            && names.all(|name| Some(name) == first)
    }
}

#[cfg(test)]
impl Signature {
    /// Of a model that gives back rows of one byte.
    pub fn of_rows() -> Self {
        let (name, shape) = ("x".to_owned(), vec![Dimension::Dynamic(None)]);
        let spec = TensorSpec { name, datatype: Datatype::Uint8, shape, labels: Vec::new() };
        Self { inputs: vec![spec.clone()], outputs: vec![spec] }
    }
}

/// Checks a model file before the runtime sees it. Gives the model and the names of its classes where it has to be another one
/// than stands in the file.
/// `companions`: the other files that it may name.
pub fn look_at(path: &Path, companions: &[Inside]) -> Result<Option<(Vec<u8>, Labels)>, Failure> {
    Ok(if inspect::check(path, companions)?.has_zip_map { zipmap::replaced(&inspect::read(path)?) } else { None })
}

/// The files beside a model's file in which it keeps data, by their paths from its folder. Empty also for what is no model.
pub fn data_files(path: &Path) -> Vec<Inside> {
    inspect::data_files(path)
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    /// Threads for one batch.
    pub threads: usize,
    /// Batches that run at once.
    pub instances: usize,
    /// Whether nobody else writes to the model's files: weights may then stay in them, instead of in this process's own memory.
    pub is_ours: bool,
    /// Weights of at least so many bytes are mapped from the file.
    pub mapped: u64,
}

impl Loading {
    /// Smaller weights are copied: each that is mapped takes whole pages, and lies where the file has it, whatever its operators like.
    pub const MAPPED: u64 = 1 << 16;
}

/// Reads a model file: checks it, then builds an engine that runs it. `companions`: the other files that it may name.
pub fn load(path: &Path, companions: &[Inside], loading: Loading) -> Result<OnnxEngine, Failure> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let engine = match look_at(path, companions)? {
        Some((model, labels)) => OnnxEngine::load(onnx::From::Memory { model: &model, folder, labels }, loading)?,
        None => match mapped(path, loading) {
            Some(engine) => engine,
            None => OnnxEngine::load(onnx::From::File(path), loading)?,
        },
    };
    if !loading.is_ours {
        detach(folder, companions);
    }
    let signature = engine.signature();
    if signature.inputs.is_empty() || signature.outputs.is_empty() {
        return Err(Failure {
            reason: FailureReason::ModelUnsupported,
            message: "the model has no inputs or no outputs; there is nothing to ask it".to_owned(),
        });
    }
    Ok(engine)
}

/// What of a model's other files is still mapped becomes this process's own.
fn detach(folder: &Path, companions: &[Inside]) {
    for name in companions {
        if let Err(error) = folder.join(name).canonicalize().and_then(|file| mapped::detach(&file)) {
            warn!(%error, "weights stay in a file that others may write to");
        }
    }
}

/// An engine whose large weights are mapped from the file. `None` where that does not work or gains nothing; the file is then
/// loaded as a whole, and is what a failure is about.
fn mapped(path: &Path, loading: Loading) -> Option<OnnxEngine> {
    let Skeleton { model, folder, file } = Skeleton::of(path, loading.mapped)?;
    let engine = OnnxEngine::load(onnx::From::Skeleton { model: &model, folder: &folder }, loading)
        .inspect_err(|failure| debug!(failure.message, "the model cannot be loaded with its weights mapped"))
        .ok()?;
    if !loading.is_ours
        && let Err(error) = mapped::detach(&file)
    {
        debug!(%error, "what is mapped of the model's file cannot be replaced");
        return None;
    }
    Some(engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A digit stands for a fixed dimension, `?` for one without a name.
    fn spec(shape: &str) -> TensorSpec {
        let dimension = |name: &str| match name.parse() {
            Ok(size) => Dimension::Fixed(size),
            Err(_) if name == "?" => Dimension::Dynamic(None),
            Err(_) => Dimension::Dynamic(Some(name.to_owned())),
        };
        TensorSpec {
            name: "t".to_owned(),
            datatype: Datatype::Fp32,
            shape: shape.split_whitespace().map(dimension).collect(),
            labels: Vec::new(),
        }
    }

    #[test]
    fn a_batch_dimension_leads_every_tensor_and_inputs_agree_about_it() {
        let cases: [(&[&str], &[&str], bool); 8] = [
            (&["n 4"], &["n 4"], true),
            (&["? 4"], &["?"], true),
            (&["unk__1"], &["unk__2"], true),
            (&["n", "n 3"], &["n"], true),
            (&["n", "m"], &["n"], false),
            (&["4 4"], &["4"], false),
            (&["n"], &[""], false),
            (&[], &["n"], false),
        ];
        for (inputs, outputs, expected) in cases {
            let signature = Signature {
                inputs: inputs.iter().map(|shape| spec(shape)).collect(),
                outputs: outputs.iter().map(|shape| spec(shape)).collect(),
            };
            assert_eq!(signature.has_batch_dimension(), expected, "{inputs:?} -> {outputs:?}");
        }
    }

    #[test]
    fn a_dimension_of_any_size_is_minus_one_in_the_protocol() {
        assert_eq!(spec("n 4").protocol_shape(), [-1, 4]);
    }
}
