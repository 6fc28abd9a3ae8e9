//! Settings: what is left of the command line once it is checked. Everything behind [`Config`] relies on it and checks nothing
//! again.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use ortolan_protocol::failure::{Failure, FailureReason};

use crate::access::Keys;
use crate::arguments::ServeArguments;
use crate::batch::Limits;
use crate::client_limit::ClientLimits;
use crate::cpu;
use crate::fetch::{Digest, Source, is_sha256};
use crate::telemetry::Telemetry;
use crate::tls::Tls;

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model's name in requests.
    pub name: String,
    /// The revision this server runs.
    pub revision: Option<String>,
    /// Where the model is.
    pub source: Source,
    /// The digest that it must have.
    pub digest: Digest,
    /// The folder with the keys that let us in.
    pub credentials_dir: Option<PathBuf>,
    /// Whether the cloud's metadata service may be asked for the identity of the pod.
    pub cloud_identity: bool,
    /// The largest model that is fetched, in bytes.
    pub max_model_bytes: u64,
    /// How long loading may take.
    pub load_timeout: Duration,
    /// Where fetched models are kept.
    pub cache_dir: PathBuf,
    /// Whether that folder is this server's alone.
    pub owns_cache: bool,
    /// How requests become batches.
    pub batching: Limits,
    /// Where the largest batch comes from.
    pub largest_batch: LargestBatch,
    /// The keys that clients must show.
    pub keys: Option<Arc<Keys>>,
    /// What is shown to clients that speak TLS; they must.
    pub tls: Option<Arc<Tls>>,
    /// What one client may ask for.
    pub client_limits: ClientLimits,
    /// Bytes for answers that are given again; 0: none.
    pub response_cache: usize,
    /// What clients may send.
    pub requests: RequestLimits,
    /// The CPUs that this process may use.
    pub cpus: f64,
    /// Threads that run a batch.
    pub threads: usize,
    /// Whether it is measured how these threads are best shared.
    pub autotune: bool,
    /// The ONNX Runtime library.
    pub onnxruntime: PathBuf,
    /// Where to listen.
    pub listen: Listen,
    /// How to stop.
    pub drain: Drain,
    /// What is told of single requests, where anything is.
    pub telemetry: Option<Arc<Telemetry>>,
}

/// Where the largest batch comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LargestBatch {
    /// Somebody gave it.
    Given,
    /// It is no larger than memory has room for.
    Fitting,
}

/// What clients may send.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// The largest body in bytes.
    pub max_bytes: usize,
    /// The most bytes of all bodies that are coming in.
    pub max_bytes_under_way: usize,
    /// How long a head may take.
    pub head_timeout: Duration,
    /// How long a body may take.
    pub body_timeout: Duration,
}

/// Where to listen.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// The address for all ports.
    pub address: IpAddr,
    /// REST.
    pub http: u16,
    /// gRPC.
    pub grpc: u16,
    /// Operations.
    pub ops: u16,
}

/// How to stop.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long to keep answering as if nothing had happened.
    pub delay: Duration,
    /// How long to wait for unfinished requests after that.
    pub timeout: Duration,
}

impl TryFrom<ServeArguments> for Config {
    type Error = Failure;

    fn try_from(arguments: ServeArguments) -> Result<Self, Failure> {
        if arguments.format != "onnx" {
            return Err(invalid(format!(
                "the format '{}' is not one that this server loads; it loads onnx",
                arguments.format
            )));
        }
        let cpus = cpu::available();
        Ok(Self {
            name: checked_name(&arguments.name, "name")?,
            revision: arguments.revision.as_deref().map(|revision| checked_name(revision, "revision")).transpose()?,
            source: arguments.model.parse()?,
            digest: digest(&arguments)?,
            credentials_dir: arguments.credentials_dir.clone(),
            cloud_identity: arguments.cloud_identity,
            max_model_bytes: arguments.max_model_bytes.as_u64(),
            load_timeout: *arguments.load_timeout,
            cache_dir: arguments.cache_dir.clone().unwrap_or_else(|| std::env::temp_dir().join("ortolan-models")),
            owns_cache: arguments.cache_dir.is_some(),
            batching: batching(&arguments)?,
            largest_batch: arguments.max_batch_size.map_or(LargestBatch::Fitting, |_| LargestBatch::Given),
            keys: arguments.api_keys_dir.as_deref().map(Keys::read).transpose()?.map(Arc::new),
            tls: tls(&arguments)?,
            client_limits: arguments.client_limits,
            response_cache: size(arguments.response_cache),
            requests: requests(&arguments)?,
            cpus,
            threads: threads(&arguments, cpus)?,
            autotune: arguments.autotune,
            onnxruntime: library(arguments.onnxruntime)?,
            listen: Listen {
                address: arguments.address,
                http: arguments.http_port,
                grpc: arguments.grpc_port,
                ops: arguments.ops_port,
            },
            drain: Drain { delay: *arguments.drain_delay, timeout: *arguments.drain_timeout },
            telemetry: Telemetry::new(
                &arguments.telemetry,
                &arguments.name,
                arguments.revision.as_deref().unwrap_or("1"),
            )?,
        })
    }
}

