//! What the server tells about its model in the words of Triton, for the clients that ask for it: configuration,
//! statistics, and the list of models. REST and gRPC show the same messages.

use std::time::Duration;

use ortolan_protocol::grpc::repository_index_response::ModelIndex;
use ortolan_protocol::grpc::{
    DataType, InferBatchStatistics, InferStatistics, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup,
    ModelOutput, ModelStatistics, ModelTransactionPolicy, StatisticDuration, model_instance_group,
};
use ortolan_protocol::oip::Datatype;
use ortolan_protocol::stats::Phase;

use crate::engine::TensorSpec;
use crate::serving::{Model, PLATFORM, Server};

/// How the model is run.
pub fn config(server: &Server, model: &Model) -> ModelConfig {
    // Where it is not 0, clients add the dimension of rows to the shapes by themselves.
    let max_batch_size = if model.has_rows { i32::try_from(model.max_rows).unwrap_or(i32::MAX) } else { 0 };
    let dims = |spec: &TensorSpec| spec.protocol_shape().split_off(usize::from(model.has_rows));
    let input = |spec: &TensorSpec| ModelInput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype).into(),
        dims: dims(spec),
    };
    let output = |spec: &TensorSpec| ModelOutput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype).into(),
        dims: dims(spec),
    };
    let group = ModelInstanceGroup {
        name: server.name().to_owned(),
        count: i32::try_from(model.instances).unwrap_or(i32::MAX),
        kind: model_instance_group::Kind::Cpu.into(),
    };
    let batching = ModelDynamicBatching {
        preferred_batch_size: Vec::new(),
        max_queue_delay_microseconds: u64::try_from(model.max_delay.as_micros()).unwrap_or(u64::MAX),
    };
    ModelConfig {
        name: server.name().to_owned(),
        platform: PLATFORM.to_owned(),
        backend: "onnxruntime".to_owned(),
        max_batch_size,
        input: model.signature.inputs.iter().map(input).collect(),
        output: model.signature.outputs.iter().map(output).collect(),
        instance_group: vec![group],
        dynamic_batching: model.has_rows.then_some(batching),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
    }
}

/// What the model has done.
pub fn statistics(server: &Server) -> ModelStatistics {
    let counters = server.counters();
    let (requests, _) = counters.requests();
    let executed = counters.executed();
    // Part of the execution. Clients insist that all three are counted equally often.
    let no_time = |count| Some(StatisticDuration { count, ns: 0 });
    let total = |(count, time): (u64, Duration)| Some(StatisticDuration { count, ns: nanoseconds(time) });
    let batch_stats = counters.batch_cells().into_iter().map(|cell| InferBatchStatistics {
        batch_size: cell.limit,
        compute_input: no_time(cell.count),
        compute_infer: total((cell.count, Duration::from_secs_f64(cell.seconds))),
        compute_output: no_time(cell.count),
    });
    ModelStatistics {
        name: server.name().to_owned(),
        version: server.version().to_owned(),
        last_inference: executed.last_milliseconds(),
        inference_count: executed.rows,
        execution_count: executed.batches,
        inference_stats: Some(InferStatistics {
            success: total(counters.latency.totals()),
            fail: total((requests.failed + requests.shed + requests.expired, counters.unsuccessful())),
            queue: total(counters.queue_wait.totals()),
            compute_input: no_time(executed.requests),
            compute_infer: Some(StatisticDuration { count: executed.requests, ns: executed.request_nanoseconds }),
            compute_output: no_time(executed.requests),
            cache_hit: total(counters.cache_hits.get()),
            cache_miss: total(counters.cache_misses.get()),
        }),
        batch_stats: batch_stats.collect(),
    }
}

/// The models: this server's one. `ready`: only if it is.
pub fn index(server: &Server, ready: bool) -> Vec<ModelIndex> {
    let (state, reason) = match server.phase() {
        _ if !server.is_live() => ("UNAVAILABLE", "the model stopped running"),
        Phase::Fetching => ("LOADING", "the model is being fetched"),
        Phase::Loading => ("LOADING", "the model is being loaded"),
        Phase::Ready => ("READY", ""),
        Phase::Draining => ("UNAVAILABLE", "the server is about to stop"),
    };
    let model = ModelIndex {
        name: server.name().to_owned(),
        version: server.version().to_owned(),
        state: state.to_owned(),
        reason: reason.to_owned(),
    };
    if ready && !server.is_ready() { Vec::new() } else { vec![model] }
}

fn data_type(datatype: Datatype) -> DataType {
    match datatype {
        Datatype::Bool => DataType::TypeBool,
        Datatype::Uint8 => DataType::TypeUint8,
        Datatype::Uint16 => DataType::TypeUint16,
        Datatype::Uint32 => DataType::TypeUint32,
        Datatype::Uint64 => DataType::TypeUint64,
        Datatype::Int8 => DataType::TypeInt8,
        Datatype::Int16 => DataType::TypeInt16,
        Datatype::Int32 => DataType::TypeInt32,
        Datatype::Int64 => DataType::TypeInt64,
        Datatype::Fp16 => DataType::TypeFp16,
        Datatype::Bf16 => DataType::TypeBf16,
        Datatype::Fp32 => DataType::TypeFp32,
        Datatype::Fp64 => DataType::TypeFp64,
        Datatype::Bytes => DataType::TypeString,
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
