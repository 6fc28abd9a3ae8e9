//! Runs a model in this process, as fast as ONNX Runtime does it with one thread, and prints how long that takes: a JSON object
//! of the seconds of the median run by the rows of a batch, and the seconds that making the session took.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use ort::session::{Session, SessionInputValue, builder::GraphOptimizationLevel};
use ort::value::{Outlet, Tensor, TensorElementType, ValueType};
use serde_json::{Map, Value, json};

#[derive(Parser)]
struct Arguments {
    /// An ONNX model; its inputs are FP32 or INT64.
    model: PathBuf,
    /// Rows of a batch, each measured.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    rows: Vec<usize>,
    /// Elements along dimensions without a size, but for the first, which has the rows.
    #[arg(long, default_value_t = 1)]
    length: usize,
    /// Seconds to measure a batch for.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let library =
        std::env::var_os("ORT_DYLIB_PATH").context("ORT_DYLIB_PATH must name ONNX Runtime's shared library")?;
    let environment = ort::init_from(PathBuf::from(library))?.with_telemetry(false).build()?;
    let started = Instant::now();
    let mut session = session(&environment, &arguments.model)?;
    let made = started.elapsed();
    let mut medians = Map::new();
    for rows in &arguments.rows {
        let median = median(&mut session, *rows, &arguments)?;
        medians.insert(rows.to_string(), json!(median.as_secs_f64()));
    }
    let found = json!({"session": made.as_secs_f64(), "medians": Value::Object(medians)});
    writeln!(std::io::stdout(), "{found}")?;
    Ok(())
}

fn session(environment: &ort::environment::Environment, model: &PathBuf) -> ort::Result<Session> {
    Session::builder(environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .commit_from_file(model)
}

/// The time of the median run.
fn median(session: &mut Session, rows: usize, arguments: &Arguments) -> anyhow::Result<Duration> {
    let inputs = session.inputs().iter().map(|input| value(input, rows, arguments.length));
    let inputs = inputs.collect::<anyhow::Result<Vec<SessionInputValue<'_>>>>()?;
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_secs_f64(arguments.seconds);
    while Instant::now() < end || times.len() < 10 {
        let started = Instant::now();
        let outputs = session.run(inputs.as_slice())?;
        times.push(started.elapsed());
        drop(outputs);
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Small numbers in the shape of an input.
fn value(input: &Outlet, rows: usize, length: usize) -> anyhow::Result<SessionInputValue<'static>> {
    let ValueType::Tensor { ty, shape, .. } = input.dtype() else { bail!("the input {} is no tensor", input.name()) };
    let open = |index| if index == 0 { rows } else { length };
    let shape: Vec<usize> =
        shape.iter().enumerate().map(|(index, size)| usize::try_from(*size).unwrap_or_else(|_| open(index))).collect();
    let elements = 0..shape.iter().product::<usize>();
    Ok(match ty {
        TensorElementType::Float32 => {
            Tensor::from_array((shape, elements.map(|index| [0.25_f32, 0.5, 0.75][index % 3]).collect::<Vec<_>>()))?
                .into()
        }
        TensorElementType::Int64 => {
            Tensor::from_array((shape, elements.map(|index| [101_i64, 7, 512][index % 3]).collect::<Vec<_>>()))?.into()
        }
        other => bail!("the input {} has elements of type {other}; expected FP32 or INT64", input.name()),
    })
}