fn tls(arguments: &ServeArguments) -> Result<Option<Arc<Tls>>, Failure> {
    let clients = arguments.tls_client_ca_dir.as_deref();
    Ok(arguments.tls_dir.as_deref().map(|folder| Tls::read(folder, clients)).transpose()?.map(Arc::new))
}

/// Two switches between threads and back cost some 20 µs, and nobody notices a connection that is read so much later.
const QUICK: Duration = Duration::from_micros(100);

/// The largest batch where none is given. Larger ones gain hardly anything on a CPU.
const MOST_ROWS: usize = 256;
/// The rows that wait at most where nothing is given.
const QUEUED_ROWS: usize = 2048;

fn batching(arguments: &ServeArguments) -> Result<Limits, Failure> {
    let given = arguments.max_batch_size;
    if let Some(rows) = given.filter(|rows| !(1..=65_536).contains(rows)) {
        return Err(invalid(format!("--max-batch-size is {rows}, and must be between 1 and 65536")));
    }
    let max_queue_rows = arguments.max_queue_rows.unwrap_or(given.map_or(QUEUED_ROWS, |rows| 64 * rows));
    let least = given.unwrap_or(1);
    if max_queue_rows < least {
        return Err(invalid(format!(
            "--max-queue-rows is {max_queue_rows}, and must not be less than --max-batch-size ({least})"
        )));
    }
    let max_batch_rows = given.unwrap_or(MOST_ROWS.min(max_queue_rows));
    let instances = arguments.instances.unwrap_or(1);
    if !(1..=256).contains(&instances) {
        return Err(invalid(format!("--instances is {instances}, and must be between 1 and 256")));
    }
    Ok(Limits {
        max_batch_rows,
        instances,
        max_delay: *arguments.max_batch_delay,
        quick: QUICK,
        max_queue_rows,
        max_queue_bytes: size(arguments.max_queue_bytes),
    })
}

fn requests(arguments: &ServeArguments) -> Result<RequestLimits, Failure> {
    let max_bytes = size(arguments.max_request_bytes);
    let max_bytes_under_way = arguments.max_body_bytes_under_way.map_or(max_bytes.saturating_mul(4), size);
    if max_bytes_under_way < max_bytes {
        return Err(invalid(format!(
            "--max-body-bytes-under-way is {max_bytes_under_way}, and must not be less than --max-request-bytes ({max_bytes})"
        )));
    }
    Ok(RequestLimits {
        max_bytes,
        max_bytes_under_way,
        head_timeout: *arguments.request_head_timeout,
        body_timeout: *arguments.request_body_timeout,
    })
}

fn threads(arguments: &ServeArguments, cpus: f64) -> Result<usize, Failure> {
    if arguments.autotune && (arguments.threads.is_some() || arguments.instances.is_some()) {
        return Err(invalid(
            "--autotune finds out what --threads and --instances say: it cannot be given with them".to_owned(),
        ));
    }
    match arguments.threads {
        None => Ok((cpu::threads(cpus) / arguments.instances.unwrap_or(1).max(1)).max(1)),
        Some(threads) if (1..=1024).contains(&threads) => Ok(threads),
        Some(threads) => Err(invalid(format!("--threads is {threads}, and must be between 1 and 1024"))),
    }
}

/// Names stand in URLs and metric labels.
fn checked_name(name: &str, what: &str) -> Result<String, Failure> {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    if name.is_empty() || name.len() > 253 || !name.chars().all(is_plain) {
        return Err(invalid(format!(
            "the {what} '{}' must be 1 to 253 letters, digits, '-', '_' or '.'",
            name.escape_debug()
        )));
    }
    Ok(name.to_owned())
}

/// The digest that was given, or that an earlier server of this revision found.
fn digest(arguments: &ServeArguments) -> Result<Digest, Failure> {
    if let Some(given) = &arguments.sha256 {
        return Ok(Digest::Given(
            checked_digest(given).ok_or_else(|| invalid("--sha256 must be 64 hexadecimal digits".to_owned()))?,
        ));
    }
    let Some(path) = &arguments.lock_file else { return Ok(Digest::Any) };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Digest::Any),
        Err(error) => return Err(invalid(format!("the file that --lock-file names cannot be read: {error}"))),
    };
    let sha256 = checked_digest(text.trim())
        .ok_or_else(|| invalid("the file that --lock-file names does not hold 64 hexadecimal digits".to_owned()))?;
    Ok(Digest::Locked { sha256, revision: arguments.revision.clone().unwrap_or_else(|| "1".to_owned()) })
}

fn checked_digest(digest: &str) -> Option<String> {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest).to_ascii_lowercase();
    is_sha256(&hex).then_some(hex)
}

