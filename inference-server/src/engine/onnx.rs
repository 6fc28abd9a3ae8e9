//! ONNX models, run by ONNX Runtime.
//!
//! The runtime is a shared library, loaded when the server starts: its official build is used as it is, and our binary
//! stays small. No execution provider but the CPU's, and no custom operator library, can be reached from a model.

use std::ffi::{CString, NulError};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Outlet, ValueType};
use ort::{AsPointer, Error as OrtError, ErrorCode, LoadDynamicError};
use ortolan_protocol::failure::{Failure, FailureReason};
use smallvec::{SmallVec, smallvec};
use tracing::debug;

use super::words::{for_clients, without_source};
use super::{Dimension, Engine, Labels, Loading, RunError, Signature, TensorSpec, elements};
use crate::tensor::Tensor;

/// Where a model that is given as bytes has the files that it names.
const FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// The process's one runtime environment; it must outlive every session.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// Loads the runtime's shared library. Once per process: later calls change nothing.
pub fn initialize(library: &Path) -> Result<(), Failure> {
    environment(Some(library)).map(|_| ())
}

fn environment(library: Option<&Path>) -> Result<Environment, Failure> {
    let mut environment = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = environment.as_ref() {
        return Ok(environment.clone());
    }
    let library = library.ok_or_else(|| internal("the ONNX Runtime library was not loaded before the model"))?;
    let built = ort::init_from(library).map_err(|error| library_failure(&error))?;
    let built = built.with_name("ortolan").with_telemetry(false).build().map_err(|error| internal(error.message()))?;
    // What goes wrong comes back as an error and is reported by us, without the runtime's source paths.
    built.set_log_level(LogLevel::Fatal);
    Ok(environment.insert(built).clone())
}

/// Where a model is.
pub(super) enum From<'m> {
    /// In a file, as it was fetched.
    File(&'m Path),
    /// In memory, but for weights that lie in files.
    Skeleton {
        /// The model's bytes.
        model: &'m [u8],
        /// The folder of those files.
        folder: &'m str,
    },
    /// In memory, after it was changed.
    Memory {
        /// The model's bytes.
        model: &'m [u8],
        /// The folder of the files that it names.
        folder: &'m Path,
        /// The names of classes that it does not tell any more.
        labels: Labels,
    },
}

/// A session of ONNX Runtime.
pub struct OnnxEngine {
    session: Session,
    signature: Signature,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
}

impl OnnxEngine {
    /// Builds a session. [`initialize`] comes before.
    pub(super) fn load(from: From<'_>, loading: Loading) -> Result<Self, Failure> {
        let environment = environment(None)?;
        let session = build(&environment, &from, threads(loading)).map_err(|error| load_failure(&error))?;
        let mut signature =
            Signature { inputs: specs(session.inputs(), "input")?, outputs: specs(session.outputs(), "output")? };
        if let From::Memory { mut labels, .. } = from {
            for output in &mut signature.outputs {
                output.labels = labels.remove(&output.name).unwrap_or_default();
            }
        }
        let (input_names, output_names) = (names(&signature.inputs)?, names(&signature.outputs)?);
        Ok(Self { session, signature, input_names, output_names })
    }

