//! The command line as it is written: the flags, each with an environment variable, too. The operator renders them.
//!
//! Nothing is checked here but what a flag's type says; [`Config`](crate::config::Config) is what is left once it is.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Parser, Subcommand};
use humantime::Duration as HumanDuration;
use ortolan_protocol::ports;

use crate::client_limit::ClientLimits;
use crate::telemetry::TelemetryArguments;

/// Ortolan's inference server: one ONNX model behind the Open Inference Protocol.
#[derive(Debug, Parser)]
#[command(name = "ortolan-server", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the server can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch one model, load it, and answer inference requests until told to stop.
    Serve(Box<ServeArguments>),
    /// Ask the server of this container whether its model answers; for container engines.
    Healthcheck(HealthcheckArguments),
}

/// The flags of `healthcheck`: where that server listens.
#[derive(Clone, Debug, Parser)]
pub struct HealthcheckArguments {
    /// The address that the server listens on
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED), env = "ORTOLAN_ADDRESS")]
    pub address: IpAddr,
    /// The port for /metrics, /stats and health
    #[arg(long, value_name = "PORT", default_value_t = ports::OPERATIONS, env = "ORTOLAN_OPS_PORT")]
    pub ops_port: u16,
}

/// The flags of `serve`.
#[derive(Clone, Debug, Parser)]
pub struct ServeArguments {
    /// Where the model is: a path, file:///path, http://, https://, s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY,
    /// oci://HOST/REPOSITORY:TAG or hf://OWNER/NAME/PATH; a file, an archive of one, or a folder on the disk
    #[arg(long, value_name = "URI", env = "ORTOLAN_MODEL")]
    pub model: String,
    /// The model's name in requests
    #[arg(long, env = "ORTOLAN_NAME")]
    pub name: String,
    /// The SHA-256 that the model's bytes must have
    #[arg(long, value_name = "HEX", env = "ORTOLAN_SHA256")]
    pub sha256: Option<String>,
    /// A file with the SHA-256 that the first server of this revision found; one that does not exist binds nobody
    #[arg(long, value_name = "FILE", env = "ORTOLAN_LOCK_FILE", conflicts_with = "sha256")]
    pub lock_file: Option<PathBuf>,
    /// A folder with the keys of a credentials Secret, each a file: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, … What it
    /// does not hold is looked for in the environment
    #[arg(long, value_name = "DIR", env = "ORTOLAN_CREDENTIALS_DIR")]
    pub credentials_dir: Option<PathBuf>,
    /// Ask Google's metadata service for the identity of this pod, where gs:// needs one
    #[arg(long, env = "ORTOLAN_CLOUD_IDENTITY")]
    pub cloud_identity: bool,
    /// A folder with the SHA-256 of the API keys of clients, each a file (a mounted Secret); without it everybody may ask.
    /// Changes count within seconds
    #[arg(long, value_name = "DIR", env = "ORTOLAN_API_KEYS_DIR")]
    pub api_keys_dir: Option<PathBuf>,
    /// A folder with tls.crt and tls.key (a mounted Secret of TLS): REST and gRPC then speak TLS, and only that. Changes count
    /// within seconds for new connections
    #[arg(long, value_name = "DIR", env = "ORTOLAN_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    /// A folder with ca.crt: clients must show a certificate of one of its authorities
    #[arg(long, value_name = "DIR", requires = "tls_dir", env = "ORTOLAN_TLS_CLIENT_CA_DIR")]
    pub tls_client_ca_dir: Option<PathBuf>,
    /// What one client may ask for.
    #[command(flatten)]
    pub client_limits: ClientLimits,
    /// The model's format; only onnx
    #[arg(long, default_value = "onnx", env = "ORTOLAN_FORMAT")]
    pub format: String,
    /// The revision this server runs; reported, and the model's version in requests (else "1")
    #[arg(long, value_name = "REV", env = "ORTOLAN_REVISION")]
    pub revision: Option<String>,
    /// The largest batch in rows, and the most rows of one request [default: what memory has room for, up to 256]
    #[arg(long, value_name = "ROWS", env = "ORTOLAN_MAX_BATCH_SIZE")]
    pub max_batch_size: Option<usize>,
    /// How long the first request of a batch waits for others; 0ms: a batch is what is there when the model is free
    #[arg(long, value_name = "TIME", default_value = "0ms", env = "ORTOLAN_MAX_BATCH_DELAY")]
    pub max_batch_delay: HumanDuration,
    /// The most rows that wait for the model; beyond it requests are refused [default: 64 batches, or 2048]
    #[arg(long, value_name = "ROWS", env = "ORTOLAN_MAX_QUEUE_ROWS")]
    pub max_queue_rows: Option<usize>,
    /// The most bytes of input tensors that wait for the model
    #[arg(long, value_name = "BYTES", default_value = "128MiB", env = "ORTOLAN_MAX_QUEUE_BYTES")]
    pub max_queue_bytes: ByteSize,
    /// Threads that run a batch [default: from the CPU limit, shared by the instances]
    #[arg(long, env = "ORTOLAN_THREADS")]
    pub threads: Option<usize>,
    /// Batches that run at once, for a model that alone does not fill its CPUs; all use the same weights
    #[arg(long, env = "ORTOLAN_INSTANCES")]
    pub instances: Option<usize>,
    /// Measure, before the server is ready, how many batches are best run at once and with how many threads each
    #[arg(long, env = "ORTOLAN_AUTOTUNE")]
    pub autotune: bool,
    /// The largest model that is fetched, with the files beside it
    #[arg(long, value_name = "BYTES", default_value = "16GiB", env = "ORTOLAN_MAX_MODEL_BYTES")]
    pub max_model_bytes: ByteSize,
    /// How long loading the fetched model and running it for the first time may take
    #[arg(long, value_name = "TIME", default_value = "4m", env = "ORTOLAN_LOAD_TIMEOUT")]
    pub load_timeout: HumanDuration,
    /// Bytes for answers that are given again to requests with the very same inputs; 0: none. Not for models that answer
    /// differently each time
    #[arg(long, value_name = "BYTES", default_value = "0", env = "ORTOLAN_RESPONSE_CACHE")]
    pub response_cache: ByteSize,
    /// The largest request body, over REST and gRPC alike
    #[arg(long, value_name = "BYTES", default_value = "64MiB", env = "ORTOLAN_MAX_REQUEST_BYTES")]
    pub max_request_bytes: ByteSize,
    /// The most bytes of request bodies that are on their way at once, over REST and gRPC together; beyond it requests
    /// are refused [default: 4 times --max-request-bytes]
    #[arg(long, value_name = "BYTES", env = "ORTOLAN_MAX_BODY_BYTES_UNDER_WAY")]
    pub max_body_bytes_under_way: Option<ByteSize>,
    /// How long a client may take to send a request's head
    #[arg(long, value_name = "TIME", default_value = "30s", env = "ORTOLAN_REQUEST_HEAD_TIMEOUT")]
    pub request_head_timeout: HumanDuration,
    /// How long a client may take to send a request's body
    #[arg(long, value_name = "TIME", default_value = "60s", env = "ORTOLAN_REQUEST_BODY_TIMEOUT")]
    pub request_body_timeout: HumanDuration,
    /// Where fetched models are kept, for this server alone: what earlier ones left is removed at the start [default: a
    /// folder in the system's temporary folder, which others may use and nothing is removed from]
    #[arg(long, value_name = "DIR", env = "ORTOLAN_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
    /// How long to keep answering after SIGTERM, for clients to learn that this server leaves
    #[arg(long, value_name = "TIME", default_value = "5s", env = "ORTOLAN_DRAIN_DELAY")]
    pub drain_delay: HumanDuration,
    /// How long to wait for unfinished requests after that
    #[arg(long, value_name = "TIME", default_value = "25s", env = "ORTOLAN_DRAIN_TIMEOUT")]
    pub drain_timeout: HumanDuration,
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED), env = "ORTOLAN_ADDRESS")]
    pub address: IpAddr,
    /// The port for REST; 0 chooses a free one
    #[arg(long, value_name = "PORT", default_value_t = ports::HTTP, env = "ORTOLAN_HTTP_PORT")]
    pub http_port: u16,
    /// The port for gRPC; 0 chooses a free one
    #[arg(long, value_name = "PORT", default_value_t = ports::GRPC, env = "ORTOLAN_GRPC_PORT")]
    pub grpc_port: u16,
    /// The port for /metrics, /stats and health; 0 chooses a free one
    #[arg(long, value_name = "PORT", default_value_t = ports::OPERATIONS, env = "ORTOLAN_OPS_PORT")]
    pub ops_port: u16,
    /// Where to leave the reason when the model cannot be served; written only when the file exists
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log", env = "ORTOLAN_TERMINATION_MESSAGE")]
    pub termination_message: PathBuf,
    /// What is told of single requests.
    #[command(flatten)]
    pub telemetry: TelemetryArguments,
    /// The ONNX Runtime shared library [default: libonnxruntime.so beside this program or in ../lib]
    #[arg(long, value_name = "FILE", env = "ORT_DYLIB_PATH")]
    pub onnxruntime: Option<PathBuf>,
}