fn library(wanted: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(path) = wanted {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(invalid(
                "the ONNX Runtime library that --onnxruntime or ORT_DYLIB_PATH names does not exist".to_owned(),
            ))
        };
    }
    let program = std::env::current_exe().ok();
    let folder = program.as_deref().and_then(|program| program.parent());
    let candidates = ["libonnxruntime.so", "../lib/libonnxruntime.so"];
    folder
        .and_then(|folder| candidates.iter().map(|candidate| folder.join(candidate)).find(|path| path.is_file()))
        .ok_or_else(|| {
            invalid(
                "there is no ONNX Runtime library: libonnxruntime.so must lie beside this program or in ../lib, or be named by \
                 --onnxruntime or ORT_DYLIB_PATH"
                    .to_owned(),
            )
        })
}

fn size(bytes: ByteSize) -> usize {
    usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX)
}

fn invalid(message: String) -> Failure {
    Failure { reason: FailureReason::ConfigInvalid, message }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn parsed(extra: &[&str]) -> Result<Config, Failure> {
        let library = tempfile::NamedTempFile::new().unwrap();
        let mut line = vec!["ortolan-server", "serve", "--model", "/m.onnx", "--name", "digits"];
        line.extend(["--onnxruntime", library.path().to_str().unwrap()]);
        line.extend(extra);
        let Arguments { command: Command::Serve(arguments) } = Arguments::try_parse_from(line).unwrap() else {
            panic!("another command");
        };
        Config::try_from(*arguments)
    }

    #[test]
    fn the_defaults_are_those_that_the_operator_counts_on() {
        let config = parsed(&[]).unwrap();
        assert_eq!((config.listen.http, config.listen.grpc, config.listen.ops), (8080, 8081, 9090));
        assert_eq!((config.batching.max_batch_rows, config.batching.max_queue_rows), (256, 2048));
        assert_eq!(config.batching.max_delay, Duration::ZERO);
        assert!(!config.owns_cache && parsed(&["--cache-dir", "/cache"]).unwrap().owns_cache);
        assert_eq!((config.requests.max_bytes, config.requests.max_bytes_under_way), (64 << 20, 256 << 20));
        assert_eq!((config.drain.delay, config.drain.timeout), (Duration::from_secs(5), Duration::from_secs(25)));
        assert!(config.threads >= 1 && config.batching.instances == 1);
        assert_eq!(parsed(&["--instances", "256"]).unwrap().threads, 1, "they share the CPUs");
    }

    #[test]
    fn durations_sizes_and_digests_are_read_as_kubernetes_and_people_write_them() {
        let digest = "AB".repeat(32);
        let config = parsed(&["--max-batch-delay", "2ms", "--max-request-bytes", "1Mi", "--sha256", &digest]).unwrap();
        assert_eq!(config.batching.max_delay, Duration::from_millis(2));
        assert_eq!(config.requests.max_bytes, 1 << 20);
        assert_eq!(config.digest, Digest::Given("ab".repeat(32)));
    }

    #[test]
    fn a_lock_binds_where_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sha256");
        let locked =
            || parsed(&["--revision", "r1", "--lock-file", path.to_str().unwrap()]).map(|config| config.digest);
        assert_eq!(locked().unwrap(), Digest::Any);
        fs::write(&path, format!("{}\n", "ab".repeat(32))).unwrap();
        assert_eq!(locked().unwrap(), Digest::Locked { sha256: "ab".repeat(32), revision: "r1".to_owned() });
        fs::write(&path, "").unwrap();
        let failure = locked().unwrap_err();
        assert!(failure.message.contains("--lock-file") && !failure.message.contains('/'), "{}", failure.message);
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused_with_their_numbers() {
        let cases: [(&[&str], &str); 12] = [
            (&["--format", "pickle"], "'pickle'"),
            (&["--max-batch-size", "0"], "--max-batch-size is 0"),
            (&["--max-batch-size", "8", "--max-queue-rows", "4"], "--max-queue-rows is 4"),
            (&["--max-body-bytes-under-way", "1Mi"], "--max-body-bytes-under-way is 1048576"),
            (&["--threads", "0"], "--threads is 0"),
            (&["--instances", "0"], "--instances is 0"),
            (&["--autotune", "--threads", "1"], "--autotune finds out"),
            (&["--autotune", "--instances", "1"], "--autotune finds out"),
            (&["--sha256", "abc"], "64 hexadecimal"),
            (&["--revision", "a b"], "'a b'"),
            (&["--revision", ""], "the revision ''"),
            (&["--revision", "a\"\n"], "must be"),
        ];
        for (arguments, words) in cases {
            let failure = parsed(arguments).unwrap_err();
            assert_eq!(failure.reason, FailureReason::ConfigInvalid, "{arguments:?}");
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }

    #[test]
    fn a_library_that_is_not_there_is_named_by_its_setting_not_by_its_path() {
        let failure = library(Some(PathBuf::from("/nowhere/lib.so"))).unwrap_err();
        assert!(failure.message.contains("ORT_DYLIB_PATH") && !failure.message.contains("/nowhere"));
    }
}