    /// One run of the session, by the runtime's own function: that of its bindings wants the session for itself, as not all execution
    /// providers can do several runs at once. The CPU's can, and there is no other here (ADR 15).
    #[allow(unsafe_code)] // a foreign function
    fn call(&self, inputs: &[SessionInputValue<'_>], outputs: &[usize]) -> ort::Result<SmallVec<[DynValue; 4]>> {
        let input_names: SmallVec<[_; 4]> = self.input_names.iter().map(|name| name.as_ptr()).collect();
        let given: SmallVec<[_; 4]> = inputs.iter().map(|value| value.ptr()).collect();
        let output_names: SmallVec<[_; 4]> = outputs.iter().map(|index| self.output_names[*index].as_ptr()).collect();
        let mut found: SmallVec<[_; 4]> = smallvec![ptr::null_mut(); outputs.len()];
        assert_eq!(input_names.len(), given.len(), "as many inputs as the signature has");
        // SAFETY: every list is as long as is said, and names and values live until it returns. The runtime changes neither the session
        // (whose type says otherwise) nor the inputs.
        unsafe {
            OrtError::result_from_status((ort::api().Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                input_names.as_ptr(),
                given.as_ptr(),
                given.len(),
                output_names.as_ptr(),
                output_names.len(),
                found.as_mut_ptr(),
            ))
        }?;
        // SAFETY: the runtime has put a value of ours in each place, made with the session's allocator.
        let owned = |value| unsafe { DynValue::from_ptr(value, Some(self.session.allocator())) };
        Ok(found.into_iter().filter_map(NonNull::new).map(owned).collect())
    }
}

/// The threads of all operators together: each batch has one of its own, which is the caller's, and the others are common.
fn threads(loading: Loading) -> usize {
    1 + loading.instances * (loading.threads - 1)
}

fn names(specs: &[TensorSpec]) -> Result<Vec<CString>, Failure> {
    specs
        .iter()
        .map(|spec| CString::new(spec.name.as_str()))
        .collect::<Result<_, NulError>>()
        .map_err(|_| unsupported("the model has an input or output whose name has a zero byte".to_owned()))
}

impl Engine for OnnxEngine {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, RunError> {
        let values =
            inputs.iter().map(elements::to_value).collect::<Result<SmallVec<[SessionInputValue<'_>; 4]>, _>>()?;
        let found = self.call(&values, outputs).map_err(|error| run_error(&error))?;
        let specs = &self.signature.outputs;
        outputs.iter().zip(&found).map(|(index, value)| elements::from_value(value, specs[*index].datatype)).collect()
    }
}

fn build(environment: &Environment, from: &From<'_>, threads: usize) -> ort::Result<Session> {
    let mut builder = Session::builder(environment)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_parallel_execution(false)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?;
    match from {
        From::File(path) => builder.commit_from_file(path),
        From::Skeleton { model, folder } => builder.with_config_entry(FOLDER, folder)?.commit_from_memory(model),
        From::Memory { model, folder, .. } => match folder.to_str() {
            Some(folder) if !folder.is_empty() => builder.with_config_entry(FOLDER, folder)?.commit_from_memory(model),
            _ => builder.commit_from_memory(model),
        },
    }
}

fn specs(outlets: &[Outlet], kind: &str) -> Result<Vec<TensorSpec>, Failure> {
    outlets.iter().map(|outlet| spec(outlet, kind)).collect()
}

fn spec(outlet: &Outlet, kind: &str) -> Result<TensorSpec, Failure> {
    let name = outlet.name();
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(unsupported(format!(
            "the model's {kind} '{name}' is {}, and only tensors can be served (and the maps that classifiers converted from \
             scikit-learn end in): convert the model so that it gives tensors",
            value_kind(outlet.dtype())
        )));
    };
    let datatype = elements::datatype(*ty).ok_or_else(|| {
        unsupported(format!("the model's {kind} '{name}' has elements of type {ty}, which the protocol does not have"))
    })?;
    let shape = shape
        .iter()
        .zip(dimension_symbols.iter())
        .map(|(size, symbol)| match usize::try_from(*size) {
            Ok(size) => Dimension::Fixed(size),
            Err(_) => Dimension::Dynamic((!symbol.is_empty()).then(|| symbol.clone())),
        })
        .collect();
    Ok(TensorSpec { name: name.to_owned(), datatype, shape, labels: Vec::new() })
}

fn value_kind(value: &ValueType) -> &'static str {
    match value {
        ValueType::Sequence(inner) if inner.is_map() => "a sequence of maps",
        ValueType::Sequence(_) => "a sequence",
        ValueType::Map { .. } => "a map",
        ValueType::Optional(_) => "an optional value",
        ValueType::Tensor { .. } => "a tensor",
    }
}

fn run_error(error: &OrtError) -> RunError {
    debug!(error = error.message(), "the runtime refused to run the model");
    let message = error.message();
    // "Non-zero status code returned while running Gather node. Name:'…' Status Message: …": the rest is for the client.
    let message = message.split_once("Status Message: ").map_or(message, |(_, message)| message);
    match error.code() {
        ErrorCode::InvalidArgument => RunError::Refused(for_clients(message)),
        _ => RunError::Failed(for_clients(message)),
    }
}

fn load_failure(error: &OrtError) -> Failure {
    debug!(error = error.message(), "the runtime refused to load the model");
    let message = error.message();
    let is_unknown = ["is not a registered function/op", "opset", "Opset", "IR version", "NOT_IMPLEMENTED"]
        .iter()
        .any(|hint| message.contains(hint));
    let is_memory =
        ["Failed to allocate memory", "bad_alloc", "bad allocation"].iter().any(|hint| message.contains(hint));
    let reason = match error.code() {
        _ if is_memory => FailureReason::OutOfMemory,
        ErrorCode::NotImplemented => FailureReason::ModelUnsupported,
        _ if is_unknown => FailureReason::ModelUnsupported,
        ErrorCode::RuntimeException | ErrorCode::EngineError | ErrorCode::ExecutionProviderFailure => {
            FailureReason::Internal
        }
        _ => FailureReason::ModelInvalid,
    };
    // "Load model from /some/where failed:…"
    let message = match message.strip_prefix("Load model from ") {
        Some(rest) => rest.split_once(" failed:").map_or(rest, |(_, message)| message),
        None => message,
    };
    let what = match reason {
        FailureReason::ModelUnsupported => "ONNX Runtime cannot run the model",
        FailureReason::ModelInvalid => "the file is not a valid ONNX model",
        FailureReason::OutOfMemory => "there is too little memory for the model",
        _ => "ONNX Runtime failed to load the model",
    };
    Failure { reason, message: format!("{what}: {}", without_source(message)) }
}

fn library_failure(error: &LoadDynamicError) -> Failure {
    debug!(%error, "the ONNX Runtime library cannot be loaded");
    let message = match error {
        LoadDynamicError::BadVersion { version_str, .. } => {
            format!("the ONNX Runtime library has version {version_str}, older than the one that is needed (1.{})", ort::MINOR_VERSION)
        }
        _ => "the ONNX Runtime library cannot be loaded; it must be a libonnxruntime.so for this machine (--onnxruntime or ORT_DYLIB_PATH)"
            .to_owned(),
    };
    Failure { reason: FailureReason::ConfigInvalid, message }
}

fn unsupported(message: String) -> Failure {
    Failure { reason: FailureReason::ModelUnsupported, message }
}

fn internal(message: &str) -> Failure {
    Failure { reason: FailureReason::Internal, message: message.to_owned() }
}
